"""What a fault happens to: a run of the tiny model on a small disk, a scripted server, and what no fault may change.

A run is disturbed in one of four parts; the last two begin from a copy of the undisturbed run:

    generate   from nothing to the pairs: M0's evaluation, the records of iteration 1, the pairs
    local      the same with the tiny model in a worker process instead of the server
    train      from the pairs to M1 and the end
    finish     from M1 to the end: M1's evaluation, the report
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from drivers import HERE, Zygote
from rude_servers import KEY
from whole_runs import processes_of, run_results

from metareward.errors import UserError
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore

Part = Literal["generate", "local", "train", "finish"]
PROMPTS, HELD_OUT = 10, 4
_RECIPE = f"""\
model: model
prompts: {{source: prompts.jsonl, per_iteration: {PROMPTS}, held_out: {HELD_OUT}}}
answers: {{k: 3, max_tokens: 16}}
judgments: {{n: 3, max_tokens: 24}}
meta_judgments: {{max_tokens: 24}}
evaluation: {{answers: 1, judgments: 2, meta_pairs: 1}}
engine: {{kind: openai, base_urls: ["http://127.0.0.1:PORT"], model: "m{{t}}", api_key_env: CANARY_KEY}}
training: {{learning_rate: 1e-3, num_train_epochs: 1, batch_size: 1, per_device_train_batch_size: 1}}
iterations: {{1: {{}}}}
"""
_MAKE_MODEL = "import pathlib, sys; from tiny_models import tiny_llama; tiny_llama(pathlib.Path(sys.argv[1]), True)"
_LOCAL = "engine={kind: local, workers: 1, threads: 1}"
_PAGE = 4096
_DISK_BYTES = 256 << 20
_LONGEST = 300.0  # seconds that a driver may take


class BrokenPromiseError(AssertionError):
    """A fault changed a result, lost a record, left a process or showed a traceback."""


def require(fact: object, problem: str) -> None:
    """Raise `BrokenPromiseError` unless ``fact``."""
    if not fact:
        raise BrokenPromiseError(problem)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@dataclass
class World:
    """The disk with its recipe, model and reference run; the zygote, and the good server at ``port``."""

    disk: Path
    zygote: Zygote
    port: int
    server: int = 0
    _results: dict[Part, dict[str, object]] = field(default_factory=dict)
    _seconds: dict[Part, float] = field(default_factory=dict)

    @classmethod
    def open(cls, disk: Path, cache: Path, model: Path | None = None) -> World:
        """Make the world on ``disk``, an empty folder. ``cache`` keeps the model, which needs torch to be made.

        ``model``: another one, which needn't be good for more than the part ``generate``.
        """
        if model is None and not (cache / "model").is_dir():
            subprocess.run(
                [sys.executable, "-c", _MAKE_MODEL, str(cache / "new")], cwd=HERE.parent / "support", check=True
            )
            (cache / "new").rename(cache / "model")
        shutil.copytree(model or cache / "model", disk / "model")
        port = free_port()
        (disk / "recipe.yaml").write_text(_RECIPE.replace("PORT", str(port)), encoding="utf-8")
        rows = (
            {"id": f"p{at:02d}", "prompt": f"What is the capital of country {at}?"} for at in range(PROMPTS + HELD_OUT)
        )
        (disk / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (disk / "clock").write_bytes(struct.pack("d", 0.0))
        environment = {"CANARY_KEY": KEY, "FAULT_CLOCK": str(disk / "clock"), "OMP_NUM_THREADS": "1"}
        library = _clock_library(cache)
        if library is not None:
            environment["LD_PRELOAD"] = str(library)
        world = cls(disk, Zygote(disk, environment), port)
        world.serve("good")
        return world

    def results(self, part: Part) -> dict[str, object]:
        """What an undisturbed run gives at the end of this part; it is made when it is asked for first."""
        if part not in self._results:
            scene, began = Scene(self, random.Random(0), f"reference-{part}", part, fresh=True), time.monotonic()
            process = scene.start()
            code = scene.wait(process, scene.at_end)
            self._seconds[part] = time.monotonic() - began
            require(scene.is_over(code), f"the undisturbed run failed: {scene.said(process)}")
            scene.kill(process)
            self._results[part] = scene.results()
            if part in ("train", "finish"):
                self._results["train"] = self._results["finish"] = self._results[part]
                self._seconds["train"] = self._seconds[part]
                self._seconds["finish"] = self._seconds[part] / 4  # training takes most of it
        return self._results[part]

    def seconds(self, part: Part) -> float:
        """How long an undisturbed driver takes for what is disturbed in this part."""
        self.results(part)
        return self._seconds[part]

    def serve(self, manner: str) -> None:
        """Let a server of this manner take the place of the one that is there."""
        self.stop_server()
        self.server = self.zygote.server(manner, self.port)

    def stop_server(self) -> None:
        """``kill -9`` the server."""
        if self.server:
            os.kill(self.server, signal.SIGKILL)
            while self.zygote.poll(self.server) is None:
                time.sleep(0.001)
            self.server = 0

    def jump(self, seconds: float) -> None:
        """Set the drivers' wall clock so far from the true one."""
        (self.disk / "clock").write_bytes(struct.pack("d", seconds))

    def leave_free(self, pages: int | None) -> None:
        """Resize the disk so that so many pages are free; all of its space for None."""
        space = os.statvfs(self.disk)
        used = (space.f_blocks - space.f_bfree) * space.f_frsize
        size = _DISK_BYTES if pages is None else used + max(1, pages) * _PAGE
        self.remount(f"size={size}")

    def remount(self, options: str) -> None:
        """Mount the disk again with these options."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.disk)], check=True)

    def close(self) -> None:
        """End all processes."""
        self.stop_server()
        self.zygote.close()


def _clock_library(cache: Path) -> Path | None:
    """The library that makes the clock jump; None without a C compiler."""
    source, library = HERE / "clock.c", cache / "clock.so"
    compiler = shutil.which("cc")
    if not library.is_file() and compiler is not None:
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library if library.is_file() else None


@dataclass(frozen=True)
class Process:
    """A driver and the file of its output."""

    pid: int
    log: Path


class Scene:
    """One run folder in the world, its drivers, and the promises that are checked."""

    def __init__(
        self, world: World, draw: random.Random, name: str, part: Part = "generate", fresh: bool = False
    ) -> None:
        self.world, self.draw, self.part = world, draw, part
        self.run = RunDir(world.disk / name)
        self.logs = world.disk.parent / f"{name}.logs"  # not on the disk, which may be full
        self.logs.mkdir()
        if part in ("train", "finish") and not fresh:
            self._copy_reference()

    def _copy_reference(self) -> None:
        """Copy what the part begins with."""
        self.world.results(self.part)
        (reference,) = (path for path in self.world.disk.glob("reference-*") if (path / "report.html").is_file())
        shutil.copytree(reference, self.run.path)
        first = self.run.iteration(1)
        for folder in (first.evaluation, *((first.model,) if self.part == "train" else ())):
            shutil.rmtree(folder)
        gone = [first.done, self.run.report, *(first.path.glob("training.*") if self.part == "train" else ())]
        for path in gone:
            path.unlink()

    def start(self, *words: str, memory: int | None = None, run: Path | None = None) -> Process:
        """Start a driver of the run."""
        local = ["--set", _LOCAL] if self.part == "local" else []
        return self.command("run", "recipe.yaml", "--out", (run or self.run.path).name, *words, *local, memory=memory)

    def command(self, *words: str, memory: int | None = None) -> Process:
        """Start ``metareward`` with these words."""
        log = self.logs / f"{len(list(self.logs.iterdir()))}.txt"
        return Process(self.world.zygote.driver(list(words), log, memory), log)

    def wait(
        self, process: Process, until: Callable[[], object] = lambda: False, seconds: float = _LONGEST
    ) -> int | None:
        """How the driver ended; None once ``until`` is true. Raises `BrokenPromiseError` after so many seconds."""
        limit = time.monotonic() + seconds
        while (code := self.world.zygote.poll(process.pid)) is None:
            if until():
                return None
            if time.monotonic() > limit:
                raise BrokenPromiseError(f"a driver still runs after {seconds:g} s: {self.said(process)[-300:]}")
            time.sleep(0.001)
        return code

    def send(self, process: Process, what: signal.Signals) -> None:
        """Send the driver a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, what)

    def kill(self, process: Process) -> int:
        """``kill -9`` the driver alone; none of its children may live two seconds later."""
        self.send(process, signal.SIGKILL)
        code = self.wait(process)
        assert code is not None
        self.require_no_processes(process)
        return code

    def require_no_processes(self, process: Process) -> None:
        """No process of the driver's session outlives it by more than two seconds."""
        limit = time.monotonic() + 2.0
        while living := processes_of(process.pid):
            require(time.monotonic() < limit, f"processes outlive their driver: {_titles(living)}")
            time.sleep(0.01)

    def said(self, process: Process) -> str:
        """What the driver has printed."""
        return process.log.read_text(encoding="utf-8", errors="replace")

    def require_line(self, process: Process, code: int | None, *wanted: int) -> str:
        """The driver's last line: it must have ended with one of these codes, by one line and no traceback."""
        said = self.said(process)
        require(code in wanted, f"ended with {code}, not {wanted}: {said[-400:]}")
        require("Traceback" not in said and "Exception ignored" not in said, f"a traceback: {said[-800:]}")
        line = ([*said.splitlines(), ""])[-2] if said.endswith("\n") else said.splitlines()[-1]
        require(line.startswith("metareward: ") and line.isprintable(), f"no clear line: {line!r}")
        return line

    def documents(self) -> dict[str, str]:
        """The records so far, by store and key."""
        first, zero = self.run.iteration(1), self.run.iteration(0)
        found: dict[str, str] = {}
        for path in (zero.evaluation / "records.sqlite", first.records, first.evaluation / "records.sqlite"):
            if path.is_file() and path.stat().st_size:
                # A kill may have left a store that isn't made yet.
                with contextlib.suppress(UserError), RecordStore.read(path) as store:
                    found |= {f"{path.parent.name} {key}": text for key, text in store.documents()}
        return found

    def at_end(self) -> bool:
        """Whether the part is done."""
        return self.run.iteration(1).summary.is_file() if self.part in ("generate", "local") else False

    def is_over(self, code: int | None) -> bool:
        """Whether a driver that `wait` waited for has come to the part's end."""
        return code is None if self.part in ("generate", "local") else code == 0

    def complete(self) -> None:
        """Let an undisturbed driver end the part; all results must be those of the undisturbed run."""
        process = self.start()
        code = self.wait(process, self.at_end)
        require(self.is_over(code), f"the run did not go on: {self.said(process)[-400:]}")
        self.kill(process)
        require("Traceback" not in self.said(process), f"a traceback: {self.said(process)[-800:]}")
        wanted, found = self.world.results(self.part), self.results()
        differing = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
        require(not differing, f"other results: {', '.join(sorted(differing))}")
        self._require_no_key()

    def results(self) -> dict[str, object]:
        """What no fault may change, at the part's end."""
        if self.part in ("train", "finish"):
            return run_results(self.run, 1)
        first, zero = self.run.iteration(1), self.run.iteration(0)
        found: dict[str, object] = {}
        for path in (
            first.prompts,
            zero.prompts,
            first.dropped,
            first.summary,
            *sorted(first.path.glob("pairs/*.parquet")),
        ):
            found[str(path.relative_to(self.run.path))] = hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in (("iter-1", first.records), ("iter-0/eval", zero.evaluation / "records.sqlite")):
            with RecordStore.read(path) as store:
                found[f"documents of {name}"] = dict(store.documents())
        return found

    def _require_no_key(self) -> None:
        """The API key is in no file of the run and in nothing that its drivers printed."""
        for folder in (self.run.path, self.logs):
            for path in folder.rglob("*"):
                require(not path.is_file() or KEY.encode() not in path.read_bytes(), f"the API key is in {path.name}")

    def remove(self) -> None:
        """Delete the run, to make room."""
        shutil.rmtree(self.run.path, ignore_errors=True)
        shutil.rmtree(self.logs, ignore_errors=True)


def _titles(pids: list[int]) -> str:
    """Their command lines, shortened."""
    return "; ".join(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:120] for pid in pids)
