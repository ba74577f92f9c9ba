"""How many pairs a second DPO trains on: ours beside plain TRL, on the same pairs and the same random Llama.

Four kinds of pairs. Judge pairs are the packaged rubric's prompts (500 tokens, 80 to a completion), so their prompts
begin alike, as they do in every run; the same with prompts that have nothing in common but the chat template; actor
pairs (100 and 300); and short ones. Lengths vary by a quarter, as in life. Plain TRL is `DPOTrainer` with our arguments
and nothing else of ours: no packing, no sparing head, its own random order, its own precomputation.

Every way of training has a process of its own that waits for its turn, so rounds are interleaved and each one's peak
memory is its own. The reference is live for one epoch, or precomputed for two; its computation counts. Loading doesn't.

    python bench/dpo.py [--quick] [--rounds 3] [--kinds 0,1,2,3] [--arms 'TRL live;ours live'] [--again]

Prints a table and writes bench/results/dpo.json (not with --quick, which takes a small model and one round); kinds
measured earlier stay in it, so they can be run one at a time, and so can arms that are compared with each other. With
--again the rounds are added to those of before; the figures are medians of all.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from metareward.method.judge import Rubric
from metareward.method.template import load_template
from metareward.storage.run_log import environment
from metareward.training.config import DpoJob, TrainingSettings
from metareward.training.data import TrainingPair
from metareward.types import Message, Prompt

BATCH, MICRO = 8, 4
FIGURES = ("pairs_per_second", "per_cpu_second", "peak_mib")
Turn = dict[str, float]  # FIGURES, and the number of pairs
ARMS = ("TRL live", "ours live", "TRL precomputed", "ours precomputed", "ours live, bf16", "TRL live, bf16")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """Pairs of one kind: about how many tokens a prompt and a completion have, and whether prompts hold the rubric."""

    name: str
    prompt: int
    completion: int
    rubric: bool = False


KINDS = (
    Kind("judge (500, 80), one rubric", 500, 80, rubric=True),
    Kind("judge (500, 80), nothing in common", 500, 80),
    Kind("actor (100, 300)", 100, 300),
    Kind("short (20, 20)", 20, 20),
)
MODELS = {
    "28M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "4M": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
}


# --- what is trained on ---


def make_tokenizer() -> Any:
    """Byte-level BPE of 4096 tokens at most, which knows the rubric's words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<pad>", "</s>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([load_template(name).text for name in ("judge", "metajudge", "propose")], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )


def make_pairs(kind: Kind, tokenizer: Any, count: int) -> list[TrainingPair]:
    """Pairs of random words, the same ones every time."""
    rng = random.Random(kind.name)
    words = [word for word in load_template("judge").text.split() if word.isalpha()]

    def text(tokens: float) -> str:
        return " ".join(rng.choices(words, k=max(1, round(tokens / 1.05 * rng.uniform(0.75, 1.25)))))

    def prompt() -> str:
        if not kind.rubric:
            return text(kind.prompt)
        rubric = Rubric.load("judge")
        room = kind.prompt - len(
            tokenizer(rubric.render(Prompt("", (Message("user", ""),)), "")[0].content)["input_ids"]
        )
        return rubric.render(Prompt("", (Message("user", text(room / 4)),)), text(3 * room / 4))[0].content

    def turn(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    return [
        TrainingPair(
            kind.name,
            turn("user", prompt()),
            turn("assistant", text(kind.completion)),
            turn("assistant", text(kind.completion)),
        )
        for _ in range(count)
    ]


def make_model(size: str, tokenizer: Any, folder: Path) -> Path:
    """A folder with a random Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **MODELS[size],
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- one way of training, in its own process ---


def make_job(arm: str, model: Path, folder: Path) -> DpoJob:
    epochs = 2 if "precomputed" in arm else 1
    settings = TrainingSettings(
        learning_rate=1e-6,
        num_train_epochs=epochs,
        batch_size=BATCH,
        per_device_train_batch_size=MICRO,
        max_length=2048,
        dtype="bfloat16" if "bf16" in arm else "float32",
        device="cpu",
    )
    return DpoJob(
        settings=settings,
        start=model,
        reference=model,
        data=(folder / "none",),
        output=folder / "model",
        log=folder / "log",
    )


def run_ours(job: DpoJob, pairs: Sequence[TrainingPair], folder: Path) -> float:
    """Seconds from the loaded models to the last step."""
    from metareward.training.checkpoints import SanityFindings
    from metareward.training.data import fit_pairs
    from metareward.training.models import load_dpo_models, load_tokenizer
    from metareward.training.sanity_checks import SanityCheck
    from metareward.training.trainer import make_dpo_trainer

    models, tokenizer = load_dpo_models(job), load_tokenizer(job.start)
    data = fit_pairs(pairs, tokenizer, job, None)
    found: list[SanityFindings] = []
    check = SanityCheck(job, None, found.append)
    began = time.perf_counter()
    trainer = make_dpo_trainer(job, data, models.policy, models.reference, tokenizer, folder, [check])
    check.prepare(trainer, data.lengths)
    trainer.train()
    assert not found[0].not_packed, found[0].not_packed
    return time.perf_counter() - began


def run_trl(job: DpoJob, pairs: Sequence[TrainingPair], folder: Path) -> float:
    """The same with nothing of ours but the arguments."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from metareward.training.models import load_dpo_models, load_tokenizer
    from metareward.training.trainer import dpo_arguments

    models, tokenizer = load_dpo_models(job), load_tokenizer(job.start)
    rows = [{"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs]
    config = DPOConfig(
        **dpo_arguments(job, len(rows), folder), precompute_ref_log_probs=job.settings.num_train_epochs > 1
    )
    began = time.perf_counter()
    trainer = DPOTrainer(
        model=models.policy,
        ref_model=models.reference,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return time.perf_counter() - began


def serve(arm: str, kind: Kind, model: Path, pairs: int) -> None:
    """Train once on as many pairs as each line on standard input says; answer with the pairs a second."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    from metareward.training.models import load_tokenizer

    everything = make_pairs(kind, load_tokenizer(model), pairs)
    run = run_ours if arm.startswith("ours") else run_trl
    for line in sys.stdin:
        asked = everything[: int(line)]
        with tempfile.TemporaryDirectory() as folder:
            job, busy = make_job(arm, model, Path(folder)), time.process_time()
            seconds = run(job, asked, Path(folder))
            busy = time.process_time() - busy
        trained = len(asked) * job.settings.num_train_epochs
        seen = {"pairs_per_second": trained / seconds, "per_cpu_second": trained / busy}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(seen | {"peak_mib": peak, "pairs": len(asked)}), file=out, flush=True)


# --- all of them, turn by turn ---


class Arm:
    """A way of training under way in a process of its own."""

    def __init__(self, name: str, kind: Kind, model: Path, pairs: int) -> None:
        place = str(KINDS.index(kind))
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", name, place, str(model), str(pairs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"},
            text=True,
        )

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def turn(self, pairs: int) -> Turn:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(pairs, file=self._process.stdin, flush=True)
        return dict(json.loads(self._process.stdout.readline()))


def measure(kind: Kind, model: Path, rounds: int, arms: Sequence[str], pairs: int) -> dict[str, list[Turn]]:
    """All rounds, arm by arm, after a short one to warm up."""
    with ExitStack() as stack:
        under_way = {name: stack.enter_context(Arm(name, kind, model, pairs)) for name in arms}
        for arm in under_way.values():
            arm.turn(MICRO)
        turns = [{name: arm.turn(pairs) for name, arm in under_way.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in arms}


def median(turns: Sequence[Turn], figure: str) -> float:
    return statistics.median(turn[figure] for turn in turns)


def ratios(found: dict[str, list[Turn]], figure: str) -> Iterator[tuple[str, float]]:
    for arm in found:
        other = arm.replace("ours", "TRL")
        if arm != other and other in found:
            yield f"{arm} / TRL", median(found[arm], figure) / median(found[other], figure)
    if "ours live" in found and "ours live, bf16" in found:
        yield "ours live, bf16 / fp32", median(found["ours live, bf16"], figure) / median(found["ours live"], figure)


def show(results: dict[str, dict[str, list[Turn]]]) -> None:
    table = Table("pairs/s (peak MiB)", *results)
    for arm in next(iter(results.values())):
        cells = [found[arm] for found in results.values()]
        table.add_row(
            arm, *(f"{median(cell, 'pairs_per_second'):.2f} ({median(cell, 'peak_mib'):.0f})" for cell in cells)
        )
    for title, figure in (("by the clock", "pairs_per_second"), ("by processor time", "per_cpu_second")):
        table.add_section()
        for row in zip(*(ratios(found, figure) for found in results.values()), strict=True):
            table.add_row(f"{row[0][0]}, {title}", *(f"{ratio:.2f} x" for _, ratio in row))
    Console(width=160).print(table)


def main() -> None:
    """Run all, print, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=24, help="a run checks its first two pairs, however long it is")
    parser.add_argument("--kinds", default=",".join(map(str, range(len(KINDS)))))
    parser.add_argument("--arms", default=";".join(ARMS))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--serve", nargs=4)
    asked = parser.parse_args()
    if asked.serve:
        arm, kind, model, pairs = asked.serve
        return serve(arm, KINDS[int(kind)], Path(model), int(pairs))
    size, rounds = ("4M", 1) if asked.quick else ("28M", asked.rounds)
    kinds = [KINDS[int(number)] for number in asked.kinds.split(",")]
    results: dict[str, dict[str, list[Turn]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(size, make_tokenizer(), Path(folder) / "model")
        for kind in kinds:
            results[kind.name] = measure(kind, model, rounds, asked.arms.split(";"), asked.pairs)
    if asked.quick:
        show(results)
    else:
        write(size, results, asked.again)
    return None


def write(size: str, results: dict[str, dict[str, list[Turn]]], again: bool) -> None:
    """Add what was measured to the file, and show it as it then stands."""
    path = Path(__file__).parent / "results" / "dpo.json"
    everything = json.loads(path.read_text(encoding="utf-8"))["results"] if path.is_file() else {}
    for kind, found in results.items():
        arms = everything.setdefault(kind, {})
        for arm, turns in found.items():
            before = arms[arm]["turns"] if again and arm in arms else []
            results[kind][arm] = all_turns = [*before, *turns]
            arms[arm] = {figure: median(all_turns, figure) for figure in FIGURES} | {"turns": all_turns}
    setting = {"model": size, "batch": BATCH, "micro_batch": MICRO, "machine": environment()}
    path.write_text(json.dumps(setting | {"results": everything}, indent=2) + "\n")
    show(results)


if __name__ == "__main__":
    main()
