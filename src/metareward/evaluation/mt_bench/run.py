"""MT-Bench (lm-sys/FastChat, llm_judge): both turns of every answer graded by a judge, or stored judgments read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import ClassVar, Literal

from pydantic import Field

from metareward.errors import UserError
from metareward.evaluation.base import (
    Column,
    Completions,
    EvaluateCommand,
    Evaluated,
    EvaluateSession,
    Figures,
    JudgedBenchmark,
    Mismatch,
    Requests,
    Results,
    ResultTable,
    ScoringInputs,
)
from metareward.evaluation.input_checks import require_readable
from metareward.evaluation.judges import JudgeClient, JudgeSpec, Output, ask_judge, cached_queries, grade
from metareward.evaluation.mt_bench.data import (
    GradingPrompts,
    MtBenchScore,
    Question,
    Turns,
    evaluate,
    prompt_name,
    question_about,
    read_answers,
    read_grades,
    read_prompts,
    read_questions,
    read_references,
    read_score,
)
from metareward.generation.progress import JUDGMENTS
from metareward.generation.verdicts import RubricGrader
from metareward.seeds import derive
from metareward.settings import Text
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.text import replace_surrogates
from metareward.types import Message, Prompt, Sampling

# Upstream's sampling. A judgment that the token limit cut off may hold no score; then it has none.
SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=2048)
Rows = tuple[dict[str, object], ...]
Models = Mapping[str, Mapping[int, Turns]]


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn of one model's answer to a question."""

    model: str
    question: Question
    answers: Turns
    number: int

    @property
    def id(self) -> str:
        return f"{self.model} on {self.question.id}, turn {self.number}"

    def row(self, judge: Sequence[str], query: Prompt, refused: bool, score: float | None) -> dict[str, object]:
        """The judgment in upstream's format, without what the judge wrote."""
        return {
            "question_id": self.question.id,
            "model": self.model,
            "judge": judge,
            "user_prompt": query.messages[-1].content,
            "score": -1 if score is None else score,
            "turn": self.number,
            "outcome": "refused" if refused else "judged" if score is not None else "unreadable",
        }


def _turns(questions: Mapping[int, Question], models: Models) -> list[_Turn]:
    return [
        _Turn(model, questions[number], turns, turn)
        for model, answers in models.items()
        for number, turns in answers.items()
        if number in questions
        for turn in (1, 2)
    ]


async def grade_turns(
    client: JudgeClient,
    prompts: GradingPrompts,
    questions: Mapping[int, Question],
    references: Mapping[int, Turns],
    models: Models,
) -> Rows:
    """A row for every model and both turns of every question that it has answered, by the benchmark's prompts.

    Raises `UserError` as `cached_queries` does, or when a reference answer is missing.
    """
    turns = _turns(questions, models)
    queries = []
    for each in turns:
        reference = references.get(each.question.id)
        messages = question_about(prompts, each.question, each.answers, reference, each.number)
        queries.append(Prompt(each.id, messages))

    async def work(query: Prompt) -> dict[str, object]:
        sampling = replace(SAMPLING, seed=derive(client.seed, "mt-bench", query.id))
        (reply,) = await ask_judge(client.engine, query.messages, sampling)
        return {"judgment": replace_surrogates(reply.text)}

    documents = (await cached_queries(client, queries, work, {"prompt": prompts.sha256})).documents
    rows = []
    for each, query in zip(turns, queries, strict=True):
        document = documents.get(each.id)
        judgment = None if document is None else str(document["judgment"])
        score = None if judgment is None else read_score(judgment)
        by = [client.name, prompt_name(each.question.category, each.number)]
        rows.append({**each.row(by, query, document is None, score), "judgment": judgment})
    return tuple(rows)


async def grade_turns_by_rubric(
    client: JudgeClient, grader: RubricGrader, questions: Mapping[int, Question], models: Models
) -> Rows:
    """The same rows by a judge that knows only its rubric: a turn's score is the mean of N judgments, on their scale.

    The judge sees the conversation up to the turn, and no reference answer. Raises `UserError` as `grade` does.
    """
    turns, outputs = _turns(questions, models), []
    for each in turns:
        asked, answers = each.question.turns, each.answers
        first, second = Message("user", asked[0]), (Message("assistant", answers[0]), Message("user", asked[1]))
        messages = (first,) if each.number == 1 else (first, *second)
        outputs.append(Output(each.id, Prompt(each.id, messages), answers[each.number - 1]))
    documents = (await grade(client, grader, outputs)).documents
    rows = []
    for each, output in zip(turns, outputs, strict=True):
        document = documents.get(each.id)
        scores = [score for score in document["scores"] if score is not None] if document else []
        mean = fmean(scores) if scores else None
        row = each.row([client.name, "rubric"], output.query(grader), document is None, mean)
        rows.append({**row, "scores": document and document["scores"]})
    return tuple(rows)


async def judge_answers(
    judge: JudgeSpec, judgments: Path, answers: Path, questions: Path, references: Path | None, prompts: Path
) -> None:
    """Write the judge's grades of every model in ``answers`` to ``judgments``; its replies are stored beside them."""
    models, asked, texts = read_answers(answers), read_questions(questions), read_prompts(prompts)
    given = read_references(references) if references else {}
    store = judgments.with_suffix(".sqlite")
    rows = await judge.run(store, lambda client: grade_turns(client, texts, asked, given, models))
    if not rows:
        raise UserError(f"{answers}: answers none of the questions; fix: check the ids")
    write_atomic(judgments, json_lines(rows))


def results(judgments: Path, questions: Path | None = None) -> tuple[MtBenchScore, ...]:
    """The scores of every model; with questions, by category and with what is missing."""
    asked = read_questions(questions) if questions else None
    return evaluate(read_grades(judgments, asked), asked)


class MtBenchCommand(EvaluateCommand):
    """MT-Bench: single-answer grading, per turn and per category."""

    judgments: Path = Field(description="Judgments: a file, or a folder of them; or the file to write.")
    questions: Path | None = Field(None, description="question.jsonl: gives the categories.")
    answers: Path | None = Field(None, description="Answers, a file or a folder, to ask a judge.")
    references: Path | None = Field(None, description="reference_answer/gpt-4.jsonl, to ask a judge.")
    prompts: Path | None = Field(None, description="judge_prompts.jsonl, to ask a judge.")

    async def evaluate(self, session: EvaluateSession) -> Evaluated:
        """Every model of the judgments, and a table by category where the questions are given."""
        if session.judge is not None:
            if self.answers is None or self.questions is None or self.prompts is None:
                raise UserError(
                    "--judge-engine: needs --answers, --questions, --prompts (judge_prompts.jsonl) and --references"
                )
            given = (self.answers, self.questions, self.references, self.prompts)
            await judge_answers(session.judge, self.judgments, *given)
        found = results(self.judgments, self.questions)
        require_readable({each.model: each.n_valid for each in found}, str(self.judgments), "score")
        figures = [asdict(each) for each in found]
        rows = tuple((str(each["model"]), each) for each in figures)
        models = ResultTable("MT-Bench", _MODELS, rows, _notes(figures))
        categories = (
            ResultTable(f"{each['model']} by category", _SCORES, tuple(each["categories"].items()), first="category")
            for each in figures
            if each["categories"]
        )
        return Evaluated((models, *categories), {"benchmark": "mt_bench", "models": figures})


_SCORES = (
    Column("score", "average"),
    Column("turn 1", "turn1"),
    Column("turn 2", "turn2"),
    Column("judged", "n_valid"),
)
_LEFT_OUT = (("missing", "n_missing"), ("unreadable", "n_failed"), ("refused", "n_refused"))
_MODELS = (*_SCORES, Column("left out", counts=_LEFT_OUT))


def _notes(rows: Sequence[Figures]) -> tuple[str, ...]:
    return tuple(f"{each['model']}: {caveat}." for each in rows for caveat in each.get("caveats", ()))


class MtBench(JudgedBenchmark):
    """MT-Bench: the mean score of both turns of each answer."""

    kind: Literal["mt_bench"] = Field("mt_bench", description="MT-Bench's grades of two turns")
    questions: Text = Field(description="File of the questions")
    references: Text | None = Field(None, description="The reference answers, for the judge's prompt")
    temperature: float = Field(0.0, ge=0.0, description="Sampling temperature of the answers")

    title: ClassVar[str] = "MT-Bench"
    command: ClassVar[type[EvaluateCommand]] = MtBenchCommand

    def mismatches(self, oracle: bool) -> Iterator[Mismatch]:
        """Also that the rubric has no place for reference answers."""
        if self.references is not None and self.prompt is None:
            yield "references", self.references, "nothing without prompt: the run's rubric has no place for it"
        yield from super().mismatches(oracle)

    def files(self) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """Questions, the judge's prompts, reference answers."""
        readers = ((self.questions, read_questions), (self.prompt, read_prompts), (self.references, read_references))
        yield from ((name, reader) for name, reader in readers if name)

    @property
    def has_requests(self) -> bool:
        """Always."""
        return True

    def requests(self) -> Requests:
        """The questions, a message to a turn."""
        questions = read_questions(Path(self.questions)).values()
        prompts = [Prompt(str(each.id), tuple(Message("user", turn) for turn in each.turns)) for each in questions]
        return Requests(prompts, self.temperature, turn_by_turn=True)

    def answers_text(self, model: str, prompts: Sequence[Prompt], turns: Sequence[Sequence[str]]) -> str:
        """As upstream's answer files."""
        return json_lines(
            {"question_id": int(prompt.id), "model_id": model, "choices": [{"index": 0, "turns": each}]}
            for prompt, each in zip(prompts, turns, strict=True)
        )

    def judge_completions(self, held_out: int, grader: RubricGrader) -> Completions | None:  # noqa: ARG002
        """One judgment of each turn by the benchmark's prompts, or N by the rubric."""
        turns, itself = self.requests().completions, self.judge == "itself"
        if self.prompt is not None:
            return Completions(JUDGMENTS, turns, SAMPLING.max_tokens, itself, like_run=False)
        return Completions(JUDGMENTS, turns * grader.n, grader.most_tokens, itself)

    async def score(self, inputs: ScoringInputs) -> Results:
        """Judgments, written in upstream's format, and what they come to."""
        assert inputs.judge is not None, "the recipe's check allows no oracle here"
        judgments, questions = inputs.folder / "judgments.jsonl", Path(self.questions)
        if self.prompt is not None:
            references = Path(self.references) if self.references else None
            answers, prompts = inputs.model.answers, Path(self.prompt)
            await judge_answers(inputs.judge, judgments, answers, questions, references, prompts)
        else:
            asked, models = read_questions(questions), read_answers(inputs.model.answers)
            rows = await inputs.judge.run(
                judgments.with_suffix(".sqlite"),
                lambda client: grade_turns_by_rubric(client, inputs.grader, asked, models),
            )
            write_atomic(judgments, json_lines(rows))
        return [asdict(each) for each in results(judgments, questions)]

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:  # noqa: ARG002
        """The score, overall and by turn."""
        return _MODELS

    def notes(self, rows: Sequence[Figures]) -> tuple[str, ...]:
        """What keeps the scores from being comparable with published ones."""
        return _notes(rows)
