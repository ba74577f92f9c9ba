"""Measures an engine's throughput for each role in a few seconds, for `metareward plan`.

The requests are real ones, with a run's concurrency: the completions of one role are what the next one judges. Counting
begins when the first request finishes, so that start-up is left out. Where so many at once don't finish in time, as on
a slow CPU, a few are measured: there concurrency gains little.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from metareward.engines.base import Engine, run_concurrently
from metareward.generation.annotate import AnnotationSettings, judge_answer, meta_judge_pair
from metareward.generation.progress import ANSWERS, JUDGMENTS, META
from metareward.generation.runner import MAX_CONCURRENT_PROMPTS
from metareward.generation.verdicts import RubricGrader
from metareward.seeds import derive
from metareward.types import Completion, Judge, Judgment, Messages, MetaJudgment, Prompt, Sampling

T = TypeVar("T")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rates:
    """Known throughput: generated tokens a second overall; mean tokens and engine seconds of a completion by role.

    ``judges``: both of a judgment of the benchmarks' judges that are other models, by the benchmark's name.
    """

    tokens_per_second: float | None = None
    tokens_each: Mapping[str, float] = field(default_factory=dict)
    seconds_each: Mapping[str, float] = field(default_factory=dict)
    judges: Mapping[str | None, tuple[float, float]] = field(default_factory=dict)

    def seconds(self, role: str, calls: int, tokens: int) -> float | None:
        """The time for ``calls`` completions of a role with ``tokens`` in all; None when the throughput is unknown."""
        if not calls:
            return 0.0
        if role in self.seconds_each:
            return calls * self.seconds_each[role]
        return tokens / self.tokens_per_second if self.tokens_per_second else None


UNKNOWN = Rates()

_MAX_REQUESTS = 1024  # enough concurrent requests to saturate any engine
# Measuring continues past the given time until this many requests have finished, up to this multiple of the time.
_MIN_FINISHED, _MAX_OVERTIME = 16, 2
_FEW = 3  # requests that are measured where none or one of all at once finishes in time


@dataclass(frozen=True, slots=True)
class _Work(Generic[T]):
    """What is measured: answers to ``prompt``, or judgments or comparisons of an ``answer``, verdicts included."""

    prompt: Prompt
    answer: str
    run: Callable[[], Awaitable[Sequence[T]]]


@dataclass(frozen=True, slots=True)
class _Finished(Generic[T]):
    work: _Work[T]
    completions: Sequence[T]
    time: float


@dataclass(frozen=True, slots=True)
class _Measured(Generic[T]):
    """What was ``finished``, in order; what finished after ``start`` counts for the speed."""

    finished: Sequence[_Finished[T]]
    start: float

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens and engine seconds of a completion."""
        finished: Sequence[_Finished[Any]] = self.finished
        tokens = statistics.fmean(each.tokens for work in finished for each in work.completions)
        later = sum(len(work.completions) for work in self.finished if work.time > self.start)
        return tokens, (self.finished[-1].time - self.start) / max(1, later)


async def measure_rates(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: AnnotationSettings,
    seconds: float,
    max_concurrent_prompts: int = MAX_CONCURRENT_PROMPTS,
) -> Rates:
    """Engine seconds and tokens per completion of each role, measured for ``seconds`` a role.

    The meta-judge is measured if ``settings`` use it. Raises `EngineError` when a request fails.
    """
    answers = await _measure(_answers(engine, prompts, settings), max_concurrent_prompts, seconds, ANSWERS)
    concurrent = min(_MAX_REQUESTS, max_concurrent_prompts * settings.k)
    judgments = await _measure(_judgments(engine, answers.finished, settings), concurrent, seconds, JUDGMENTS)
    measured = {ANSWERS: answers.rates, JUDGMENTS: judgments.rates}
    if settings.meta_judge:
        meta = await _measure(_meta(engine, judgments.finished, settings), _MAX_REQUESTS, seconds, META)
        measured[META] = meta.rates
    return Rates(
        tokens_each={role: tokens for role, (tokens, _) in measured.items()},
        seconds_each={role: each for role, (_, each) in measured.items()},
    )


async def measure_judge(
    judge: Engine | Judge,
    answers: Sequence[tuple[Prompt, str]],
    grader: RubricGrader,
    seconds: float,
    max_concurrency: int = MAX_CONCURRENT_PROMPTS,
) -> tuple[float, float]:
    """Tokens and engine seconds of a judgment by another judge, measured on ``answers`` for ``seconds``.

    Raises `EngineError` when a request fails.
    """

    async def judgments(number: int, prompt: Prompt, answer: str) -> Sequence[Judgment]:
        async def ask(messages: Messages, sampling: Sampling, n: int, *purpose: str | int) -> Sequence[Completion]:
            seeded = replace(sampling, seed=derive(0, "measured judge", number, *purpose))
            return await engine.complete(messages, seeded, n, "judge")

        if isinstance(judge, Judge):
            return await judge.judge(prompt, answer, grader.n)
        engine: Engine = judge
        return await grader.judge(ask, prompt, answer)

    works = (
        _Work(prompt, answer, partial(judgments, number, prompt, answer))
        for number, (prompt, answer) in enumerate(itertools.cycle(answers))
    )
    return (await _measure(works, max_concurrency, seconds, JUDGMENTS)).rates


def _answers(engine: Engine, prompts: Sequence[Prompt], settings: AnnotationSettings) -> Iterator[_Work[Completion]]:
    for number, prompt in enumerate(itertools.cycle(prompts)):
        sampling = replace(settings.answers, seed=derive(settings.seed, "measured answers", number))
        yield _Work(prompt, "", partial(engine.complete, prompt.messages, sampling, settings.k, "actor"))


def _judgments(
    engine: Engine, answers: Sequence[_Finished[Completion]], settings: AnnotationSettings
) -> Iterator[_Work[Judgment]]:
    for number, each in enumerate(itertools.cycle(answers)):
        prompt, answer = each.work.prompt, each.completions[number % len(each.completions)].text
        seeded = replace(settings, seed=derive(settings.seed, "measured judgments", number))
        yield _Work(prompt, answer, partial(judge_answer, engine, prompt, 0, answer, seeded))


def _meta(
    engine: Engine, judgments: Sequence[_Finished[Judgment]], settings: AnnotationSettings
) -> Iterator[_Work[MetaJudgment]]:
    """All ordered pairs of one answer's judgments, then those of the next answer."""
    pairs = ((each, *two) for each in itertools.cycle(judgments) for two in itertools.permutations(each.completions, 2))
    for number, (each, first, second) in enumerate(pairs):
        seeded = replace(settings, seed=derive(settings.seed, "measured meta", number))
        yield _Work(each.work.prompt, each.work.answer, partial(_compare, engine, each.work, first, second, seeded))


async def _compare(
    engine: Engine, judged: _Work[Judgment], first: Judgment, second: Judgment, settings: AnnotationSettings
) -> tuple[MetaJudgment]:
    return (await meta_judge_pair(engine, judged.prompt, judged.answer, first, second, settings),)


async def _measure(works: Iterator[_Work[T]], concurrent: int, seconds: float, role: str) -> _Measured[T]:
    """The work that finishes in the measured time; the rest is cancelled. Raises `EngineError` when a request fails."""
    finished = await _finished_in_time(works, concurrent, seconds)
    if len(finished) > 1:
        return _Measured(finished, finished[0].time)
    _LOG.warning("%s: %d at once don't finish in %g seconds; measured with %d", role, concurrent, seconds, _FEW)
    began = time.monotonic()
    few = await run_concurrently(_finish(next(works)) for _ in range(_FEW))
    return _Measured(sorted(few, key=lambda each: each.time), began)


async def _finish(work: _Work[T]) -> _Finished[T]:
    return _Finished(work, await work.run(), time.monotonic())


async def _finished_in_time(works: Iterator[_Work[T]], concurrent: int, seconds: float) -> list[_Finished[T]]:
    """What finishes, in order, while ``concurrent`` requests are kept going."""
    finished: list[_Finished[T]] = []

    def is_over() -> bool:
        if not finished:
            return False
        spent = time.monotonic() - finished[0].time
        return spent >= seconds * _MAX_OVERTIME or (spent >= seconds and len(finished) > _MIN_FINISHED)

    async def send() -> None:
        while not is_over():
            finished.append(await _finish(next(works)))

    senders = [asyncio.ensure_future(send()) for _ in range(concurrent)]
    try:
        longest = seconds * (_MAX_OVERTIME + 1)
        await asyncio.wait(senders, timeout=longest, return_when=asyncio.FIRST_COMPLETED)
        for task in senders:
            if task.done():
                task.result()
    finally:
        for task in senders:
            task.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
    return finished
