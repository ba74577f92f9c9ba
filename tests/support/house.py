"""Whole runs as a user starts them: ``metareward run`` in processes of its own, on a tiny model."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from metareward.storage.run_dir import IterationDir, RunDir
from metareward.storage.store import RecordStore

ITERATIONS = 2
PROMPTS = 6
HELD_OUT = 4
RECIPE = f"""\
model: model
prompts: {{source: prompts.jsonl, per_iteration: {PROMPTS}, held_out: {HELD_OUT}}}
answers: {{k: 2, max_tokens: 16}}
judgments: {{n: 3, max_tokens: 24}}
meta_judgments: {{max_tokens: 24}}
engine: {{workers: 1, threads: 1}}
training: {{learning_rate: 1e-3, num_train_epochs: 1, batch_size: 1, per_device_train_batch_size: 1}}
benchmarks: [{{kind: alpaca_eval, name: mine, questions: questions.jsonl, judgments: 1}}]
iterations: {{1: {{}}, 2: {{}}}}
"""
_SUBJECTS = ("a river", "an old clock", "two cats", "the first snow", "a bridge", "seven lemons")
_START = "from metareward.cli.main import main; main()"
_LONGEST = 1500.0


@dataclass
class House:
    """A folder with a model, prompts and a recipe, and the run that nobody disturbs, under way from the beginning."""

    folder: Path
    _undisturbed: subprocess.Popen[str] | None = None

    def begin(self) -> subprocess.Popen[str]:
        """Start the run that nobody disturbs."""
        self._undisturbed = self.start("undisturbed")
        return self._undisturbed

    def finished(self) -> RunDir:
        """That run, when it is finished."""
        assert self._undisturbed is not None
        if self._undisturbed.returncode is None:
            out, errors = self._undisturbed.communicate(timeout=_LONGEST)
            assert self._undisturbed.returncode == 0, out + errors
        return RunDir(self.folder / "undisturbed")

    def start(self, out: str, *words: str) -> subprocess.Popen[str]:
        """``metareward run recipe.yaml --out OUT`` in a session of its own."""
        command = [sys.executable, "-c", _START, "run", "recipe.yaml", "--out", out, *words]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: str, *words: str) -> tuple[int, str, str]:
        """The same to its end: exit code, standard output, standard error."""
        process = self.start(out, *words)
        told, errors = process.communicate(timeout=_LONGEST)
        return process.returncode, told, errors


def furnish(folder: Path) -> None:
    """Prompts and a recipe; the model is `tiny_model.tiny_llama`'s to make."""
    count = ITERATIONS * PROMPTS + HELD_OUT
    prompts = [f"Write line {number} about {_SUBJECTS[number % len(_SUBJECTS)]}." for number in range(count)]
    text = "".join(json.dumps({"id": f"p{number:02d}", "prompt": each}) + "\n" for number, each in enumerate(prompts))
    (folder / "prompts.jsonl").write_text(text, encoding="utf-8")
    (folder / "questions.jsonl").write_text('{"prompt": "Write about rain."}\n{"prompt": "And about wind."}\n')
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def alive(session: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(of) == session and state not in "ZX":
            found.append(int(folder.name))
    return found


def kill_tree(process: subprocess.Popen[str]) -> None:
    """``kill -9`` of a run and all that it started, until nothing is left."""
    until = time.monotonic() + 10
    while processes := alive(process.pid):
        assert time.monotonic() < until, f"these don't die: {processes}"
        for each in processes:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.wait()


def outcome(run: RunDir, iterations: int = ITERATIONS) -> dict[str, object]:
    """All that a run's settings decide, by name: digests of files, documents of stores, measurements."""
    found: dict[str, object] = {}
    for t in range(iterations + 1):
        folder = run.iteration(t)
        exact = [folder.prompts, folder.dropped, folder.summary, *_pairs_and_weights(folder)]
        found |= {str(path.relative_to(run.path)): digest(path) for path in exact if t or path == folder.prompts}
        found |= {f"documents of iter-{t}": documents(folder.records)} if t else {}
        found |= {f"documents of iter-{t}/eval": documents(folder.evaluation / "records.sqlite")}
        measured = json.loads((folder.evaluation / "model.json").read_text(encoding="utf-8"))
        made = sorted(folder.evaluation.glob("*/*.json"))
        found |= {f"iter-{t}/{path.parent.name}/{path.name}": digest(path) for path in made}
        found |= {f"measurements of M{t}": {key: value for key, value in measured.items() if key != "seconds"}}
    return found


def _pairs_and_weights(folder: IterationDir) -> list[Path]:
    return [*sorted((folder.path / "pairs").glob("*.parquet")), *sorted(folder.model.glob("*.safetensors"))]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def documents(path: Path) -> dict[str, str]:
    with RecordStore.read(path) as store:
        return dict(store.documents())


def files(folder: Path) -> dict[str, tuple[str, int]]:
    """Every file, by its content and the time it was last written; but for SQLite's index, which readers make anew."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    return {str(path.relative_to(folder)): (digest(path), path.stat().st_mtime_ns) for path in paths}
