"""The runs that are looked at: each with its recipe, its index and its problems, kept up to date by a thread."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metareward.config.schema import Recipe, load_recipe, pairs_rules
from metareward.errors import UserError
from metareward.evaluation.held_out import HeldOut
from metareward.method.elo import position_weights
from metareward.report.facts import Run, gather
from metareward.report.prompt_trace import PromptTrace, trace_by_rules
from metareward.storage.records import find_record
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore
from metareward.text import one_line
from metareward.types import PromptRecord
from metareward.viewer.index import Index, Source, read_held_out

_EVERY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class State:
    """A run as the index has it now. ``version`` grows with every change; ``problem`` is one line or None."""

    version: int
    recipe: Recipe | None
    problem: str | None
    sources: tuple[Source, ...]
    indexing: bool

    @property
    def progress(self) -> tuple[int, int]:
        """Documents in the index, and in the run."""
        known = [each for each in self.sources if not each.name.startswith("pairs")]
        return sum(each.count for each in known), sum(each.total for each in known)

    def problems(self, t: int | None = None) -> tuple[str, ...]:
        """What is wrong with the run, or with one iteration's files, a line each."""
        own = [self.problem] if self.problem and t is None else []
        found = [each for each in self.sources if each.problem and t in (None, int(each.name.split()[-1]))]
        return (*own, *(one_line(str(each.problem)) for each in found))


class ViewedRun:
    """Run ``number`` of those that are looked at. ``annotations``: the file that people's judgments go to."""

    def __init__(self, number: int, path: Path, cache: Path, annotations: Path | None = None) -> None:
        self.number, self.run, self.index = number, RunDir(path), Index(RunDir(path), cache)
        self.annotations = annotations or self.run.annotations
        self.name = path.resolve().name
        self.state = State(0, None, None, (), True)
        self._closed = False

    def begin(self) -> None:
        """Read the recipe, so that pages can be shown before `refresh` has made the index."""
        self._note(self.state.version + 1, *self._read_recipe(), True)

    def _read_recipe(self) -> tuple[Recipe | None, str | None]:
        """(the recipe, why it can't be read); the recipe that was read before, where the file is damaged."""
        try:
            if self.run.resolved.is_file():
                return load_recipe(str(self.run.resolved)), None
        except UserError as error:
            return self.state.recipe, one_line(str(error))
        except OSError as error:
            return self.state.recipe, one_line(f"{self.run.path}: can't be read: {error}")
        missing = f"{self.run.resolved.name} is missing"
        return None, f"{self.run.path}: this is no run folder, or nothing is made yet ({missing})"

    def refresh(self) -> None:
        """Read what is new in the run folder. Problems become the state's, never an exception."""
        (recipe, problem), changed = self._read_recipe(), False
        try:
            if recipe is not None and problem is None:
                self._note(self.state.version, recipe, None, True)
                changed = self.index.refresh(recipe, lambda: self._closed)
        except UserError as error:
            problem = one_line(str(error))
        except (OSError, sqlite3.Error) as error:
            problem = one_line(f"{self.run.path}: can't be read: {error}")
            if type(error) is sqlite3.DatabaseError:
                problem = f"{self.index.path}: the index is damaged and is rebuilt"
                self.index.rebuild()
        except Exception as error:  # shown on the pages: the thread that keeps indexes must not end
            problem = one_line(f"{self.run.path}: can't be indexed: {type(error).__name__}: {error}")
        changed |= problem != self.state.problem or (recipe is None) != (self.state.recipe is None)
        self._note(self.state.version + changed, recipe, problem, False)

    def _note(self, version: int, recipe: Recipe | None, problem: str | None, indexing: bool) -> None:
        self.state = State(version, recipe, problem, self.index.sources(), indexing)

    def close(self) -> None:
        """Let a refresh that is under way end early."""
        self._closed = True

    def current_state(self) -> State:
        """The state with the index's counts of this moment, also while a refresh is under way."""
        state = self.state
        return replace(state, sources=self.index.sources()) if state.indexing else state

    @property
    def recipe(self) -> Recipe:
        """Raises `UserError` while there is none that can be read."""
        if self.state.recipe is None:
            raise UserError(self.state.problem or f"{self.run.path}: still being read; fix: load the page again")
        return self.state.recipe

    def record(self, t: int, key: str) -> PromptRecord | None:
        """A prompt's record, None if there is none. Raises `UserError` for one that can't be read."""
        if not 1 <= t <= len(self.recipe.iterations) or not self.run.iteration(t).records.is_file():
            return None
        with RecordStore.read(self.run.iteration(t).records, immutable=True) as store:
            return find_record(store, key)

    def facts(self) -> Run:
        """The run's results. Raises `UserError` for files that can't be read."""
        return gather(self.run)

    def trace(self, t: int, key: str) -> PromptTrace | None:
        """The trace of a prompt, None if there is no record. Raises `UserError` for one that can't be read."""
        record = self.record(t, key)
        if record is None:
            return None
        rules, dispute = pairs_rules(self.recipe, t), record.dispute
        outcomes = [self.index.outcome(t, "actor", key), self.index.outcome(t, "judge", key)]
        built = any(each is not None for each in outcomes)
        try:
            weights = None
            if dispute is not None:
                own = rules.position_weights_scope == "answer"
                weights = position_weights(dispute.meta) if own else self.index.weights(t)
            return trace_by_rules(t, record, rules, weights, built, *outcomes)
        except (ValueError, LookupError, StopIteration) as error:
            where = self.run.iteration(t).records
            raise UserError(f"{where}: {key}: the record contradicts itself ({error}); fix: make it again") from None

    def held_out(self, key: str) -> tuple[tuple[int, HeldOut | None, str | None], ...]:
        """(t, record, problem) of each model that has a record of a held-out prompt."""
        found: list[tuple[int, HeldOut | None, str | None]] = []
        for t in range(len(self.recipe.iterations) + 1):
            try:
                record = read_held_out(self.run.iteration(t).evaluation / "records.sqlite", key)
            except UserError as error:
                found.append((t, None, one_line(str(error))))
                continue
            found += [(t, record, None)] if record is not None else []
        return tuple(found)


def open_runs(paths: Sequence[Path], cache: Path, annotations: Path | None = None) -> list[ViewedRun]:
    """The runs in these folders. Raises `UserError` for one that isn't there, and for one file for several runs."""
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: there is no such folder; fix: name a run folder, such as runs/pocket")
    if annotations is not None and len(paths) > 1:
        raise UserError("--annotations: is for one run; fix: leave it out, so that each run has its own file")
    return [ViewedRun(number, path, cache, annotations) for number, path in enumerate(paths)]


class Watcher:
    """Refreshes runs in a thread, at once and then every two seconds."""

    def __init__(self, runs: Sequence[ViewedRun]) -> None:
        self._runs, self._stop = runs, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="index", daemon=True)

    def start(self) -> None:
        """Begin; `stop` ends it."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a refresh that is under way goes on at the next start."""
        self._stop.set()
        for run in self._runs:
            run.close()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        while True:
            for run in self._runs:
                run.refresh()
            if self._stop.wait(_EVERY_SECONDS):
                return
