"""Annotates one prompt: answers, judgments, meta-judgments of one answer (Meta-Rewarding sections 2.1 and 2.2).

    K answers (one request) -> N judgments of each distinct answer (one request each)
      -> the answer whose scores vary most -> both orders of every two of its valid judgments (one request each)

`AnnotationSettings.rounds` and ``battles`` ask fewer judgments and comparisons (`Rounds`, `Battles`).

Requests that don't depend on each other run concurrently. Every seed is derived from the prompt's id and the request,
so a record is the same whenever and wherever it is made. Where the papers are silent: empty and truncated answers are
judged, answers are duplicates when their texts are equal, and judgments without a score are not meta-judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from typing import TypeVar

import numpy as np

from metareward.engines.base import Engine, EngineError, run_concurrently
from metareward.generation.progress import ANSWERS, JUDGMENTS, META, MODEL_ROLES, SILENT, Progress
from metareward.generation.verdicts import TEXT, Ask, RubricGrader, VerdictRules, compare_judgments
from metareward.method.elo import Battles, PositionWeights, battle_matrix
from metareward.method.judge import Reasoning, Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.method.scores import Rounds, ScoredAnswer, answers_in_doubt, disputed, valid_scores
from metareward.method.verdict_format import READER_VERSION
from metareward.seeds import derive
from metareward.text import replace_surrogates
from metareward.types import (
    Candidate,
    Completion,
    Dispute,
    Duplicate,
    Judge,
    Judgment,
    Messages,
    MetaJudgment,
    Prompt,
    PromptRecord,
    Reading,
    Reward,
    Sampling,
    Scored,
    Tied,
    Truncated,
    Verdict,
    Won,
)

T = TypeVar("T")
_PAPER_SAMPLING = Sampling(temperature=0.8, top_p=0.95, max_tokens=1024)


@dataclass(frozen=True, slots=True)
class AnnotationSettings:
    """How a prompt is annotated: ``k`` answers, ``n`` judgments of each, and every role's sampling and rubric.

    The ``seed`` of the three samplings is not used: each request's seed is derived from ``seed``. ``reasoning``
    separates a model's reasoning from its output. ``expected`` scores a judgment by its expected score over the
    tokens that could stand at the score's place, not by the sampled token. ``judge`` takes the place of the rubric and
    the engine's judge role; ``reward`` scores the answers, beside ``n`` judgments, which may then be 0. ``verdicts``
    and ``meta_verdicts``: how the verdicts of judgments and meta-judgments are obtained. ``rounds`` and ``battles``:
    which judgments and comparisons are worth asking; None: all.
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
    judge: Judge | None = None
    reward: Reward | None = None
    verdicts: VerdictRules = TEXT
    meta_verdicts: VerdictRules = TEXT
    rounds: Rounds | None = None
    battles: Battles | None = None

    @property
    def grader(self) -> RubricGrader:
        """How answers are judged by the rubric."""
        return RubricGrader(self.rubric, self.n, self.judgments, self.expected, self.verdicts, self.reasoning)


def annotation_fingerprint(settings: AnnotationSettings) -> dict[str, object]:
    """The part of ``settings`` that decides the records, for `RecordStore.open`; rubrics by their digest."""
    rubric, metarubric = settings.rubric, settings.metarubric
    meta: dict[str, object] = {
        "rubric": metarubric.template.sha256,
        "verdict_format": metarubric.verdict.settings,
        "hide_scores": metarubric.hide_scores,
        "system": metarubric.system_prompt,
        **_sampling(settings.meta),
        **settings.meta_verdicts.settings,
        **({"battles": asdict(settings.battles)} if settings.battles else {}),
    }
    judgments: dict[str, object] = {
        "n": settings.n,
        "rubric": rubric.template.sha256,
        "verdict_format": rubric.verdict.settings,
        "system": rubric.system_prompt,
        "reader_version": READER_VERSION,
    }
    return {
        "seed": settings.seed,
        "answers": {"k": settings.k, **_sampling(settings.answers)},
        "judgments": {
            **judgments,
            "expected": settings.expected,
            **_sampling(settings.judgments),
            **settings.verdicts.settings,
            **({"rounds": asdict(settings.rounds)} if settings.rounds else {}),
        },
        "scores": {"low": rubric.min_score, "high": rubric.max_score, "min_valid": settings.min_valid},
        "meta_judgments": meta if settings.meta_judge else None,
        "reasoning": [settings.reasoning.start, settings.reasoning.end] if settings.reasoning else None,
    }


def _sampling(sampling: Sampling) -> dict[str, object]:
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_tokens}


@dataclass(frozen=True, slots=True)
class EarlierRecord:
    """A record that another run made of the same prompt with the same answers; ``judged``: and the same judgments."""

    record: PromptRecord
    judged: bool


async def annotate_prompt(
    engine: Engine,
    prompt: Prompt,
    settings: AnnotationSettings,
    progress: Progress = SILENT,
    earlier: EarlierRecord | None = None,
) -> PromptRecord:
    """The record of ``prompt``; its dispute is None without the meta-judge. What ``earlier`` has isn't asked again.

    Raises `EngineError` when any of the requests fails, after cancelling the others.
    """
    annotator = _Annotator(engine, prompt, settings, progress)
    if earlier is None:
        candidates_K, duplicates = await annotator.answer()
    else:
        candidates_K, duplicates = earlier.record.candidates_K, earlier.record.duplicates
    progress.advance(ANSWERS, settings.k)
    if earlier is None or not earlier.judged:
        candidates_K = await annotator.score(candidates_K)
    else:
        progress.advance(JUDGMENTS, sum(len(candidate.judgments_N) for candidate in candidates_K))
    dispute = await annotator.meta_judge(candidates_K) if settings.meta_judge else None
    return PromptRecord(prompt, candidates_K, duplicates, dispute)


def misread(
    candidates: Iterable[Candidate], comparisons: Iterable[MetaJudgment], settings: AnnotationSettings
) -> str | None:
    """The first stored score or verdict that isn't the one in its text; None if each is.

    Whether the token limit cut a text off isn't stored, so `Truncated` fits every text. Judgments of a judge of the
    user's own aren't read.
    """
    for candidate in candidates if settings.judge is None else ():
        for judgment in candidate.judgments_N:
            if (found := settings.grader.misread(judgment)) is not None:
                where = f"judgment {judgment.index} of answer {candidate.index}"
                return f"{where} is stored as {_named(judgment.reading)}, and its text says {_named(found)}"
    for meta in comparisons:
        verdict = settings.metarubric.read(meta.text, "stop", meta.first, meta.second)
        if verdict != meta.verdict and not isinstance(meta.verdict, Truncated):
            where = f"the comparison of judgments {meta.first} and {meta.second}"
            return f"{where} is stored as {_named(meta.verdict)}, and its text says {_named(verdict)}"
    return None


def _named(outcome: Reading | Verdict) -> str:
    match outcome:
        case Scored(score=score):
            return f"{score:g}"
        case Won(winner=winner):
            return f"judgment {winner}"
        case Tied():
            return "a tie"
        case _:
            return outcome.reason


async def rewards_of(reward: Reward, prompt: Prompt, answers: Sequence[str]) -> list[float]:
    """The reward of every answer. Raises `EngineError` unless they are as many finite numbers as there are answers."""
    scores = await reward.score(prompt, answers)
    if len(scores) != len(answers) or not all(map(math.isfinite, scores)):
        raise EngineError(f"the reward must give {len(answers)} finite scores, one for each answer, not {scores!r}")
    return [float(score) for score in scores]


async def judge_answer(
    engine: Engine, prompt: Prompt, index: int, answer: str, settings: AnnotationSettings, progress: Progress = SILENT
) -> tuple[Judgment, ...]:
    """The N judgments of one answer, which may be any model's. Answers with different ``index`` get different seeds."""
    return await _Annotator(engine, prompt, settings, progress).judge(index, answer)


async def meta_judge_pair(
    engine: Engine,
    prompt: Prompt,
    answer: str,
    first: Judgment,
    second: Judgment,
    settings: AnnotationSettings,
    progress: Progress = SILENT,
) -> MetaJudgment:
    """One comparison of two judgments of ``answer``, ``first`` shown first; they may be any model's."""
    return await _Annotator(engine, prompt, settings, progress).compare(answer, first, second)


@dataclass(frozen=True, slots=True)
class RubricJudge:
    """A `Judge` made of a model: ``n`` judgments by ``rubric``, sampled with ``sampling``, whose seed is not used.

    Each request's seed is derived from ``seed``, the prompt's id and the answer. ``expected`` and ``verdicts``: see
    `RubricGrader`.
    """

    engine: Engine
    rubric: Rubric
    sampling: Sampling = _PAPER_SAMPLING
    seed: int = 0
    expected: bool = False
    verdicts: VerdictRules = TEXT

    async def judge(self, prompt: Prompt, answer: str, n: int) -> tuple[Judgment, ...]:
        """``n`` judgments of ``answer``. Raises `EngineError` when the engine can't serve the request."""

        async def ask(messages: Messages, sampling: Sampling, n: int, *purpose: str | int) -> Sequence[Completion]:
            seed = derive(self.seed, prompt.id, JUDGMENTS, answer, *purpose)
            return await self.engine.complete(messages, replace(sampling, seed=seed), n, "judge")

        grader = RubricGrader(self.rubric, n, self.sampling, self.expected, self.verdicts)
        return await grader.judge(ask, prompt, answer)


def _scored(candidate: Candidate) -> ScoredAnswer:
    asked, chars = len(candidate.judgments_N), len(candidate.text)
    return ScoredAnswer(candidate.index, valid_scores(candidate), asked, chars, candidate.finish == "length")


@dataclass(frozen=True, slots=True)
class _Annotator:
    """The requests about one prompt."""

    engine: Engine
    prompt: Prompt
    settings: AnnotationSettings
    progress: Progress

    async def answer(self) -> tuple[tuple[Candidate, ...], tuple[Duplicate, ...]]:
        """The distinct answers without judgments, and the others."""
        settings = self.settings
        completions_K = await self.complete(ANSWERS, self.prompt.messages, settings.answers, settings.k)
        answers_K = [self.split_reasoning(completion) for completion in completions_K]
        first: dict[str, int] = {}  # each distinct text with the sample number of its first answer
        for k, (_, answer) in enumerate(answers_K):
            first.setdefault(answer.text, k)
        sources = enumerate(first[answer.text] for _, answer in answers_K)
        duplicates = tuple(Duplicate(k, source) for k, source in sources if source != k)
        distinct = ((k, *answers_K[k]) for k in first.values())
        candidates_K = (Candidate(k, each.text, each.finish, each.tokens, (), thought) for k, thought, each in distinct)
        return tuple(candidates_K), duplicates

    async def score(self, candidates_K: Sequence[Candidate]) -> tuple[Candidate, ...]:
        """The answers with their judgments and rewards."""
        settings, texts = self.settings, [each.text for each in candidates_K]
        rewards: Sequence[float | None] = [None] * len(texts)
        if settings.reward is not None:
            rewards = await rewards_of(settings.reward, self.prompt, texts)
        if settings.rounds is not None:
            candidates_K = await self.judge_in_rounds(candidates_K, settings.rounds)
        elif settings.n:
            judgments = await run_concurrently(self.judge(each.index, each.text) for each in candidates_K)
            candidates_K = [
                replace(each, judgments_N=judgments_N)
                for each, judgments_N in zip(candidates_K, judgments, strict=True)
            ]
        return tuple(replace(each, reward=reward) for each, reward in zip(candidates_K, rewards, strict=True))

    async def judge_in_rounds(self, candidates_K: Sequence[Candidate], rounds: Rounds) -> list[Candidate]:
        """The answers with as many judgments as it takes to tell which are in pairs, n at most."""
        judged = {each.index: each for each in candidates_K}
        while True:
            answers = [_scored(each) for each in judged.values()]
            counts = {each.index: rounds.more(each) for each in answers}
            wanted = answers_in_doubt(answers, rounds)
            if not wanted:
                return list(judged.values())
            asked = (self.judge_more(judged[index], counts[index]) for index in wanted)
            judged |= {each.index: each for each in await run_concurrently(asked)}

    async def judge_more(self, candidate: Candidate, count: int) -> Candidate:
        """The answer with ``count`` more judgments."""
        start, grader = len(candidate.judgments_N), replace(self.settings.grader, n=count)
        more = await grader.judge(self.ask(JUDGMENTS, candidate.index), self.prompt, candidate.text, start)
        self.progress.advance(JUDGMENTS, count)
        return replace(candidate, judgments_N=(*candidate.judgments_N, *more))

    async def judge(self, k: int, answer: str) -> tuple[Judgment, ...]:
        n, judge = self.settings.n, self.settings.judge
        if judge is not None:
            judged_N = tuple(await judge.judge(self.prompt, answer, n))
            indices = [judgment.index for judgment in judged_N]
            if indices != list(range(n)):
                raise EngineError(f"the judge must give judgments 0 to {n - 1}, not {indices}")
        else:
            grader = self.settings.grader
            judged_N = await grader.judge(self.ask(JUDGMENTS, k), self.prompt, answer)
        self.progress.advance(JUDGMENTS, n)
        return judged_N

    def split_reasoning(self, completion: Completion) -> tuple[str, Completion]:
        """The reasoning, and the completion without it."""
        if self.settings.reasoning is None:
            return "", completion
        reasoning, text = self.settings.reasoning.split(completion.text)
        return reasoning, replace(completion, text=text)

    async def meta_judge(self, candidates_K: Sequence[Candidate]) -> Dispute | None:
        seed = derive(self.settings.seed, self.prompt.id, "dispute")
        answer = disputed(candidates_K, self.settings.min_valid, seed)
        if answer is None:
            return None
        valid_M = [judgment for judgment in answer.judgments_N if isinstance(judgment.reading, Scored)]
        if self.settings.battles is not None:
            meta = await self.compare_some(answer.text, valid_M, self.settings.battles)
        else:
            meta = await self.compare_all(answer.text, permutations(valid_M, 2))
        return Dispute(answer.index, tuple(judgment.index for judgment in valid_M), tuple(meta))

    async def compare_all(self, answer: str, ordered: Iterable[tuple[Judgment, Judgment]]) -> list[MetaJudgment]:
        return await run_concurrently(self.compare(answer, first, second) for first, second in ordered)

    async def compare_some(self, answer: str, valid_M: Sequence[Judgment], battles: Battles) -> list[MetaJudgment]:
        """Comparisons of the judgments with different texts, as long as they tell about the first and the last."""
        distinct = list({judgment.text: judgment for judgment in reversed(valid_M)}.values())[::-1]
        indices = tuple(judgment.index for judgment in distinct)
        seed = derive(self.settings.seed, self.prompt.id, "battles")
        asked_MM = np.zeros((len(distinct), len(distinct)))
        meta: list[MetaJudgment] = []
        while True:
            # Each pair is asked in both orders, so that both positions have the same weight.
            so_far = battle_matrix(Dispute(0, indices, tuple(meta)), PositionWeights.from_wins(0, 0))
            pairs = battles.next_pairs(so_far, asked_MM, seed)
            if not pairs:
                return meta
            both = [order for i, j in pairs for order in ((i, j), (j, i))]
            for order in both:
                asked_MM[order] += 1
            meta += await self.compare_all(answer, ((distinct[i], distinct[j]) for i, j in both))

    async def compare(self, answer: str, first: Judgment, second: Judgment) -> MetaJudgment:
        settings, pair = self.settings, (first.index, second.index)
        messages = settings.metarubric.render(self.prompt, answer, first.text, second.text)
        ask, rules = self.ask(META, *pair), settings.meta_verdicts
        compared = await compare_judgments(
            ask, settings.metarubric, messages, pair, settings.meta, rules, settings.reasoning
        )
        self.progress.advance(META, 1)
        return compared

    def ask(self, stage: str, *indices: int) -> Ask:
        """Requests about one answer or one pair of judgments."""

        async def ask(messages: Messages, sampling: Sampling, n: int, *purpose: str | int) -> list[Completion]:
            return await self.complete(stage, messages, sampling, n, *indices, *purpose)

        return ask

    async def complete(
        self, stage: str, messages: Messages, sampling: Sampling, n: int, *indices: str | int
    ) -> list[Completion]:
        purpose = "meta" if stage == META else stage
        seeded = replace(sampling, seed=derive(self.settings.seed, self.prompt.id, purpose, *indices))
        completions = await self.engine.complete(messages, seeded, n, MODEL_ROLES[stage])
        if len(completions) != n:
            raise EngineError(f"the engine gave {len(completions)} completions for prompt {self.prompt.id}, not {n}")
        return [replace(completion, text=replace_surrogates(completion.text)) for completion in completions]
