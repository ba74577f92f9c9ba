"""``metareward experiment``: arms, each one recipe with a few changes, by seeds; run, resumed and compared.

    recipe: pocket                    # a preset, or a recipe file beside this one
    set: {prompts.per_iteration: 200} # changes of all arms
    seeds: [1, 2, 3]
    arms:
      meta-rewarding: {}
      self-rewarding: {iterations.1.judge_pairs: false, iterations.2.judge_pairs: false}
    compare: [[self-rewarding, meta-rewarding]]

Each arm has a run folder for every seed, ``OUT/ARM/seed-S``. With the same seed all arms have the same prompts and M0,
and an arm takes over from the first one all that its recipe would make the same (`metareward.pipeline.fork`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from metareward.config.schema import Recipe, load_recipe
from metareward.config.yaml_file import explain, label, read_layers
from metareward.engines.device import this_machine
from metareward.engines.process_group import dying_with_parent
from metareward.errors import UserError
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.report.arms import ArmFigure, ArmsReport, differences_csv, figures_csv, run_figures
from metareward.report.write import duration
from metareward.settings import Section, Text
from metareward.storage.atomic import write_atomic, write_errors
from metareward.storage.lock import FolderLock
from metareward.storage.run_dir import RunDir

Changes = dict[str, Any]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_PROGRAM = "from metareward.cli.main import main; main()"
_STOP_SECONDS = 30  # a run that is told to stop finishes what it is writing


class ExperimentFile(Section):
    """What an experiment's file says. Values of ``set`` and ``arms`` are changes of the recipe by dotted keys."""

    recipe: Text = Field(description="A preset, or a recipe file beside this one")
    set: Changes = Field(default_factory=dict, description="Changes of all arms, such as {answers.k: 4}")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1, description="A list, such as [1, 2, 3]")
    arms: dict[str, Changes] = Field(min_length=1, description="The changes of each arm, by its name")
    compare: list[Annotated[list[Text], Field(min_length=2, max_length=2)]] = Field(
        default_factory=list, description="Pairs of arms, the second minus the first; if none, each with the first arm"
    )
    title: str = Field("", description="Of the report; the file's name if it isn't given")
    description: str = Field("", description="What is compared and why, for the report")

    @model_validator(mode="before")
    @classmethod
    def _fill_empty(cls, values: Any) -> Any:
        """``arm:`` without a value changes nothing; names and keys that YAML reads as numbers are texts."""
        if not isinstance(values, Mapping) or not isinstance(values.get("arms"), Mapping):
            return values
        arms = {str(arm): {} if changes is None else changes for arm, changes in values["arms"].items()}
        return {**values, "arms": {arm: _with_text_keys(changes) for arm, changes in arms.items()}}


def _with_text_keys(changes: Any) -> Any:
    return {str(key): value for key, value in changes.items()} if isinstance(changes, Mapping) else changes


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm with one seed: its run folder, and what it changes of the recipe called ``recipe_name``.

    ``parent``: the first arm's run with this seed, from which this one takes over what is the same; None for the first.
    """

    arm: str
    seed: int
    run: RunDir
    recipe_name: str
    recipe: Recipe
    changes: tuple[str, ...]
    parent: RunDir | None

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def is_complete(self) -> bool:
        """Whether all models and the report are there."""
        return self.run.report.is_file() and BoundRecipe(self.run, self.recipe).complete()


@dataclass(frozen=True)
class ArmsExperiment:
    """An experiment bound to the folder ``out``. ``pairs``: which arms are compared, each second minus first."""

    path: Path
    out: Path
    file: ExperimentFile
    recipe_name: str

    @property
    def title(self) -> str:
        """The title of its report."""
        return self.file.title or self.path.stem

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Which arms are compared; if the file doesn't say, each with the first."""
        first, *others = self.file.arms
        return tuple((a, b) for a, b in self.file.compare) or tuple((first, other) for other in others)

    def changes(self, arm: str, seed: int) -> tuple[str, ...]:
        """The changes of the recipe as ``metareward run --set`` takes them."""
        return (
            f"seed={seed}",
            *(f"{k}={json.dumps(v)}" for k, v in {**self.file.set, **self.file.arms[arm]}.items()),
        )

    def runs(self) -> tuple[ArmRun, ...]:
        """Every arm with every seed, the first arm first. Raises `UserError` naming the arm with a bad setting."""
        return tuple(self._run(arm, seed) for arm in self.file.arms for seed in self.file.seeds)

    def _run(self, arm: str, seed: int) -> ArmRun:
        changes = self.changes(arm, seed)
        try:
            recipe = load_recipe(self.recipe_name, changes)
        except UserError as error:
            raise UserError(f"{label(self.path)}: arm {arm}: {error}") from None
        first = next(iter(self.file.arms))
        folder = RunDir(self.out / arm / f"seed-{seed}")
        parent = None if arm == first else RunDir(self.out / first / f"seed-{seed}")
        return ArmRun(arm, seed, folder, self.recipe_name, recipe, changes, parent)


def load_experiment(path: Path, out: Path) -> ArmsExperiment:
    """The experiment in ``path``. Raises `UserError` naming the place, the key and the fix."""
    tree = read_layers(path, (), {})
    try:
        file = ExperimentFile.model_validate(tree.values)
    except ValidationError as error:
        raise explain(error, tree, label(path), ExperimentFile) from None
    for arm in file.arms:
        if not _NAME.fullmatch(arm):
            raise UserError(f"{label(path)}: arms: {arm!r} can't name a folder; fix: letters, digits, - and _")
    for arm in (each for pair in file.compare for each in pair):
        if arm not in file.arms:
            raise UserError(f"{label(path)}: compare: no arm is called {arm}; fix: name one of {', '.join(file.arms)}")
    if len(set(file.seeds)) < len(file.seeds):
        raise UserError(f"{label(path)}: seeds: one is there twice; fix: give each once")
    if "seed" in {*file.set, *(key for arm in file.arms.values() for key in arm)}:
        raise UserError(f"{label(path)}: seed is set; fix: list the seeds under seeds")
    beside = path.parent / file.recipe
    name = str(beside) if beside.suffix in (".yaml", ".yml") and beside.is_file() else file.recipe
    return ArmsExperiment(path, out, file, name)


# --- running ---


@dataclass(frozen=True, slots=True)
class Slot:
    """What one of several runs at once computes with: processor numbers, GPUs as CUDA_VISIBLE_DEVICES has them.

    Empty: all of them.
    """

    cpus: tuple[int, ...] = ()
    gpus: tuple[str, ...] = ()


def slots(jobs: int, cpus: Sequence[int], gpus: Sequence[str]) -> tuple[Slot, ...]:
    """Processors and GPUs in ``jobs`` equal parts. Raises `UserError` for more parts than there are of either."""
    if jobs == 1:
        return (Slot(),)
    for what, most in (("processors", len(cpus)), ("GPUs", len(gpus) or jobs)):
        if jobs > most:
            raise UserError(f"--jobs {jobs}: there are {most} {what}; fix: --jobs {most} or less")
    size, part = len(cpus) // jobs, len(gpus) // jobs
    return tuple(
        Slot(tuple(cpus[n * size : (n + 1) * size]), tuple(gpus[n * part : (n + 1) * part])) for n in range(jobs)
    )


def own_slots(jobs: int) -> tuple[Slot, ...]:
    """`slots` of the processors and GPUs that this process may use."""
    cpus = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else range(os.cpu_count() or 1)
    count = len(this_machine().gpus) if jobs > 1 else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # torch finds these only
    return slots(jobs, cpus, visible.split(",")[:count] if visible else [str(number) for number in range(count)])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: ``problem`` is its last line if it did not finish, else None."""

    run: ArmRun
    problem: str | None


class Runner:
    """Runs arms as processes of their own, ``jobs`` at once; ``tell`` gets a line for each start and end.

    ``ended`` gets each outcome, one at a time. A finished run is started, too: `metareward run` checks that it is whole
    and that its recipe is the same, and measures benchmarks that were added.
    """

    def __init__(self, jobs: int, tell: Callable[[str], None], ended: Callable[[Outcome], None]) -> None:
        self._free = list(own_slots(jobs))
        self._jobs = jobs
        self._tell = tell
        self._ended = ended
        self._children = set[subprocess.Popen[bytes]]()
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._stopped = False
        self._count = 0

    def run_all(self, runs: Sequence[ArmRun]) -> None:
        """Run them, the first arm before those that take over from it; a stop reaches all of them."""
        pool = ThreadPoolExecutor(self._jobs)
        futures: dict[Path, Future[None]] = {}
        try:
            for each in runs:  # in this order, so that whoever waits for the first arm waits for one that has started
                before = None if each.parent is None else futures[each.parent.path]
                futures[each.run.path] = pool.submit(self._run, each, before, len(runs))
            for future in futures.values():
                future.result()
        finally:
            self._stop()
            pool.shutdown(cancel_futures=True)

    def _run(self, run: ArmRun, before: Future[None] | None, total: int) -> None:
        if before is not None:
            before.result()
        with self._lock:
            if self._stopped:
                return
            slot = self._free.pop()
        began, was_complete = time.monotonic(), run.is_complete
        try:
            if not was_complete:
                self._tell(f"{run}: starts; what it prints is in {run.run.path}.log")
            problem = self._start(run, slot)
        finally:
            with self._lock:
                self._free.append(slot)
        with self._writing:
            if self._stopped:
                return
            self._count += 1
            how = problem or ("was finished" if was_complete else "finished")
            self._tell(f"{run}: {how} after {duration(time.monotonic() - began)}; {self._count} of {total} runs")
            self._ended(Outcome(run, problem))

    def _start(self, run: ArmRun, slot: Slot) -> str | None:
        log = run.run.path.with_name(f"{run.run.path.name}.log")
        with write_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            output = log.open("ab")
        start = output.tell()
        with output:
            child = subprocess.Popen(
                dying_with_parent([sys.executable, "-P", "-c", _PROGRAM, *_words(run)]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ({"CUDA_VISIBLE_DEVICES": ",".join(slot.gpus)} if slot.gpus else {}),
            )
            with self._lock:
                self._children.add(child)
                if self._stopped:
                    child.terminate()
            if slot.cpus and sys.platform == "linux":
                with suppress(ProcessLookupError):  # it has ended already
                    os.sched_setaffinity(child.pid, slot.cpus)
            code = child.wait()
        with self._lock:
            self._children.discard(child)
        return None if code == 0 else _last_line(log, start) or f"exit status {code}"

    def _stop(self) -> None:
        """End what still runs."""
        with self._lock:
            self._stopped = True
            running = tuple(self._children)
        for child in running:
            child.terminate()
        for child in running:
            try:
                child.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()


def _words(run: ArmRun) -> Iterator[str]:
    """The words of ``metareward run`` for this arm and seed."""
    yield from ("run", run.recipe_name, "--out", str(run.run.path))
    for change in run.changes:
        yield from ("--set", change)
    begun_alone = run.run.resolved.is_file() and not run.run.fork.is_file()
    if run.parent is not None and run.parent.resolved.is_file() and not begun_alone:
        yield from ("--from", str(run.parent.path))


def _last_line(log: Path, start: int) -> str:
    """The last line that a run wrote from byte ``start`` of its log on."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode("utf-8", "replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix("metareward: ")


# --- results ---


class Results:
    """The report and the tables of an experiment, of the runs that are there so far; each run is read once."""

    def __init__(self, experiment: ArmsExperiment, runs: Sequence[ArmRun]) -> None:
        self._experiment = experiment
        self._runs = runs
        self._figures: dict[Path, tuple[ArmFigure, ...]] = {}

    def write(self, problems: Mapping[Path, str]) -> ArmsReport:
        """Write ``report.html``, ``figures.csv`` and ``differences.csv``. ``problems``: why runs did not finish."""
        out, experiment = self._experiment.out, self._experiment
        for each in self._runs:
            if each.run.path in problems:
                self._figures.pop(each.run.path, None)
            elif each.run.path not in self._figures and each.is_complete:
                self._figures[each.run.path] = run_figures(each.arm, each.seed, each.run)
        file = experiment.file
        report = ArmsReport(
            title=experiment.title,
            description=file.description,
            recipe=", ".join([file.recipe, *(f"{k}={json.dumps(v)}" for k, v in file.set.items())]),
            seeds=tuple(file.seeds),
            arms=tuple((arm, _changes_text(changes)) for arm, changes in file.arms.items()),
            states=tuple((arm, self._state(arm, problems)) for arm in file.arms),
            figures=tuple(chain.from_iterable(self._figures.get(each.run.path, ()) for each in self._runs)),
            pairs=experiment.pairs,
        )
        write_atomic(out / "figures.csv", figures_csv(report.figures))
        write_atomic(out / "differences.csv", differences_csv(report.differences))
        write_atomic(out / "report.html", report.page())
        return report

    def _state(self, arm: str, problems: Mapping[Path, str]) -> str:
        mine = [each for each in self._runs if each.arm == arm]
        done = sum(each.run.path in self._figures for each in mine)
        told = [f"seed {each.seed}: {problems[each.run.path]}" for each in mine if each.run.path in problems]
        return "; ".join([f"{done} of {len(mine)} finished", *told])


def _changes_text(changes: Changes) -> str:
    return ", ".join(f"{key}={json.dumps(value)}" for key, value in changes.items())


def run_experiment(experiment: ArmsExperiment, jobs: int, tell: Callable[[str], None]) -> ArmsReport:
    """Run, or go on with, every arm with every seed, and write the results after each.

    Raises `UserError` before anything is written for what the file says wrongly, and after all runs if some did not
    finish; the other runs' results are written.
    """
    runs = experiment.runs()
    results, problems = Results(experiment, runs), dict[Path, str]()

    def note(outcome: Outcome) -> None:
        if outcome.problem is not None:
            problems[outcome.run.run.path] = outcome.problem
        results.write(problems)

    runner = Runner(jobs, tell, note)
    with write_errors(experiment.out):
        experiment.out.mkdir(parents=True, exist_ok=True)
    lock = FolderLock(experiment.out)
    if not lock.acquire():
        raise UserError(f"{experiment.out}: another process runs this experiment; fix: wait for it, or stop it")
    try:
        write_atomic(experiment.out / "experiment.yaml", experiment.path.read_text(encoding="utf-8"))
        runner.run_all(runs)
        report = results.write(problems)
    finally:
        lock.release()
    if problems:
        path, problem = next(iter(problems.items()))
        raise UserError(
            f"{len(problems)} of {len(runs)} runs did not finish; the first, of which {path}.log has all: {problem}"
        )
    return report
