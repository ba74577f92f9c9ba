"""Annotates many prompts: bounded concurrency, resumable, and one prompt's failure costs only that prompt.

What is in the record store is done; the rest is pending, untried prompts first, then those that failed before. Each
prompt is committed as it finishes, so an interruption costs only the prompts in flight, whose records come out the same
next time. Whatever goes wrong with one prompt is caught here, a bug too, which is logged with its place in the code.
`UserError` (a full disk, a gate that stops the run) ends the call.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from metareward.engines.base import Engine, EngineError, run_concurrently
from metareward.errors import UserError
from metareward.generation.annotate import AnnotationSettings, EarlierRecord, annotate_prompt
from metareward.generation.progress import ANSWERS, JUDGMENTS, META, PROMPTS, Progress
from metareward.storage.records import record_to_json
from metareward.storage.store import RecordStore
from metareward.text import one_line, replace_surrogates
from metareward.types import Prompt

_LOG = logging.getLogger(__name__)
MAX_CONCURRENT_PROMPTS = 64  # enough to fill an engine's batches, few enough that a kill loses little
# So many consecutive prompts that fail at the first try mean that the engine is broken. Consecutive in the order of
# starting: failing is quick, so in the order of finishing a few bad prompts come first.
_MAX_CONSECUTIVE_FAILURES = 20


class TooManyFailuresError(UserError):
    """All prompts failed, or too many in a row: the engine is broken, not the prompts."""


def _ignore(_: str) -> None:
    """Nothing to do with a stored document."""


def _none(_: str) -> None:
    """No record of another run."""


@dataclass(frozen=True, slots=True)
class RunnerResult:
    """How many prompts ``finished`` in this call, how many were ``cached`` before it, and (prompt id, error) of the
    ``failed``.
    """

    finished: int
    cached: int
    failed: tuple[tuple[str, str], ...]


async def annotate_prompts(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: AnnotationSettings,
    store: RecordStore,
    progress: Progress,
    max_concurrent_prompts: int = MAX_CONCURRENT_PROMPTS,
    on_stored: Callable[[str], None] = _ignore,
    earlier: Callable[[str], EarlierRecord | None] = _none,
) -> RunnerResult:
    """Annotate every pending prompt and store its record; see `run_tasks`. ``earlier`` gives what another run has."""

    async def task(prompt: Prompt) -> str:
        return record_to_json(await annotate_prompt(engine, prompt, settings, progress, earlier(prompt.id)))

    totals = {ANSWERS: settings.k}
    if settings.n:
        totals[JUDGMENTS] = settings.k * settings.n
    if settings.meta_judge:
        pairs = settings.n * (settings.n - 1) // 2
        totals[META] = 2 * (min(pairs, settings.battles.budget) if settings.battles else pairs)
    return await run_tasks(task, prompts, store, progress, "generating", totals, max_concurrent_prompts, on_stored)


async def run_tasks(
    task: Callable[[Prompt], Awaitable[str]],
    prompts: Sequence[Prompt],
    store: RecordStore,
    progress: Progress,
    stage: str,
    totals: Mapping[str, int],
    max_concurrent_prompts: int = MAX_CONCURRENT_PROMPTS,
    on_stored: Callable[[str], None] = _ignore,
) -> RunnerResult:
    """Run ``task`` on every pending prompt, ``max_concurrent_prompts`` (at least 1) at a time; store each document.

    ``totals`` is the largest number of completions by kind that one prompt takes. ``on_stored`` gets each document when
    it is in the store; what it raises ends the call. A prompt whose task raises anything but `UserError` is stored as a
    failure and retried by the next call. Raises `TooManyFailuresError` when 20 consecutive untried prompts fail or when
    all fail, `UserError` when the store can't be written or a task raises one. Whatever is raised, finished prompts are
    in the store.
    """
    if max_concurrent_prompts < 1:
        raise ValueError(f"max_concurrent_prompts is {max_concurrent_prompts}, must be at least 1")
    done, failed_before = store.keys(), store.failures().keys()
    pending = sorted(
        (prompt for prompt in prompts if prompt.id not in done), key=lambda prompt: prompt.id in failed_before
    )
    workers = _Workers(task, store, progress, iter(enumerate(pending)), frozenset(failed_before), on_stored)
    if pending:
        progress.start(stage, {PROMPTS: len(pending)} | {kind: n * len(pending) for kind, n in totals.items()})
        try:
            await run_concurrently(workers.run() for _ in range(min(max_concurrent_prompts, len(pending))))
        finally:
            progress.finish()
    if workers.failed and not workers.finished and not done:
        raise TooManyFailuresError(f"all {len(pending)} prompts failed; {_last_failure(workers.failed)}")
    return RunnerResult(workers.finished, len(prompts) - len(pending), tuple(sorted(workers.failed)))


@dataclass(slots=True)
class _Workers:
    """The mutable state that the concurrent workers share."""

    task: Callable[[Prompt], Awaitable[str]]
    store: RecordStore
    progress: Progress
    pending: Iterator[tuple[int, Prompt]]
    failed_before: frozenset[str]
    on_stored: Callable[[str], None]
    finished: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    failed_numbers: set[int] = field(default_factory=set)

    async def run(self) -> None:
        """Run pending prompts until there are none: prompts start in order, however long each takes."""
        for number, prompt in self.pending:
            try:
                document = await self.task(prompt)
            except UserError:
                raise
            except Exception as error:  # one prompt's failure, whatever it is; see the module's docstring
                line = replace_surrogates(" ".join(str(error).split())) or type(error).__name__
                if not isinstance(error, EngineError):
                    line = f"{type(error).__name__}: {one_line(line)} ({_place(error)})"
                    _LOG.warning("prompt %s failed with an unexpected error: %s", prompt.id, line)
                self.store.put_failure(prompt.id, line)
                self.failed.append((prompt.id, line))
                if prompt.id not in self.failed_before:
                    self.failed_numbers.add(number)
                    if _consecutive(self.failed_numbers, number) >= _MAX_CONSECUTIVE_FAILURES:
                        last = _last_failure(self.failed)
                        raise TooManyFailuresError(
                            f"{_MAX_CONSECUTIVE_FAILURES} prompts in a row failed; {last}"
                        ) from None
            else:
                self.store.put(prompt.id, document)
                self.finished += 1
                self.on_stored(document)
            self.progress.advance(PROMPTS, 1)


def _consecutive(numbers: Set[int], at: int) -> int:
    """The length of the run of consecutive ``numbers`` that contains ``at``."""
    before = next(n for n in count(1) if at - n not in numbers)
    after = next(n for n in count(1) if at + n not in numbers)
    return before + after - 1


def _place(error: BaseException) -> str:
    """Where in the code it was raised, as file:line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _last_failure(failed: Sequence[tuple[str, str]]) -> str:
    key, error = failed[-1]
    return f"the last one, {key}: {error}; fix: correct that and run again (finished prompts are kept)"
