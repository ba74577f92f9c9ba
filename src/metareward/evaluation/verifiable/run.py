"""IFEval, IFBench and your own tasks with known answers: what is asked, how responses are read, what is shown.

A file of responses has a row to a prompt: {"prompt", "response"}, as IFEval's, or {"key" or "id", "response"}.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from metareward.data.files import read_rows
from metareward.errors import UserError
from metareward.evaluation.base import (
    Benchmark,
    Column,
    EvaluateCommand,
    Evaluated,
    EvaluateSession,
    Figures,
    Requests,
    Results,
    ResultTable,
    ScoringInputs,
)
from metareward.evaluation.judges import JudgeClient, JudgeSpec, cached_queries
from metareward.evaluation.verifiable.answers import Checked, Task, check, counts, read_tasks
from metareward.evaluation.verifiable.instructions import (
    Followed,
    InstructedPrompt,
    follow,
    read_instructed_prompts,
)
from metareward.generation.progress import ANSWERS
from metareward.method.stats import mean_interval
from metareward.method.template import conversation
from metareward.seeds import derive
from metareward.settings import Text
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.text import replace_surrogates
from metareward.types import Judge, Message, Prompt, Sampling

VerdictRows = Sequence[Mapping[str, object]]


@dataclass(frozen=True, slots=True)
class Responses:
    """The responses of one model by prompt id."""

    model: str
    by_id: Mapping[str, str]


def read_responses(path: Path, prompts: Mapping[str, str]) -> Responses:
    """The responses of a file to ``prompts`` (texts by id); the model's name is ``model``, else the file's.

    Raises `UserError` for a response to none of the prompts, a second one to the same prompt, and for two models.
    """
    ids, found, models = {text: key for key, text in prompts.items()}, dict[str, str](), dict[str, None]()
    shared = Counter(prompts.values())
    for row in read_rows(path):
        name = next((each for each in ("key", "id") if row.has(each)), "prompt")
        key = ids.get(row.text(name)) if name == "prompt" else row.text(name)
        if name == "prompt" and shared[row.text("prompt")] > 1:
            raise row.error("prompt", "is that of several questions", "give the question's id, too")
        if key is None or key not in prompts:
            raise row.error(name, "is that of none of the questions", "give the questions that were answered")
        if row.has("prompt") and row.text("prompt") != prompts[key]:
            raise row.error("prompt", f"isn't that of question {key}", "give the questions that were answered")
        if key in found:
            raise row.error(name, "repeats that of an earlier row", "keep one response to each question")
        if not isinstance(row.fields.get("response"), str):
            raise row.error("response", "is missing or no text", "write the model's response")
        found[key] = row.fields["response"]
        models[row.text("model") if row.has("model") else path.stem] = None
        if len(models) > 1:
            raise row.error("model", f"is not {next(iter(models))}", "write one file for each model")
    return Responses(next(iter(models)), found)


def responses_text(model: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> str:
    """The file of one model's responses to ``prompts``."""
    return json_lines(
        {"key": prompt.id, "model": model, "prompt": conversation(prompt.messages), "response": text}
        for prompt, text in zip(prompts, texts, strict=True)
    )


async def respond(client: JudgeClient, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, str]:
    """The model's responses by prompt id, without those that it couldn't give. Raises `UserError` as `cached_queries`.

    A refusal in words is a response like any other.
    """
    if isinstance(client.backend, Judge):
        raise UserError(f"--engine {client.name}: only grades answers; fix: name a model, a recipe or a server")
    engine = client.engine

    async def work(prompt: Prompt) -> dict[str, object]:
        seeded = replace(sampling, seed=derive(client.seed, "answer", prompt.id))
        (reply,) = await engine.complete(prompt.messages, seeded, 1, "actor")
        return {"response": replace_surrogates(reply.text)}

    settings = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
    results = await cached_queries(client, prompts, work, settings, "answering", ANSWERS)
    return {key: str(document["response"]) for key, document in results.documents.items()}


# --- scores, in percent ---


def percent_interval(name: str, values: Sequence[float], groups: Sequence[str], seed: int) -> dict[str, object]:
    """``name`` in percent and ``name_interval``, 95 % over resampled prompts; None without any values."""
    if not values:
        return {name: None, f"{name}_interval": None}
    interval = mean_interval(values, groups, seed)
    return {name: 100 * interval.mean, f"{name}_interval": {"low": 100 * interval.low, "high": 100 * interval.high}}


def instruction_scores(
    prompts: Sequence[InstructedPrompt], followed: Mapping[str, Followed], seed: int
) -> dict[str, object]:
    """IFEval's four accuracies, by prompt (all of its instructions are followed) and by instruction; and by kind."""
    figures: dict[str, object] = {
        "n_questions": len(prompts),
        "n_judged": len(followed),
        "n_missing": len(prompts) - len(followed),
        "n_instructions": sum(len(each.strict) for each in followed.values()),
        "n_checker_errors": sum(each.errors for each in followed.values()),
    }
    by_kind: dict[str, Counter[str]] = {}
    for mode, verdicts in (
        ("strict", {key: each.strict for key, each in followed.items()}),
        ("loose", {key: each.loose for key, each in followed.items()}),
    ):
        whole = [float(all(each)) for each in verdicts.values()]
        figures |= percent_interval(f"prompt_{mode}", whole, list(verdicts), seed)
        groups, single = (
            [key for key, each in verdicts.items() for _ in each],
            [v for e in verdicts.values() for v in e],
        )
        figures |= percent_interval(f"instruction_{mode}", single, groups, seed)
        for prompt in prompts:
            for instruction, verdict in zip(prompt.instructions, verdicts.get(prompt.id, ()), strict=False):
                by_kind.setdefault(instruction.kind, Counter())[mode] += verdict
                by_kind[instruction.kind]["n"] += mode == "strict"
    figures["kinds"] = {
        kind: {
            "strict": 100 * found["strict"] / found["n"],
            "loose": 100 * found["loose"] / found["n"],
            "n": found["n"],
        }
        for kind, found in sorted(by_kind.items())
    }
    return figures


def answer_scores(tasks: Sequence[Task], checked: Mapping[str, Checked], seed: int) -> dict[str, object]:
    """The share of right answers in percent: of all responses, an unreadable one being no right answer, and of the
    readable ones. A response on which the regex timed out counts in neither."""
    outcomes = {key: each.outcome for key, each in checked.items() if each.outcome != "timeout"}
    found = counts(checked)
    readable = found["correct"] + found["wrong"]
    right = [float(outcome == "correct") for outcome in outcomes.values()]
    return {
        "n_questions": len(tasks),
        "n_judged": len(outcomes),
        "n_missing": len(tasks) - len(checked),
        "n_unreadable": found["unreadable"],
        "n_timeout": found["timeout"],
        **percent_interval("accuracy", right, list(outcomes), seed),
        "accuracy_readable": 100 * found["correct"] / readable if readable else None,
    }


# --- ``metareward evaluate`` and recipes ---


class VerifiableBenchmark(Benchmark):
    """What both have in common: a file of questions, one response to each, and no judge."""

    questions: Text = Field(description="File of the questions")
    temperature: float = Field(0.0, ge=0.0, description="Sampling temperature of the answers")

    answers_file: ClassVar[str] = "responses.jsonl"
    shown: ClassVar[tuple[Column, ...]]

    @classmethod
    def prompts(cls, questions: Path) -> Sequence[Prompt]:
        """The prompts of a file of questions."""
        raise NotImplementedError

    @classmethod
    def measure(cls, questions: Path, responses: Path, seed: int) -> tuple[dict[str, object], VerdictRows]:
        """The figures of one model, and a row with the verdict on each of its responses."""
        texts = {prompt.id: conversation(prompt.messages) for prompt in cls.prompts(questions)}
        given = read_responses(responses, texts)
        figures, verdicts = cls.verdicts(questions, given.by_id, seed)
        return {"model": given.model, **figures}, verdicts

    @classmethod
    def verdicts(cls, questions: Path, by_id: Mapping[str, str], seed: int) -> tuple[dict[str, object], VerdictRows]:
        """The same of responses by prompt id."""
        raise NotImplementedError

    @property
    def has_requests(self) -> bool:
        """Always."""
        return True

    def requests(self) -> Requests:
        """The questions."""
        return Requests(self.prompts(Path(self.questions)), self.temperature)

    def answers_text(self, model: str, prompts: Sequence[Prompt], turns: Sequence[Sequence[str]]) -> str:
        """As ``metareward evaluate`` and IFEval's own programs read it."""
        return responses_text(model, prompts, [each[0] for each in turns])

    async def score(self, inputs: ScoringInputs) -> Results:
        """The figures; every verdict is in ``verdicts.jsonl``."""
        figures, verdicts = self.measure(Path(self.questions), inputs.model.answers, inputs.seed)
        write_atomic(inputs.folder / "verdicts.jsonl", json_lines(verdicts))
        return [{**figures, "model": inputs.model.name}]

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:  # noqa: ARG002
        """The accuracies, and what they rest on."""
        return self.shown

    def notes(self, rows: Sequence[Figures]) -> tuple[str, ...]:
        """Which models answered a part of the questions only."""
        return partial_notes(rows)


def partial_notes(rows: Sequence[Figures]) -> tuple[str, ...]:
    """A note for every row that is about a part of the questions."""
    return tuple(
        f"{each['model']}: partial, {each['n_missing']} of {each['n_questions']} questions have no response."
        for each in rows
        if each["n_missing"]
    )


class ResponsesCommand(EvaluateCommand):
    """Responses to a file of questions: stored ones, or those of a model that is asked first."""

    questions: Path = Field(description="File of the questions.")
    responses: tuple[Path, ...] = Field((), description="The model's responses, or the file to write. Again for more.")
    temperature: float = Field(0.0, ge=0.0, description="Sampling temperature of the model that is asked.")
    max_tokens: int = Field(1024, ge=1, description="Its longest response, in new tokens.")

    asks: ClassVar[Literal["judge", "model", "nobody"]] = "model"
    benchmark: ClassVar[type[VerifiableBenchmark]]

    async def evaluate(self, session: EvaluateSession) -> Evaluated:
        """A row to each file of responses; the verdicts on single responses are in the numbers."""
        if session.judge is not None:
            await self._respond(session.judge)
        elif not self.responses:
            raise UserError("give --responses, a file of the model's responses, or --engine to ask a model")
        found = [self.benchmark.measure(self.questions, path, session.seed) for path in self.responses]
        rows = tuple((str(figures["model"]), figures) for figures, _ in found)
        if repeated := [name for name, n in Counter(name for name, _ in rows).items() if n > 1]:
            raise UserError(f"--responses: two files have responses of {repeated[0]!r}; fix: give one for each model")
        notes = partial_notes([figures for figures, _ in found])
        table = ResultTable(self.benchmark.title, self.benchmark.shown, rows, notes)
        models = [{**figures, "verdicts": list(verdicts)} for figures, verdicts in found]
        kind = self.benchmark.model_fields["kind"].default
        return Evaluated((table, *self.details(rows)), {"benchmark": kind, "models": models})

    async def _respond(self, model: JudgeSpec) -> None:
        """Write the model's responses to ``responses``; its replies are stored beside them."""
        if len(self.responses) != 1:
            raise UserError("--engine: needs one --responses, the file to write")
        (path,), prompts = self.responses, self.benchmark.prompts(self.questions)
        store = path.with_suffix(".sqlite")
        if path.exists() and not store.exists():
            raise UserError(
                f"{path}: is there already, not written with --engine; fix: leave out --engine, or name another file"
            )
        sampling = Sampling(self.temperature, 1.0, self.max_tokens)
        found = await model.run(store, lambda client: respond(client, prompts, sampling))
        answered = [prompt for prompt in prompts if prompt.id in found]
        rows = responses_text(model.name, answered, [found[prompt.id] for prompt in answered])
        write_atomic(path, rows)

    def details(self, rows: Sequence[tuple[str, Figures]]) -> Sequence[ResultTable]:  # noqa: ARG002
        """Tables beside the one of all models."""
        return ()


class IfEvalCommand(ResponsesCommand):
    """IFEval and IFBench: instructions that a program can check, strict and loose."""

    questions: Path = Field(description="IFEval's input_data.jsonl, or IFBench_test.jsonl.")

    def details(self, rows: Sequence[tuple[str, Figures]]) -> Sequence[ResultTable]:
        """Every model's accuracies by kind of instruction."""
        columns = (Column("strict %", "strict"), Column("loose %", "loose"), Column("instructions", "n"))
        return [
            ResultTable(f"{model} by instruction", columns, tuple(figures["kinds"].items()), first="instruction")
            for model, figures in rows
        ]


class IfEval(VerifiableBenchmark):
    """IFEval and IFBench: the share of prompts, and of instructions, that the model follows. No judge is asked."""

    kind: Literal["ifeval"] = Field("ifeval", description="Instructions that a program checks: IFEval, IFBench")
    questions: Text = Field(description="IFEval's input_data.jsonl or IFBench_test.jsonl")

    title: ClassVar[str] = "IFEval"
    command: ClassVar[type[EvaluateCommand]] = IfEvalCommand
    shown: ClassVar[tuple[Column, ...]] = (
        Column("prompts strict %", "prompt_strict"),
        Column("95 %", "prompt_strict_interval", 1),
        Column("loose %", "prompt_loose"),
        Column("instructions strict %", "instruction_strict"),
        Column("loose %", "instruction_loose"),
        Column("judged", "n_judged"),
        Column("left out", counts=(("missing", "n_missing"),)),
        Column("checker errors", "n_checker_errors", detail=True),
    )

    def files(self) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """The questions."""
        yield self.questions, read_instructed_prompts

    @classmethod
    def prompts(cls, questions: Path) -> Sequence[Prompt]:
        """The prompts, which are single turns."""
        return [Prompt(each.id, (Message("user", each.prompt),)) for each in read_instructed_prompts(questions)]

    @classmethod
    def verdicts(cls, questions: Path, by_id: Mapping[str, str], seed: int) -> tuple[dict[str, object], VerdictRows]:
        """Verdicts in the form {"key", "strict": [...], "loose": [...]}, in the order of the prompt's instructions."""
        prompts = read_instructed_prompts(questions)
        followed = {each.id: follow(each, by_id[each.id]) for each in prompts if each.id in by_id}
        rows = [{"key": key, "strict": each.strict, "loose": each.loose} for key, each in followed.items()]
        return instruction_scores(prompts, followed, seed), rows


class VerifiableCommand(ResponsesCommand):
    """Your own tasks with known answers: exact, a number, a choice, or a regular expression."""


class Verifiable(VerifiableBenchmark):
    """Tasks of your own whose right answers are known: the share that the model gets right. No judge is asked."""

    kind: Literal["verifiable"] = Field("verifiable", description="Tasks with a known answer")
    questions: Text = Field(description="File of tasks, each with kind and answer")

    title: ClassVar[str] = "Tasks with a known answer"
    command: ClassVar[type[EvaluateCommand]] = VerifiableCommand
    shown: ClassVar[tuple[Column, ...]] = (
        Column("right %", "accuracy"),
        Column("95 %", "accuracy_interval", 1),
        Column("of readable %", "accuracy_readable"),
        Column("unreadable", "n_unreadable"),
        Column("judged", "n_judged"),
        Column("left out", counts=(("missing", "n_missing"), ("timed out", "n_timeout"))),
    )

    def files(self) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """The tasks."""
        yield self.questions, read_tasks

    @classmethod
    def prompts(cls, questions: Path) -> Sequence[Prompt]:
        """The conversations of the tasks."""
        return [Prompt(each.id, each.messages) for each in read_tasks(questions)]

    @classmethod
    def verdicts(cls, questions: Path, by_id: Mapping[str, str], seed: int) -> tuple[dict[str, object], VerdictRows]:
        """Verdicts in the form {"id", "outcome", "answer"}, the answer being what was read from the response."""
        tasks = read_tasks(questions)
        checked = {each.id: check(each, by_id[each.id]) for each in tasks if each.id in by_id}
        return answer_scores(tasks, checked, seed), [{"id": key, **asdict(each)} for key, each in checked.items()]


# The commands and the benchmarks name each other.
IfEvalCommand.benchmark = IfEval
VerifiableCommand.benchmark = Verifiable
