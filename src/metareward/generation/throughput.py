"""Measures an engine's throughput for each role in a few seconds, for `metareward plan`.

The requests are real ones, with a run's concurrency: the completions of one role are what the next one judges. Counting
begins when the first request finishes, so that start-up is left out.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from metareward.engines.base import Engine, EngineError
from metareward.generation.annotate import AnnotationSettings
from metareward.generation.progress import ANSWERS, JUDGMENTS, META, MODEL_ROLES
from metareward.generation.runner import MAX_CONCURRENT_PROMPTS
from metareward.seeds import derive
from metareward.types import Completion, Messages, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class Rates:
    """Known throughput: generated tokens a second overall; mean tokens and engine seconds of a completion by role."""

    tokens_per_second: float | None = None
    tokens_each: Mapping[str, float] = field(default_factory=dict)
    seconds_each: Mapping[str, float] = field(default_factory=dict)

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
_MIN_FINISHED, _MAX_OVERTIME = 16, 6


@dataclass(frozen=True, slots=True)
class _Request:
    """A request to an engine, with the prompt and, for a judgment, the judged answer."""

    messages: Messages
    sampling: Sampling
    n: int
    prompt: Prompt
    answer: str = ""


@dataclass(frozen=True, slots=True)
class _Finished:
    request: _Request
    completions: Sequence[Completion]
    time: float


async def measure_rates(
    engine: Engine,
    prompts: Sequence[Prompt],
    settings: AnnotationSettings,
    seconds: float,
    max_concurrent_prompts: int = MAX_CONCURRENT_PROMPTS,
) -> Rates:
    """Engine seconds and tokens per completion of each role, measured for ``seconds`` a role.

    The meta-judge is measured if ``settings`` use it. Raises `EngineError` when a request fails, or when fewer than two
    finish.
    """
    answers = await _measure(engine, _answers(prompts, settings), max_concurrent_prompts, seconds, ANSWERS)
    concurrent = min(_MAX_REQUESTS, max_concurrent_prompts * settings.k)
    judgments = await _measure(engine, _judgments(answers, settings), concurrent, seconds, JUDGMENTS)
    finished = {ANSWERS: answers, JUDGMENTS: judgments}
    if settings.meta_judge:
        finished[META] = await _measure(engine, _meta(judgments, settings), _MAX_REQUESTS, seconds, META)
    tokens_each, seconds_each = {}, {}
    for role, requests in finished.items():
        tokens_each[role] = statistics.fmean(each.tokens for request in requests for each in request.completions)
        start, end = requests[0].time, requests[-1].time
        later = sum(len(request.completions) for request in requests if request.time > start)
        seconds_each[role] = (end - start) / max(1, later)
    return Rates(tokens_each=tokens_each, seconds_each=seconds_each)


def _answers(prompts: Sequence[Prompt], settings: AnnotationSettings) -> Iterator[_Request]:
    for number, prompt in enumerate(itertools.cycle(prompts)):
        sampling = replace(settings.answers, seed=derive(settings.seed, "measured answers", number))
        yield _Request(prompt.messages, sampling, settings.k, prompt)


def _judgments(answers: Sequence[_Finished], settings: AnnotationSettings) -> Iterator[_Request]:
    for number, each in enumerate(itertools.cycle(answers)):
        prompt, answer = each.request.prompt, each.completions[number % len(each.completions)].text
        sampling = replace(settings.judgments, seed=derive(settings.seed, "measured judgments", number))
        yield _Request(settings.rubric.render(prompt, answer), sampling, settings.n, prompt, answer)


def _meta(judgments: Sequence[_Finished], settings: AnnotationSettings) -> Iterator[_Request]:
    """All ordered pairs of one answer's judgments, then those of the next answer."""
    pairs = ((each, *two) for each in itertools.cycle(judgments) for two in itertools.permutations(each.completions, 2))
    for number, (each, first, second) in enumerate(pairs):
        request = each.request
        sampling = replace(settings.meta, seed=derive(settings.seed, "measured meta", number))
        messages = settings.metarubric.render(request.prompt, request.answer, first.text, second.text)
        yield _Request(messages, sampling, 1, request.prompt)


async def _measure(
    engine: Engine, requests: Iterator[_Request], concurrent: int, seconds: float, role: str
) -> list[_Finished]:
    """The requests that finish in the measured time, the first one first; the rest are cancelled."""
    finished: list[_Finished] = []

    def is_over() -> bool:
        if not finished:
            return False
        spent = time.monotonic() - finished[0].time
        return spent >= seconds * _MAX_OVERTIME or (spent >= seconds and len(finished) > _MIN_FINISHED)

    async def send() -> None:
        while not is_over():
            request = next(requests)
            completions = await engine.complete(request.messages, request.sampling, request.n, MODEL_ROLES[role])
            finished.append(_Finished(request, completions, time.monotonic()))

    senders = [asyncio.ensure_future(send()) for _ in range(concurrent)]
    try:
        await asyncio.wait(senders, return_when=asyncio.FIRST_COMPLETED)
        for task in senders:
            if task.done():
                task.result()
    finally:
        for task in senders:
            task.cancel()
        await asyncio.gather(*senders, return_exceptions=True)
    if len(finished) < 2:
        raise EngineError(f"{role}: the engine finished {len(finished)} requests, too few to measure its throughput")
    return finished
