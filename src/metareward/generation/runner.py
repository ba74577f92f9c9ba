"""Many prompts at once: bounded, resumable, and one prompt's failure is one failure.

What is in the store is done; the rest is owed, never-tried prompts first, then those that failed before. Each prompt
is committed as it finishes, so stopping, by whatever means, costs only the prompts under way, and these come out the
same next time. Nothing here catches an error that isn't one prompt's own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import count

from metareward.engines.base import Engine, EngineError
from metareward.errors import UserError
from metareward.generation.progress import ANSWERS, JUDGMENTS, META, PROMPTS, Progress
from metareward.generation.unit import UnitSettings, run_prompt, together
from metareward.storage.store import RecordStore, to_json
from metareward.types import Prompt

# When so many prompts that were started one after the other fail, and had not failed before, the fault is the
# engine's. Counted in the order of starting: failing is quick, so in the order of ending a few bad prompts come first.
_HOPELESS = 20


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """``finished`` in this call, ``already`` in the store before it, and (prompt id, error line) of the rest."""

    finished: int
    already: int
    failed: tuple[tuple[str, str], ...]


async def sweep(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: UnitSettings,
    store: RecordStore,
    progress: Progress,
    in_flight: int = 64,
) -> SweepOutcome:
    """See every prompt that the store lacks through `run_prompt`, and keep its record; all as `sweep_with` says."""

    async def life(prompt: Prompt) -> str:
        return to_json(await run_prompt(engine, prompt, settings, progress))

    return await sweep_with(life, prompts, store, progress, "generating", _most(settings), in_flight)


async def sweep_with(
    work: Callable[[Prompt], Awaitable[str]],
    prompts: Sequence[Prompt],
    store: RecordStore,
    progress: Progress,
    stage: str,
    most: Mapping[str, int],
    in_flight: int = 64,
) -> SweepOutcome:
    """Do ``work`` on every prompt that the store lacks, ``in_flight`` (at least 1) at a time; commit each document.

    ``most`` is how much of each role one prompt takes at most. A prompt whose work raises `EngineError` is noted in
    the store with the error and tried again by the next call. Raises `UserError` when that happens to 20 untried
    prompts in a row or to all of them, or when the store can't be written; any other error goes through as it is.
    Whatever is raised, finished prompts are in the store.
    """
    if in_flight < 1:
        raise ValueError(f"in_flight is {in_flight}: nothing would ever be done")
    done, failed_before = store.keys(), store.failures().keys()
    owed = sorted(
        (prompt for prompt in prompts if prompt.id not in done), key=lambda prompt: prompt.id in failed_before
    )
    state = _Sweep(work, store, progress, iter(enumerate(owed)), frozenset(failed_before))
    if owed:
        progress.start(stage, {PROMPTS: len(owed)} | {role: n * len(owed) for role, n in most.items()})
        try:
            await together(state.work_on() for _ in range(min(in_flight, len(owed))))
        finally:
            progress.finish()
    if state.failed and not state.finished and not done:
        raise UserError(f"all {len(owed)} prompts failed; {_last(state.failed)}")
    return SweepOutcome(state.finished, len(prompts) - len(owed), tuple(sorted(state.failed)))


@dataclass(slots=True)
class _Sweep:
    """The one mutable thing: what the workers share."""

    work: Callable[[Prompt], Awaitable[str]]
    store: RecordStore
    progress: Progress
    owed: Iterator[tuple[int, Prompt]]
    failed_before: frozenset[str]
    finished: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    bad_places: set[int] = field(default_factory=set)

    async def work_on(self) -> None:
        """Take the next owed prompt until there is none: prompts start in order, however long each takes."""
        for place, prompt in self.owed:
            await self._one(place, prompt)
            self.progress.advance(PROMPTS, 1)

    async def _one(self, place: int, prompt: Prompt) -> None:
        try:
            document = await self.work(prompt)
        except EngineError as error:
            self._fail(place, prompt, " ".join(str(error).split()) or type(error).__name__)
        else:
            self.store.put(prompt.id, document)
            self.finished += 1

    def _fail(self, place: int, prompt: Prompt, error: str) -> None:
        self.store.put_failure(prompt.id, error)
        self.failed.append((prompt.id, error))
        if prompt.id not in self.failed_before:
            self.bad_places.add(place)
            if _stretch(self.bad_places, place) >= _HOPELESS:
                raise UserError(f"{_HOPELESS} prompts in a row failed; {_last(self.failed)}")


def _stretch(places: Set[int], at: int) -> int:
    """How many neighbours in a row, ``at`` among them, are in ``places``."""
    before = next(n for n in count(1) if at - n not in places)
    after = next(n for n in count(1) if at + n not in places)
    return before + after - 1


def _last(failed: Sequence[tuple[str, str]]) -> str:
    key, error = failed[-1]
    return f"the last one, {key}: {error}; fix: mend that and run again (finished prompts are kept)"


def _most(settings: UnitSettings) -> dict[str, int]:
    """The most of each role that one prompt takes."""
    most = {ANSWERS: settings.k, JUDGMENTS: settings.k * settings.n}
    return most | {META: settings.n * (settings.n - 1)} if settings.meta_judge else most
