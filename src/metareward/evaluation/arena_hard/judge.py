"""A judge for Arena-Hard: two games a question with the order swapped, and judgments in upstream's format.

In game 1 the baseline is assistant A, in game 2 the model is. Temperature 0, at most 4096 tokens. In v0.1 a judge that
names no verdict is asked once to go on. The prompt is the user's copy of ``judge_config.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from metareward.errors import UserError
from metareward.evaluation.arena_hard.data import Answer, JudgePrompt, Question, Version, needs_retry, read_verdict
from metareward.evaluation.compare import FirstShare, OutputPair, PairwiseJudge, Unjudged
from metareward.evaluation.judges import JudgeClient, QueryResults, cached_queries
from metareward.method.scores import TOLERANCE
from metareward.method.template import fill
from metareward.seeds import derive
from metareward.storage.serialization import replace_surrogates
from metareward.types import Message, Messages, Prompt, Sampling

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=4096)
_CONTINUE = "continue your judgment and finish by outputting a final verdict label"


def game_query(prompt: JudgePrompt, question: str, first: str, second: str) -> Messages:
    """The judge's question, ``first`` as assistant A."""
    slots = {"question_1": question, "answer_1": first, "answer_2": second}
    newer = {"QUESTION": question, "ANSWER_A": first, "ANSWER_B": second}
    return (Message("system", prompt.system), Message("user", fill(prompt.template, slots | newer)))


async def judge_games(
    client: JudgeClient,
    prompt: JudgePrompt,
    questions: Sequence[Question],
    baseline: Mapping[str, Answer],
    models: Mapping[str, Mapping[str, Answer]],
    version: Version,
) -> tuple[dict[str, object], ...]:
    """A row for every model and every question that it and the baseline have answered, in the order of ``questions``.

    Answers are given by question id. Raises `UserError` as `cached_queries` does.
    """
    matchups = [
        _Matchup(question, base, own)
        for answers in models.values()
        for question in questions
        if (base := baseline.get(question.id)) is not None and (own := answers.get(question.id)) is not None
    ]

    async def work(game: Prompt) -> dict[str, object]:
        return await _play(client, game, version)

    games = [game for matchup in matchups for game in matchup.games(prompt)]
    results = await cached_queries(client, games, work, {"prompt": prompt.sha256, "version": version})
    return tuple(_row(matchup, client.name, results) for matchup in matchups)


@dataclass(frozen=True, slots=True)
class _Matchup:
    """A model and the baseline on one question."""

    question: Question
    baseline: Answer
    answer: Answer

    def id(self, number: int) -> str:
        return f"{self.answer.model} on {self.question.id}, game {number}"

    def games(self, prompt: JudgePrompt) -> list[Prompt]:
        base, own = text_of(self.baseline), text_of(self.answer)
        return [
            Prompt(self.id(number), game_query(prompt, self.question.text, *order))
            for number, order in ((1, (base, own)), (2, (own, base)))
        ]


async def mirrored_games(
    judge: PairwiseJudge,
    questions: Sequence[tuple[Question, Prompt]],
    baseline: Mapping[str, Answer],
    answers: Mapping[str, Answer],
) -> tuple[dict[str, object], ...]:
    """A row for every question that both have answered, by a judge without position bias: game 2 mirrors game 1.

    Each question stands beside what the judge sees of it. More than half of the preference is A>B or B>A; no verdict
    is a strong one. Raises `UserError` as the judge does.
    """
    both = [(each, prompt) for each, prompt in questions if each.id in baseline and each.id in answers]
    pairs = [OutputPair(prompt, text_of(baseline[each.id]), text_of(answers[each.id])) for each, prompt in both]
    shares = await judge.shares([pair for pair in pairs if pair.first != pair.second])
    matchups = [_Matchup(each, baseline[each.id], answers[each.id]) for each, _ in both]
    documents = [_mirrored(shares.get(prompt.id)) for _, prompt in both]
    return tuple(_judged(matchup, judge.name, games) for matchup, games in zip(matchups, documents, strict=True))


Games = list[Mapping[str, object] | None]


def _mirrored(share: FirstShare | Unjudged | None) -> Games:
    """Both games, the baseline as A in the first; identical answers draw."""
    if share == "refused":
        return [None, None]
    if share == "unparsable":
        return [{"score": None}, {"score": None}]
    lead = share.share - 0.5 if isinstance(share, FirstShare) else 0.0
    scores = ("A=B", "A=B") if abs(lead) <= TOLERANCE else ("A>B", "B>A") if lead > 0 else ("B>A", "A>B")
    return [{"score": score} for score in scores]


def text_of(answer: Answer) -> str:
    """The answer's text. Raises `UserError` when its file holds only its style."""
    if answer.text is None:
        raise UserError(
            f"answers: {answer.model}, question {answer.question}: no text; fix: name upstream's answer file"
        )
    return answer.text


async def _play(client: JudgeClient, game: Prompt, version: Version) -> dict[str, object]:
    judgment = ""
    messages = game.messages
    for attempt in (1, 2):
        sampling = replace(SAMPLING, seed=derive(client.seed, "arena", game.id, attempt))
        (reply,) = await client.engine.complete(messages, sampling, 1, "judge")
        text = replace_surrogates(reply.text)
        judgment = f"{judgment}\n{text}"
        if not needs_retry(judgment, version):
            break
        messages = (*messages, Message("assistant", text), Message("user", _CONTINUE))
    return {"judgment": judgment, "score": read_verdict(judgment, version)}


def _row(matchup: _Matchup, judge: str, results: QueryResults) -> dict[str, object]:
    return _judged(matchup, judge, [results.documents.get(matchup.id(number)) for number in (1, 2)])


def _judged(matchup: _Matchup, judge: str, games: Games) -> dict[str, object]:
    return {
        "question_id": matchup.question.id,
        "category": matchup.question.category,
        "model": matchup.answer.model,
        "baseline": matchup.baseline.model,
        "judge": judge,
        "games": games,
        "refused": games.count(None),
    }
