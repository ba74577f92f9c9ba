"""A judge of one's own for Arena-Hard: two games a question, the order swapped, and judgments in upstream's format.

In game 1 the baseline is assistant A, in game 2 the model is. Temperature 0, at most 4096 tokens. In v0.1 a judge that
names no verdict is asked once to go on. The words are those of the user's copy of ``judge_config.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from metareward.benchmarks.arena_files import Answer, JudgePrompt, Question
from metareward.benchmarks.arena_verdicts import Version, asks_again, read_verdict
from metareward.benchmarks.asking import Asked, Desk, ask, kept_text
from metareward.benchmarks.label_judge import FirstShare
from metareward.benchmarks.pair_judges import PairJudge, Shown, Unjudged
from metareward.benchmarks.slots import fill
from metareward.errors import UserError
from metareward.scores import TOLERANCE
from metareward.seeds import derive
from metareward.types import Message, Messages, Prompt, Sampling

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=4096)
_GO_ON = "continue your judgment and finish by outputting a final verdict label"


def question_about(prompt: JudgePrompt, question: str, first: str, second: str) -> Messages:
    """The judge's question, ``first`` as assistant A."""
    slots = {"question_1": question, "answer_1": first, "answer_2": second}
    newer = {"QUESTION": question, "ANSWER_A": first, "ANSWER_B": second}
    return (Message("system", prompt.system), Message("user", fill(prompt.template, slots | newer)))


async def judge_games(
    desk: Desk,
    prompt: JudgePrompt,
    questions: Sequence[Question],
    baseline: Mapping[str, Answer],
    models: Mapping[str, Mapping[str, Answer]],
    version: Version,
) -> tuple[dict[str, object], ...]:
    """A row for every model and every question that it and the baseline have answered, in the order of ``questions``.

    Answers are given by question id. Raises `UserError` as `ask` does.
    """
    meetings = [
        _Meeting(question, base, own)
        for answers in models.values()
        for question in questions
        if (base := baseline.get(question.id)) is not None and (own := answers.get(question.id)) is not None
    ]

    async def work(game: Prompt) -> dict[str, object]:
        return await _play(desk, game, version)

    games = [game for meeting in meetings for game in meeting.games(prompt)]
    asked = await ask(desk, games, work, {"prompt": prompt.sha256, "version": version})
    return tuple(_row(meeting, desk.judge, asked) for meeting in meetings)


@dataclass(frozen=True, slots=True)
class _Meeting:
    """A model and the baseline on one question."""

    question: Question
    baseline: Answer
    answer: Answer

    def id(self, number: int) -> str:
        return f"{self.answer.model} on {self.question.id}, game {number}"

    def games(self, prompt: JudgePrompt) -> list[Prompt]:
        base, own = written(self.baseline), written(self.answer)
        return [
            Prompt(self.id(number), question_about(prompt, self.question.text, *order))
            for number, order in ((1, (base, own)), (2, (own, base)))
        ]


async def verdicts_by(
    judge: PairJudge,
    questions: Sequence[tuple[Question, Prompt]],
    baseline: Mapping[str, Answer],
    answers: Mapping[str, Answer],
) -> tuple[dict[str, object], ...]:
    """A row for every question that both have answered, by a judge to whom places mean nothing: game 2 mirrors game 1.

    Each question stands beside what the judge sees of it. More than half of the preference is A>B or B>A; no verdict
    is a strong one. Raises `UserError` as the judge does.
    """
    both = [(each, prompt) for each, prompt in questions if each.id in baseline and each.id in answers]
    pairs = [Shown(prompt, written(baseline[each.id]), written(answers[each.id])) for each, prompt in both]
    shares = await judge.shares([pair for pair in pairs if pair.first != pair.second])
    told = [_Meeting(each, baseline[each.id], answers[each.id]) for each, _ in both]
    documents = [_mirrored(shares.get(prompt.id)) for _, prompt in both]
    return tuple(_judged(meeting, judge.name, games) for meeting, games in zip(told, documents, strict=True))


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


def written(answer: Answer) -> str:
    """The answer's text. Raises `UserError` when its file holds only its style."""
    if answer.text is None:
        raise UserError(
            f"answers: {answer.model}, question {answer.question}: no text; fix: name upstream's answer file"
        )
    return answer.text


async def _play(desk: Desk, game: Prompt, version: Version) -> dict[str, object]:
    said = ""
    messages = game.messages
    for attempt in (1, 2):
        sampling = replace(SAMPLING, seed=derive(desk.seed, "arena", game.id, attempt))
        (reply,) = await desk.engine.complete(messages, sampling, 1, "judge")
        text = kept_text(reply)
        said = f"{said}\n{text}"
        if not asks_again(said, version):
            break
        messages = (*messages, Message("assistant", text), Message("user", _GO_ON))
    return {"judgment": said, "score": read_verdict(said, version)}


def _row(meeting: _Meeting, judge: str, asked: Asked) -> dict[str, object]:
    return _judged(meeting, judge, [asked.documents.get(meeting.id(number)) for number in (1, 2)])


def _judged(meeting: _Meeting, judge: str, games: Games) -> dict[str, object]:
    return {
        "question_id": meeting.question.id,
        "category": meeting.question.category,
        "model": meeting.answer.model,
        "baseline": meeting.baseline.model,
        "judge": judge,
        "games": games,
        "refused": games.count(None),
    }
