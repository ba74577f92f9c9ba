"""``metareward`` as a user starts it: whole runs in processes, on a tiny model; and its words parsed without a run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from typer.main import get_command
from typer.testing import CliRunner

from metareward.cli.main import app
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
_TIMEOUT = 1500.0


@dataclass
class Workspace:
    """A folder with a model, prompts and a recipe, and a reference run that no test interrupts."""

    folder: Path
    _reference: subprocess.Popen[str] | None = None

    def start_reference(self) -> subprocess.Popen[str]:
        """Start the reference run."""
        self._reference = self.start("reference")
        return self._reference

    def reference(self) -> RunDir:
        """The reference run, when it has finished."""
        assert self._reference is not None
        if self._reference.returncode is None:
            out, errors = self._reference.communicate(timeout=_TIMEOUT)
            assert self._reference.returncode == 0, out + errors
        return RunDir(self.folder / "reference")

    def start(self, out: str, *words: str) -> subprocess.Popen[str]:
        """Start ``metareward run recipe.yaml --out OUT`` in a session of its own."""
        return self.command("run", "recipe.yaml", "--out", out, *words)

    def command(self, *words: str) -> subprocess.Popen[str]:
        """Start ``metareward`` with these words in a session of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", _START, *words],
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, out: str, *words: str) -> tuple[int, str, str]:
        """The same run to its end: exit code, standard output, standard error."""
        return finished(self.start(out, *words))

    def go_on(self, run: str, *words: str) -> tuple[int, str, str]:
        """``metareward run RUN`` to its end."""
        return finished(self.command("run", run, *words))


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a process, when it has ended."""
    told, errors = process.communicate(timeout=_TIMEOUT)
    return process.returncode, told, errors


def write_inputs(folder: Path) -> None:
    """Write prompts and a recipe; `tiny_models.tiny_llama` writes the model."""
    count = ITERATIONS * PROMPTS + HELD_OUT
    prompts = [f"Write line {number} about {_SUBJECTS[number % len(_SUBJECTS)]}." for number in range(count)]
    text = "".join(json.dumps({"id": f"p{number:02d}", "prompt": each}) + "\n" for number, each in enumerate(prompts))
    (folder / "prompts.jsonl").write_text(text, encoding="utf-8")
    (folder / "questions.jsonl").write_text('{"prompt": "Write about rain."}\n{"prompt": "And about wind."}\n')
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def processes_of(session: int) -> list[int]:
    """The running processes of a session."""
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
    """``kill -9`` a run and all that it started, until no process is left."""
    until = time.monotonic() + 10
    while processes := processes_of(process.pid):
        assert time.monotonic() < until, f"still running: {processes}"
        for each in processes:
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
    process.wait()


def run_results(run: RunDir, iterations: int = ITERATIONS) -> dict[str, object]:
    """What must not depend on interruptions, by name: digests of files, documents of stores, measurements."""
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
    """The digest and modification time of every file except SQLite's index, which readers write too."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    return {str(path.relative_to(folder)): (digest(path), path.stat().st_mtime_ns) for path in paths}


GROUP = get_command(app)


@dataclass(frozen=True)
class Invoked:
    """How a command ended in this process. ``output`` is standard output and standard error together."""

    exit_code: int
    stdout: str
    output: str
    exception: BaseException | None


def invoke(words: Sequence[str], env: Mapping[str, str | None] | None = None) -> Invoked:
    """``metareward`` with these words in this process.

    As typer's `CliRunner.invoke`, which builds all commands for each call: that takes longer than most of them.
    """
    code: int = 0
    exception: BaseException | None = None
    with CliRunner().isolation(env=env) as (stdout, _, both):
        try:
            GROUP.main(args=list(words), prog_name="metareward")
        except SystemExit as end:
            code = int(end.code or 0)
            exception = end if code else None
        except Exception as error:
            code, exception = 1, error
        sys.stdout.flush()
        sys.stderr.flush()
        return Invoked(code, stdout.getvalue().decode(), both.getvalue().decode(), exception)


def parse(words: list[str]) -> None:
    """Parse the words without running the command; raises the error of a typing mistake."""
    context = GROUP.make_context("metareward", words)
    while words := [*context._protected_args, *context.args]:
        name, command, rest = context.command.resolve_command(context, words)  # type: ignore[attr-defined]
        context = command.make_context(name, rest, parent=context)
