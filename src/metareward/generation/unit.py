"""One prompt's whole life: answers, judgments, the dispute, its meta-judgments (Meta-Rewarding sections 2.1 and 2.2).

    K answers (one request) -> N judgments of each distinct answer (one request each)
      -> the answer whose scores vary most -> both orders of every two of its valid judgments (one request each)

All that can run at once does; the engine gathers requests of many prompts and roles into its batches. Every seed is
derived from the prompt's id and the request's place, so the record is the same whenever and wherever it is made.

Where the papers are silent: an empty or cut-off answer is an answer and is judged; answers are the same when their
text is exactly the same; judgments that gave no score take no part in the meta-judging.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import TypeVar

from metareward.engines.base import Engine, EngineError
from metareward.generation.progress import ANSWERS, JUDGMENTS, META, MODEL_ROLES, SILENT, Progress
from metareward.method.judge import Reasoning, Rubric, RubricGrader
from metareward.method.meta_judge import MetaRubric, parse_verdict
from metareward.method.scores import disputed
from metareward.seeds import derive
from metareward.storage.serialization import replace_surrogates
from metareward.types import (
    Candidate,
    Completion,
    Dispute,
    Duplicate,
    Judgment,
    Messages,
    MetaJudgment,
    Prompt,
    PromptRecord,
    Sampling,
    Scored,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class UnitSettings:
    """What is done with each prompt: ``k`` answers, ``n`` judgments each, and how each role is asked and drawn.

    The ``seed`` of the three samplings is not used: each request's seed is derived from ``seed``. ``reasoning`` takes
    what a model thinks out of what it says. ``expected`` scores a judgment by the tokens that could have stood at its
    score's place, and not by the one that was drawn.
    """

    k: int
    n: int
    answers: Sampling
    judgments: Sampling
    meta: Sampling
    rubric: Rubric
    metarubric: MetaRubric
    min_valid: int
    meta_judge: bool
    seed: int
    reasoning: Reasoning | None = None
    expected: bool = False

    @property
    def grader(self) -> RubricGrader:
        """How answers are graded."""
        return RubricGrader(self.rubric, self.n, self.judgments, self.expected)


def fingerprint(settings: UnitSettings) -> dict[str, object]:
    """What of ``settings`` decides the records, for `RecordStore.open`; prompt texts stand in it by their digest."""
    rubric, metarubric = settings.rubric, settings.metarubric
    meta: dict[str, object] = {
        "rubric": metarubric.template.sha256,
        "hide_scores": metarubric.hide_scores,
        "system": metarubric.system_prompt,
        **_drawing(settings.meta),
    }
    judgments = {"n": settings.n, "rubric": rubric.template.sha256, "system": rubric.system_prompt}
    return {
        "seed": settings.seed,
        "answers": {"k": settings.k, **_drawing(settings.answers)},
        "judgments": {**judgments, "expected": settings.expected, **_drawing(settings.judgments)},
        "scores": {"low": rubric.min_score, "high": rubric.max_score, "min_valid": settings.min_valid},
        "meta_judgments": meta if settings.meta_judge else None,
        "reasoning": [settings.reasoning.start, settings.reasoning.end] if settings.reasoning else None,
    }


def _drawing(sampling: Sampling) -> dict[str, object]:
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}


async def run_prompt(
    engine: Engine, prompt: Prompt, settings: UnitSettings, progress: Progress = SILENT
) -> PromptRecord:
    """The record of ``prompt``; without meta-judging its dispute is None.

    Raises `EngineError` when any of the requests can't be served, after the others are cancelled.
    """
    asking = _Asking(engine, prompt, settings, progress)
    answers_K = [asking.split(answer) for answer in await asking.answer()]
    distinct, duplicates = _distinct([answer for _, answer in answers_K])
    candidates_K = tuple(await together(asking.candidate(k, *answers_K[k]) for k in distinct))
    dispute = await asking.settle(candidates_K) if settings.meta_judge else None
    return PromptRecord(prompt, candidates_K, duplicates, dispute)


async def judge_answer(
    engine: Engine, prompt: Prompt, index: int, answer: str, settings: UnitSettings, progress: Progress = SILENT
) -> tuple[Judgment, ...]:
    """The N judgments of one answer, which needn't be this engine's own. ``index`` tells its seeds from others'."""
    return await _Asking(engine, prompt, settings, progress).judge(index, answer)


async def meta_judge_pair(
    engine: Engine,
    prompt: Prompt,
    answer: str,
    first: Judgment,
    second: Judgment,
    settings: UnitSettings,
    progress: Progress = SILENT,
) -> MetaJudgment:
    """One comparison of two judgments of ``answer``, ``first`` shown first; they needn't be this engine's own."""
    return await _Asking(engine, prompt, settings, progress).compare(answer, first, second)


@dataclass(frozen=True, slots=True)
class _Asking:
    """The requests about one prompt."""

    engine: Engine
    prompt: Prompt
    settings: UnitSettings
    progress: Progress

    async def answer(self) -> Sequence[Completion]:
        return await self._ask(ANSWERS, self.prompt.messages, self.settings.answers, self.settings.k)

    async def candidate(self, k: int, thinking: str, answer: Completion) -> Candidate:
        judgments_N = await self.judge(k, answer.text)
        return Candidate(k, answer.text, answer.finish, answer.tokens, judgments_N, thinking)

    async def judge(self, k: int, answer: str) -> tuple[Judgment, ...]:
        grader = self.settings.grader
        question = grader.rubric.render(self.prompt, answer)
        written_N = await self._ask(JUDGMENTS, question, grader.sampling_with(0), grader.n, k)
        return tuple(self._judgment(i, *self.split(written)) for i, written in enumerate(written_N))

    def _judgment(self, index: int, thinking: str, written: Completion) -> Judgment:
        return Judgment(index, written.text, written.tokens, self.settings.grader.read(written), thinking)

    def split(self, written: Completion) -> tuple[str, Completion]:
        """What was thought, and what was said."""
        if self.settings.reasoning is None:
            return "", written
        thinking, text = self.settings.reasoning.split(written.text)
        return thinking, replace(written, text=text)

    async def settle(self, candidates_K: Sequence[Candidate]) -> Dispute | None:
        seed = derive(self.settings.seed, self.prompt.id, "dispute")
        answer = disputed(candidates_K, self.settings.min_valid, seed)
        if answer is None:
            return None
        valid_M = [judgment for judgment in answer.judgments_N if isinstance(judgment.reading, Scored)]
        meta = await together(self.compare(answer.text, first, second) for first, second in permutations(valid_M, 2))
        return Dispute(answer.index, tuple(judgment.index for judgment in valid_M), tuple(meta))

    async def compare(self, answer: str, first: Judgment, second: Judgment) -> MetaJudgment:
        question = self.settings.metarubric.render(self.prompt, answer, first.text, second.text)
        (whole,) = await self._ask(META, question, self.settings.meta, 1, first.index, second.index)
        _, written = self.split(whole)
        verdict = parse_verdict(written.text, written.finish, first.index, second.index)
        return MetaJudgment(first.index, second.index, written.text, written.tokens, verdict)

    async def _ask(self, stage: str, messages: Messages, sampling: Sampling, n: int, *place: int) -> list[Completion]:
        purpose = "meta" if stage == META else stage
        seeded = replace(sampling, seed=derive(self.settings.seed, self.prompt.id, purpose, *place))
        written = await self.engine.complete(messages, seeded, n, MODEL_ROLES[stage])
        if len(written) != n:
            raise EngineError(f"the engine gave {len(written)} completions for prompt {self.prompt.id}, not {n}")
        self.progress.advance(stage, n)
        return [replace(completion, text=replace_surrogates(completion.text)) for completion in written]


def _distinct(answers_K: Sequence[Completion]) -> tuple[list[int], tuple[Duplicate, ...]]:
    """The sample numbers of first occurrences, and the repeats."""
    first: dict[str, int] = {}
    for k, answer in enumerate(answers_K):
        first.setdefault(answer.text, k)
    repeats = (Duplicate(k, first[answer.text]) for k, answer in enumerate(answers_K) if first[answer.text] != k)
    return list(first.values()), tuple(repeats)


async def together(calls: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """The results of ``calls``, run at once, in their order.

    When one fails the others are cancelled, and the failure is raised as itself; an `EngineError` gives way to
    anything else that failed in the same moment, so that a mistake is never taken for one prompt's failure.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise min(errors.exceptions, key=lambda error: isinstance(error, EngineError)) from None
    return [task.result() for task in tasks]
