"""Arena-Hard from named files to results: stored judgments alone, or answers that a judge compares first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from metareward.errors import UserError
from metareward.evaluation.arena_hard.data import (
    Answer,
    JudgePrompt,
    Match,
    Question,
    Version,
    asks_again,
    by_model,
    categories,
    read_answers,
    read_judge_prompt,
    read_judgments,
    read_questions,
    read_verdict,
)
from metareward.evaluation.arena_hard.score import (
    PERCENTILES,
    Range,
    battles,
    count_battles,
    rating,
    resample_questions,
    resample_rows,
    scores,
)
from metareward.evaluation.arena_hard.style import Control, Controlled, StyledBattles, controlled, styled
from metareward.evaluation.judges import Asked, Desk, Door, FirstShare, PairJudge, Shown, Unjudged, ask, kept_text
from metareward.method.scores import TOLERANCE
from metareward.method.template import fill
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.types import Message, Messages, Prompt, Sampling

# --- A judge of one's own for Arena-Hard: two games a question, the order swapped, and judgments in upstream's format.
#
# In game 1 the baseline is assistant A, in game 2 the model is. Temperature 0, at most 4096 tokens. In v0.1 a judge
# that
# names no verdict is asked once to go on. The words are those of the user's copy of ``judge_config.yaml``.


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


# --- Arena-Hard of one or more models: score, rating, both intervals, style-controlled scores, and what was left out.


ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class ModelScore:
    """One model in one category; scores in percent. ``n_unparsable`` counts games without a verdict, refused or not.

    ``questions`` is the interval from drawing questions, ``rows`` the narrower one that is published.
    """

    model: str
    score: float | None
    rating: float | None
    questions: Range | None
    rows: Range | None
    controlled: Mapping[str, float | None]
    controlled_ranges: Mapping[str, Range | None]
    avg_tokens: float | None
    avg_chars: float | None
    n_questions: int
    n_battles: int
    n_unparsable: int
    n_refused: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ArenaResult:
    """One category, the best model first. ``length_in`` says what lengths were controlled in, if they were."""

    version: Version
    category: str
    baseline: str
    models: tuple[ModelScore, ...]
    coefficients: Mapping[str, Mapping[str, float]]
    length_in: str | None
    n_without_style: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        low, high = PERCENTILES[self.version]
        return {
            "version": self.version,
            "category": self.category,
            "baseline": self.baseline,
            "interval_percent": high - low,
            "models": [each.as_dict() for each in self.models],
            "style_coefficients": {name: dict(each) for name, each in self.coefficients.items()},
            "length_in": self.length_in,
            "n_without_style": self.n_without_style,
        }


def evaluate(
    matches: Sequence[Match],
    answers: Mapping[str, Mapping[str, Answer]],
    version: Version,
    rounds: int = ROUNDS,
    style_rounds: int = 0,
    seed: int = 0,
) -> tuple[ArenaResult, ...]:
    """The numbers of every category; ``answers`` by model and question give style control, as far as they go.

    ``rounds`` of the bootstrap serve the plain intervals, ``style_rounds`` those of the style-controlled scores. v0.1
    has one ranking over all questions. Raises `UserError` when a category has two baselines.
    """
    groups = [list(matches)] if version == "v0.1" else []
    if version == "v2":
        groups = [[match for match in matches if match.category == name] for name in categories(matches)]
    return tuple(_category(group, answers, version, (rounds, style_rounds), seed) for group in groups if group)


def _category(
    matches: Sequence[Match],
    answers: Mapping[str, Mapping[str, Answer]],
    version: Version,
    rounds: tuple[int, int],
    seed: int,
) -> ArenaResult:
    baseline = _baseline(matches)
    fought = battles(matches, version)
    ends = PERCENTILES[version]
    rows = styled(fought, baseline, answers, version) if answers else None
    controls = _controls(rows, version, rounds[1], seed)
    by_question, by_row = (draw(fought, rounds[0], seed, ends) for draw in (resample_questions, resample_rows))
    models = [
        _model(name, score, int(n), matches, answers.get(name, {}), (questions, singly), (i, controls))
        for i, (name, score, n, questions, singly) in enumerate(
            zip(fought.models, scores(fought), count_battles(fought), by_question, by_row, strict=True)
        )
    ]
    return ArenaResult(
        version=version,
        category=matches[0].category,
        baseline=baseline,
        models=tuple(sorted(models, key=lambda each: -1.0 if each.score is None else each.score, reverse=True)),
        coefficients={name: each.coefficients for name, each in controls.items()},
        length_in=None if rows is None else "tokens" if rows.in_tokens else "characters",
        n_without_style=0 if rows is None else rows.left_out,
    )


def _baseline(matches: Sequence[Match]) -> str:
    names = {match.baseline for match in matches}
    if len(names) > 1:
        raise UserError(f"the judgments have two baselines, {' and '.join(sorted(names)[:2])}; fix: score them apart")
    return names.pop()


def _controls(rows: StyledBattles | None, version: Version, rounds: int, seed: int) -> dict[str, Controlled]:
    if rows is None:
        return {}
    return {name: controlled(rows, name, version, rounds, seed) for name in get_args(Control)}


def _model(
    name: str,
    score: float | None,
    n_battles: int,
    matches: Sequence[Match],
    answers: Mapping[str, Answer],
    ranges: tuple[Range | None, Range | None],
    controls: tuple[int, Mapping[str, Controlled]],
) -> ModelScore:
    own = [match for match in matches if match.model == name]
    place, fits = controls
    styles = [answer.style for answer in answers.values()]
    return ModelScore(
        model=name,
        score=score,
        rating=rating(score),
        questions=ranges[0],
        rows=ranges[1],
        controlled={control: fitted.scores_M[place] for control, fitted in fits.items()},
        controlled_ranges={control: each.ranges_M[place] for control, each in fits.items() if each.ranges_M},
        avg_tokens=_mean([style.tokens for style in styles]),
        avg_chars=_mean([style.chars for style in styles]),
        n_questions=len(own),
        n_battles=n_battles,
        n_unparsable=sum(match.games.count(None) for match in own) - sum(match.refused for match in own),
        n_refused=sum(match.refused for match in own),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


@dataclass(frozen=True, slots=True)
class ArenaFiles:
    """Where everything is; ``answers`` hold the baseline's, too. ``baseline`` is a model's name."""

    judgments: Path
    version: Version
    baseline: str | None = None
    answers: Path | None = None
    questions: Path | None = None
    prompt: Path | None = None


def results(files: ArenaFiles, rounds: int = ROUNDS, style_rounds: int = 0, seed: int = 0) -> tuple[ArenaResult, ...]:
    """The numbers of every category; with answers, style control too."""
    matches = read_judgments(files.judgments, files.baseline, files.version)
    if not matches:
        raise UserError(
            f"{files.judgments}: only the baseline itself is in it; fix: name the judgments of other models"
        )
    answers = by_model(read_answers(files.answers)) if files.answers else {}
    return evaluate(matches, answers, files.version, rounds, style_rounds, seed)


async def judged(files: ArenaFiles, door: Door) -> Path:
    """The judge's games of every model in ``answers``, written to ``judgments``; what it wrote is kept beside them.

    Raises `UserError` when a file that this takes isn't named, or the baseline hasn't answered.
    """
    if files.answers is None or files.questions is None or files.prompt is None or files.baseline is None:
        raise UserError("--judge-engine: needs --answers, --questions, --prompt (judge_config.yaml) and --baseline")
    models = by_model(read_answers(files.answers))
    if files.baseline not in models:
        raise UserError(f"--baseline {files.baseline}: has no answers in {files.answers}; fix: add its file")
    baseline = models.pop(files.baseline)
    questions, prompt = read_questions(files.questions), read_judge_prompt(files.prompt)

    async def work(desk: Desk) -> tuple[dict[str, object], ...]:
        return await judge_games(desk, prompt, questions, baseline, models, files.version)

    rows = await door.at_desk(files.judgments.with_suffix(".sqlite"), work)
    if not rows:
        raise UserError(f"{files.answers}: no model answers a question that the baseline answers; fix: check the ids")
    write_atomic(files.judgments, json_lines(rows))
    return files.judgments
