"""How fast an engine serves each role: a few seconds of the real work, before days of it are planned.

Each role is asked its real questions, as many at once as a run has under way: the answers of one role are what the
next one is shown. Counting begins when the first request is finished, so that neither start-up nor the cut at the end
counts.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from metareward.engines.base import Engine, EngineError
from metareward.generation.progress import ANSWERS, JUDGMENTS, META, MODEL_ROLES
from metareward.generation.unit import UnitSettings
from metareward.seeds import derive
from metareward.types import Completion, Messages, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class Rates:
    """What is known of speed and length: written tokens per second, and by role the mean tokens and engine seconds of
    a completion.
    """

    tokens_per_second: float | None = None
    tokens_each: Mapping[str, float] = field(default_factory=dict)
    seconds_each: Mapping[str, float] = field(default_factory=dict)

    def seconds(self, role: str, calls: int, tokens: int) -> float | None:
        """How long so many completions of a role take; None when nothing is known. No completion takes no time."""
        if not calls:
            return 0.0
        if role in self.seconds_each:
            return calls * self.seconds_each[role]
        return tokens / self.tokens_per_second if self.tokens_per_second else None


UNKNOWN = Rates()

# Prompts that a run has under way at once, and requests that are enough to keep any engine busy.
_PROMPTS, _REQUESTS = 64, 1024
# The count goes on beyond the time asked for until so many requests are finished, but not for ever.
_ENOUGH, _PATIENCE = 16, 6


@dataclass(frozen=True, slots=True)
class _Question:
    """A request, and what it is about: the prompt, and the answer that is judged."""

    messages: Messages
    sampling: Sampling
    n: int
    prompt: Prompt
    answer: str = ""


@dataclass(frozen=True, slots=True)
class _Served:
    question: _Question
    written: Sequence[Completion]
    at: float


async def measure_rates(engine: Engine, prompts: Sequence[Prompt], settings: UnitSettings, seconds: float) -> Rates:
    """Seconds of engine time and tokens that a completion of each role takes, counted for ``seconds`` a role.

    The meta-judge is measured where ``settings`` ask it. Raises `EngineError` when the engine can't serve a request or
    serves none in time.
    """
    answers = await _serve(engine, _answers(prompts, settings), _PROMPTS, seconds, ANSWERS)
    judging = min(_REQUESTS, _PROMPTS * settings.k)
    judgments = await _serve(engine, _judgments(answers, settings), judging, seconds, JUDGMENTS)
    served = {ANSWERS: answers, JUDGMENTS: judgments}
    if settings.meta_judge:
        served[META] = await _serve(engine, _meta(judgments, settings), _REQUESTS, seconds, META)
    return Rates(
        tokens_each={role: _mean_tokens(each) for role, each in served.items()},
        seconds_each={role: _seconds_each(each) for role, each in served.items()},
    )


def _answers(prompts: Sequence[Prompt], settings: UnitSettings) -> Iterator[_Question]:
    for number, prompt in enumerate(itertools.cycle(prompts)):
        sampling = replace(settings.answers, seed=derive(settings.seed, "measured answers", number))
        yield _Question(prompt.messages, sampling, settings.k, prompt)


def _judgments(answers: Sequence[_Served], settings: UnitSettings) -> Iterator[_Question]:
    for number, each in enumerate(itertools.cycle(answers)):
        prompt, answer = each.question.prompt, each.written[number % len(each.written)].text
        sampling = replace(settings.judgments, seed=derive(settings.seed, "measured judgments", number))
        yield _Question(settings.rubric.render(prompt, answer), sampling, settings.n, prompt, answer)


def _meta(judgments: Sequence[_Served], settings: UnitSettings) -> Iterator[_Question]:
    """All ordered pairs of the judgments of one answer, then those of the next."""
    pairs = ((each, *two) for each in itertools.cycle(judgments) for two in itertools.permutations(each.written, 2))
    for number, (each, first, second) in enumerate(pairs):
        about = each.question
        sampling = replace(settings.meta, seed=derive(settings.seed, "measured meta", number))
        asked = settings.metarubric.render(about.prompt, about.answer, first.text, second.text)
        yield _Question(asked, sampling, 1, about.prompt)


@dataclass
class _Counter:
    """Requests that are finished, and the moment of the first."""

    served: list[_Served] = field(default_factory=list)

    def over(self, seconds: float) -> bool:
        if not self.served:
            return False
        spent = time.monotonic() - self.served[0].at
        return spent >= seconds * _PATIENCE or (spent >= seconds and len(self.served) > _ENOUGH)


async def _serve(
    engine: Engine, questions: Iterator[_Question], at_once: int, seconds: float, role: str
) -> list[_Served]:
    """What is finished until the count is over, the first one first; what is still under way then is given up."""
    counter = _Counter()

    async def ask() -> None:
        while not counter.over(seconds):
            question = next(questions)
            written = await engine.complete(question.messages, question.sampling, question.n, MODEL_ROLES[role])
            counter.served.append(_Served(question, written, time.monotonic()))

    asking = [asyncio.ensure_future(ask()) for _ in range(at_once)]
    try:
        await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        for task in asking:
            if task.done():
                task.result()
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    if len(counter.served) < 2:
        raise EngineError(f"{role}: the engine finished {len(counter.served)} requests, too few to tell its speed")
    return counter.served


def _mean_tokens(served: Sequence[_Served]) -> float:
    tokens = [completion.tokens for each in served for completion in each.written]
    return sum(tokens) / len(tokens)


def _seconds_each(served: Sequence[_Served]) -> float:
    """Engine seconds a completion: of those finished after the first request's moment."""
    later = sum(len(each.written) for each in served if each.at > served[0].at)
    return (served[-1].at - served[0].at) / max(1, later)
