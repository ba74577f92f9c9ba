"""Arena-Hard (lmarena/arena-hard-auto): games against a baseline's answers, by a judge or from stored judgments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from metareward.errors import UserError
from metareward.evaluation.arena_hard.data import (
    Question,
    Version,
    by_model,
    read_answers,
    read_judge_prompt,
    read_judgments,
    read_questions,
    version_named,
)
from metareward.evaluation.arena_hard.judge import SAMPLING, judge_games, mirrored_games
from metareward.evaluation.arena_hard.results import ROUNDS, ArenaResult, evaluate
from metareward.evaluation.base import (
    Column,
    ComparisonBenchmark,
    Completions,
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
from metareward.evaluation.judges import JudgeSpec
from metareward.generation.progress import JUDGMENTS
from metareward.method.template import conversation
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.types import Message, Prompt


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
    questions: Path | None = Field(None, description="question.jsonl, to ask a judge.")
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
            await judge_models(
                session.judge,
                self.judgments,
                self.answers,
                self.questions,
                self.prompt,
                self.baseline,
                version_named(self.version),
            )
        categories = [each.as_dict() for each in self.results(session.seed)]
        tables = tuple(_category_table(each) for each in categories)
        return Evaluated(tables, {"benchmark": "arena_hard", "categories": categories})

    def results(self, seed: int = 0) -> tuple[ArenaResult, ...]:
        """Every category of the judgments. Raises `UserError` for files that can't be read."""
        version = version_named(self.version)
        return results(self.judgments, self.answers, version, self.baseline, self.rounds, self.style_rounds, seed)


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
    rows = tuple((each["model"], each) for each in category["models"])
    columns = _columns(category["models"], f"{category['interval_percent']:g} %")
    return ResultTable(f"{title}, against {category['baseline']}", columns, rows, tuple(notes))


class ArenaHard(ComparisonBenchmark):
    """Arena-Hard's games against an earlier model or a file of answers: the score, with its interval by question."""

    kind: Literal["arena_hard"] = Field("arena_hard", description="Arena-Hard's games between two models' answers")
    version: Version = Field("v0.1", description="How verdicts are read and scored")

    title: ClassVar[str] = "Arena-Hard"
    command: ClassVar[type[EvaluateCommand]] = ArenaHardCommand

    def mismatches(self, pocket: bool) -> Iterator[Mismatch]:
        """Also what held-out prompts can't give."""
        if self.questions is None:
            if self.prompt is not None:
                yield "questions", None, "a file, as its judge has the benchmark's prompt"
            if self.opponent is None:
                yield "against", self.against, "m0 or previous, as the held-out prompts are this run's own"
        yield from super().mismatches(pocket)

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

    def judge_completions(self, held_out: int, n: int, max_tokens: int) -> Completions | None:
        """Two games a question, or N judgments of both answers."""
        if self.asked_judge is None:
            return None
        pairs, itself = self.requests().completions if self.has_requests else held_out, self.judge == "itself"
        if self.prompt is not None:
            return Completions(JUDGMENTS, pairs * 2, SAMPLING.max_tokens, itself, like_run=False)
        return Completions(JUDGMENTS, pairs * 2 * n, max_tokens, itself)

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
            models = by_model(read_answers(both))
            base, mine, asked = models[names[0]], models[inputs.model.name], self._questions(inputs)
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

    def _questions(self, inputs: ScoringInputs) -> list[tuple[Question, Prompt]]:
        """The questions, each with what the judge sees of it."""
        if self.questions is None:
            return [(Question(each.id, "", conversation(each.messages)), each) for each in inputs.prompts]
        asked = read_questions(Path(self.questions))
        return [(each, Prompt(each.id, (Message("user", each.text),))) for each in asked]

    def heading(self, against: str | None) -> str:
        """With the version."""
        return super().heading(against).replace(self.title, f"{self.title} {self.version}", 1)

    def rows(self, results: Results) -> Sequence[tuple[str, Figures]]:
        """A row to each category."""
        return [(f" {category['category']}".rstrip(), each) for category in results for each in category["models"]]

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:
        """The score, its interval, style-controlled scores."""
        return _columns(rows)


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
        Column("left out", counts=(("unparsable", "n_unparsable"), ("refused", "n_refused"))),
    )
