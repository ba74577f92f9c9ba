"""Arena-Hard (lmarena/arena-hard-auto): games against a baseline's answers, by a judge or from stored judgments.

A judge compares two answers in two games, the baseline as assistant A in game 1 and the model in game 2. Temperature 0,
at most 4096 tokens. In v0.1 a judge that names no verdict is asked once to go on. The prompt is the user's copy of
``judge_config.yaml``; judgments are written in upstream's format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from metareward.data.files import read_all_rows
from metareward.errors import UserError
from metareward.evaluation.arena_hard.data import (
    Answer,
    JudgePrompt,
    Question,
    Version,
    by_model,
    needs_retry,
    read_answers,
    read_judge_prompt,
    read_judgments,
    read_questions,
    read_verdict,
    version_named,
)
from metareward.evaluation.arena_hard.score import ArenaResult, evaluate
from metareward.evaluation.base import (
    Column,
    ComparisonBenchmark,
    EvaluateCommand,
    Evaluated,
    EvaluatedModel,
    EvaluateSession,
    Figures,
    Mismatch,
    Requests,
    Results,
    ResultTable,
    ScoringInputs,
)
from metareward.evaluation.compare import FirstShare, OutputPair, PairwiseJudge
from metareward.evaluation.input_checks import require_known, require_readable
from metareward.evaluation.judges import JudgeClient, JudgeSpec, ask_judge, cached_queries
from metareward.method.scores import TOLERANCE
from metareward.method.stats import ROUNDS
from metareward.method.template import conversation, fill
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.text import replace_surrogates
from metareward.types import Message, Messages, Prompt, Sampling

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=4096)
_CONTINUE = "continue your judgment and finish by outputting a final verdict label"

Games = list[Mapping[str, object] | None]
JudgmentRows = tuple[dict[str, object], ...]


def game_query(prompt: JudgePrompt, question: str, first: str, second: str) -> Messages:
    """The judge's question, ``first`` as assistant A."""
    slots = {"question_1": question, "answer_1": first, "answer_2": second}
    newer = {"QUESTION": question, "ANSWER_A": first, "ANSWER_B": second}
    return (Message("system", prompt.system), Message("user", fill(prompt.template, slots | newer)))


def text_of(answer: Answer) -> str:
    """The answer's text. Raises `UserError` when its file holds only its style."""
    if answer.text is None:
        raise UserError(
            f"answers: {answer.model}, question {answer.question}: no text; fix: name upstream's answer file"
        )
    return answer.text


def _judgment_row(question: Question, baseline: Answer, answer: Answer, judge: str, games: Games) -> dict[str, object]:
    return {
        "question_id": question.id,
        "category": question.category,
        "model": answer.model,
        "baseline": baseline.model,
        "judge": judge,
        "games": games,
        "refused": games.count(None),
    }


async def judge_games(
    client: JudgeClient,
    prompt: JudgePrompt,
    questions: Sequence[Question],
    baseline: Mapping[str, Answer],
    models: Mapping[str, Mapping[str, Answer]],
    version: Version,
) -> JudgmentRows:
    """A row for every model and every question that it and the baseline have answered, in the order of ``questions``.

    Answers are given by question id. Raises `UserError` as `cached_queries` does.
    """
    matchups = [
        (question, base, own)
        for answers in models.values()
        for question in questions
        if (base := baseline.get(question.id)) is not None and (own := answers.get(question.id)) is not None
    ]
    games: list[list[Prompt]] = []
    for question, base, own in matchups:
        orders = ((text_of(base), text_of(own)), (text_of(own), text_of(base)))
        queries = [game_query(prompt, question.text, *order) for order in orders]
        games.append([Prompt(f"{own.model} on {question.id}, game {i}", query) for i, query in enumerate(queries, 1)])

    async def work(game: Prompt) -> dict[str, object]:
        judgment, messages = "", game.messages
        for attempt in (1, 2):
            sampling = replace(SAMPLING, seed=derive(client.seed, "arena", game.id, attempt))
            (reply,) = await ask_judge(client.engine, messages, sampling)
            text = replace_surrogates(reply.text)
            judgment = f"{judgment}\n{text}"
            if not needs_retry(judgment, version):
                break
            messages = (*messages, Message("assistant", text), Message("user", _CONTINUE))
        return {"judgment": judgment, "score": read_verdict(judgment, version)}

    settings = {"prompt": prompt.sha256, "version": version}
    documents = (await cached_queries(client, [game for both in games for game in both], work, settings)).documents
    return tuple(
        _judgment_row(*matchup, client.name, [documents.get(game.id) for game in both])
        for matchup, both in zip(matchups, games, strict=True)
    )


async def mirrored_games(
    judge: PairwiseJudge,
    questions: Sequence[tuple[Question, Prompt]],
    baseline: Mapping[str, Answer],
    answers: Mapping[str, Answer],
) -> JudgmentRows:
    """A row for every question that both have answered, by a judge without position bias: game 2 mirrors game 1.

    Each question stands beside what the judge sees of it. More than half of the preference is A>B or B>A; no verdict
    is a strong one; identical answers draw. Raises `UserError` as the judge does.
    """
    both = [(each, prompt) for each, prompt in questions if each.id in baseline and each.id in answers]
    pairs = [OutputPair(prompt, text_of(baseline[each.id]), text_of(answers[each.id])) for each, prompt in both]
    shares = await judge.shares([pair for pair in pairs if pair.first != pair.second])
    rows = []
    for question, prompt in both:
        share = shares.get(prompt.id)
        if share == "refused":
            games: Games = [None, None]
        elif share == "unreadable":
            games = [{"score": None}, {"score": None}]
        else:
            lead = share.share - 0.5 if isinstance(share, FirstShare) else 0.0
            scores = ("A=B", "A=B") if abs(lead) <= TOLERANCE else ("A>B", "B>A") if lead > 0 else ("B>A", "A>B")
            games = [{"score": score} for score in scores]
        rows.append(_judgment_row(question, baseline[question.id], answers[question.id], judge.name, games))
    return tuple(rows)


def results(
    judgments: Path,
    answers: Path | None,
    version: Version,
    baseline: str | None = None,
    rounds: int = ROUNDS,
    style_rounds: int = 0,
    seed: int = 0,
) -> tuple[ArenaResult, ...]:
    """The numbers of every category; with answers, which hold the baseline's too, style control."""
    matches = read_judgments(judgments, baseline, version)
    if not matches:
        raise UserError(f"{judgments}: only the baseline itself is in it; fix: name the judgments of other models")
    by_name = by_model(read_answers(answers)) if answers else {}
    if by_name and (missing := {matches[0].baseline, *(match.model for match in matches)} - by_name.keys()):
        raise UserError(
            f"{answers}: no answers of {min(missing)!r}, but of {', '.join(by_name)}; fix: give those of every model "
            "and of the baseline"
        )
    return evaluate(matches, by_name, version, rounds, style_rounds, seed)


async def judge_models(
    judge: JudgeSpec, judgments: Path, answers: Path, questions: Path, prompt: Path, baseline: str, version: Version
) -> None:
    """Write the judge's games of every model in ``answers`` to ``judgments``; its replies are stored beside them.

    Raises `UserError` when the baseline has no answers, or no model has answered what it has.
    """
    models = by_model(read_answers(answers))
    if baseline not in models:
        raise UserError(f"--baseline {baseline}: has no answers in {answers}; fix: add its file")
    base, asked, template = models.pop(baseline), read_questions(questions), read_judge_prompt(prompt)
    rows = await judge.run(
        judgments.with_suffix(".sqlite"),
        lambda client: judge_games(client, template, asked, base, models, version),
    )
    if not rows:
        raise UserError(f"{answers}: no model answers a question that the baseline answers; fix: check the ids")
    write_atomic(judgments, json_lines(rows))


class ArenaHardCommand(EvaluateCommand):
    """Arena-Hard: score against the baseline, intervals, style control."""

    judgments: Path = Field(description="Judgments: a file, or a folder of them; or the file to write.")
    version: str = Field("v0.1", description="v0.1 or v2: how verdicts are read and scored.")
    baseline: str | None = Field(None, description="The baseline, if the file doesn't name it.")
    answers: Path | None = Field(None, description="Answers, a file or a folder: gives style control.")
    questions: Path | None = Field(None, description="question.jsonl: checks ids; needed to ask a judge.")
    prompt: Path | None = Field(None, description="judge_config.yaml, to ask a judge.")
    rounds: int = Field(ROUNDS, ge=1, description="Rounds of the bootstrap.")
    style_rounds: int = Field(0, ge=0, description="Rounds for intervals of style-controlled scores.")

    async def evaluate(self, session: EvaluateSession) -> Evaluated:
        """Every category of the judgments."""
        if session.judge is not None:
            if self.answers is None or self.questions is None or self.prompt is None or self.baseline is None:
                raise UserError(
                    "--judge-engine: needs --answers, --questions, --prompt (judge_config.yaml) and --baseline"
                )
            given = (self.judgments, self.answers, self.questions, self.prompt, self.baseline)
            await judge_models(session.judge, *given, version_named(self.version))
        elif self.questions is not None:
            known = [question.id for question in read_questions(self.questions)]
            for row in read_all_rows(self.judgments):
                require_known(row, "question_id", row.text("question_id", "uid"), known, str(self.questions))
        categories = [each.as_dict() for each in self.results(session.seed)]
        tables = tuple(_category_table(each) for each in categories)
        return Evaluated(tables, {"benchmark": "arena_hard", "categories": categories})

    def results(self, seed: int = 0) -> tuple[ArenaResult, ...]:
        """Every category of the judgments. Raises `UserError` for files that can't be read."""
        version = version_named(self.version)
        found = results(self.judgments, self.answers, version, self.baseline, self.rounds, self.style_rounds, seed)
        battles = {f"{each.model} {result.category}": each.n_battles for result in found for each in result.models}
        require_readable(battles, str(self.judgments), "verdict")
        return found


def _category_table(category: Figures) -> ResultTable:
    title = " ".join(filter(None, ("Arena-Hard", category["version"], category["category"])))
    notes = ["By row: as v0.1 publishes it, too narrow, because the games of a question are no independent evidence."]
    if category["style_coefficients"]:
        notes.append(
            f"Style control: lengths in {category['length_in']}; at the mean style of these battles, so scores depend "
            "on the models beside them."
        )
    if category["n_without_style"]:
        notes.append(
            f"Style control: {category['n_without_style']} questions of models left out, as an answer's style is not "
            "known."
        )
    notes += [f"{caveat}." for caveat in category["caveats"]]
    rows = tuple((each["model"], each) for each in category["models"])
    columns = _columns(category["models"], f"{category['interval_percent']:g} %")
    return ResultTable(f"{title}, against {category['baseline']}", columns, rows, tuple(notes))


class ArenaHard(ComparisonBenchmark):
    """Arena-Hard's games against an earlier model or a file of answers: the score, with its interval by question."""

    kind: Literal["arena_hard"] = Field("arena_hard", description="Arena-Hard's games between two models' answers")
    version: Version = Field("v0.1", description="How verdicts are read and scored")

    title: ClassVar[str] = "Arena-Hard"
    command: ClassVar[type[EvaluateCommand]] = ArenaHardCommand
    prompt_completions: ClassVar[int] = 2
    prompt_sampling: ClassVar[Sampling] = SAMPLING

    def mismatches(self, oracle: bool) -> Iterator[Mismatch]:
        """Also what held-out prompts can't give."""
        if self.questions is None:
            if self.prompt is not None:
                yield "questions", None, "a file, as its judge has the benchmark's prompt"
            if self.opponent is None:
                yield "against", self.against, "m0 or previous, as the held-out prompts are this run's own"
        yield from super().mismatches(oracle)

    def files(self) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """Questions, the judge's prompt, a baseline's answers."""
        against = None if self.opponent else self.against
        readers = ((self.questions, read_questions), (self.prompt, read_judge_prompt), (against, read_answers))
        yield from ((name, reader) for name, reader in readers if name)

    def requests(self) -> Requests:
        """The questions of a file."""
        asked = read_questions(Path(str(self.questions)))
        return Requests([Prompt(each.id, (Message("user", each.text),)) for each in asked], self.temperature)

    def answers_text(self, model: str, prompts: Sequence[Prompt], turns: Sequence[Sequence[str]]) -> str:
        """As upstream's answer files."""
        rows = zip(prompts, turns, strict=True)
        return json_lines(_answer_row(model, prompt.id, each[0]) for prompt, each in rows)

    async def score(self, inputs: ScoringInputs) -> Results:
        """Judgments, written in upstream's format, and what they come to."""
        theirs = self._answers(inputs.opponent, inputs.folder / "baseline.jsonl")
        own = self._answers(inputs.model, inputs.folder / "answers.jsonl")
        names = list(by_model(read_answers(theirs)))
        if len(names) != 1:
            raise UserError(f"{theirs}: holds answers of {len(names)} models; fix: name a file with those of one")
        both, judgments = inputs.folder / "both.jsonl", inputs.folder / "judgments.jsonl"
        write_atomic(both, "".join(path.read_text(encoding="utf-8").rstrip("\n") + "\n" for path in (theirs, own)))
        if inputs.judge is not None and self.prompt is not None:
            questions, prompt = Path(str(self.questions)), Path(self.prompt)
            await judge_models(inputs.judge, judgments, both, questions, prompt, names[0], self.version)
        else:
            if self.questions is None:
                asked = [(Question(each.id, "", conversation(each.messages)), each) for each in inputs.prompts]
            else:
                given = read_questions(Path(self.questions))
                asked = [(each, Prompt(each.id, (Message("user", each.text),))) for each in given]
            models = by_model(read_answers(both))
            base, mine = models[names[0]], models[inputs.model.name]
            rows = await self.compare_one_by_one(inputs, lambda judge: mirrored_games(judge, asked, base, mine))
            write_atomic(judgments, json_lines(rows))
        found = results(judgments, both, self.version, names[0], seed=inputs.seed % 2**32)
        return [each.as_dict() for each in found]

    def _answers(self, model: EvaluatedModel | None, path: Path) -> Path:
        """The file of a model's answers; None: the baseline of a file. Held-out answers are written to ``path``."""
        if model is None:
            return Path(self.against)
        if self.has_requests:
            return model.answers
        rows = (_answer_row(model.name, each.prompt.id, each.own[0].text) for each in model.held_out())
        write_atomic(path, json_lines(rows))
        return path

    def heading(self, against: str | None) -> str:
        """With the version."""
        return super().heading(against).replace(self.title, f"{self.title} {self.version}", 1)

    def rows(self, results: Results) -> Sequence[tuple[str, Figures]]:
        """A row to each category."""
        return [
            (f" {category['category']}".rstrip(), {**each, "caveats": category["caveats"]})
            for category in results
            for each in category["models"]
        ]

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:
        """The score, its interval, style-controlled scores."""
        return _columns(rows)

    def notes(self, rows: Sequence[Figures]) -> tuple[str, ...]:
        """What keeps the scores from being the leaderboard's."""
        return tuple(dict.fromkeys(f"{caveat}." for each in rows for caveat in each["caveats"]))


def _answer_row(model: str, question: str, text: str) -> dict[str, object]:
    return {"question_id": question, "model_id": model, "choices": [{"turns": [{"content": text}]}]}


def _columns(rows: Sequence[Figures], level: str = "interval,") -> tuple[Column, ...]:
    controls = dict.fromkeys(name for figures in rows for name in figures["controlled"])
    return (
        Column("score", "score", 1),
        Column(f"{level} by question", "questions", 1),
        Column(f"{level} by row", "rows", 2, detail=True),
        *(Column(name, f"controlled.{name}", 1) for name in controls),
        Column("rating", "rating", 0, detail=True),
        Column("tokens", "avg_tokens", 0, detail=True),
        Column("questions", "n_questions"),
        Column("battles", "n_battles"),
        Column("left out", counts=(("unreadable", "n_unreadable"), ("refused", "n_refused"))),
    )
