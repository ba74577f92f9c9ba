"""The `Benchmark` protocol: settings in a recipe, what the model is asked, how its answers are scored, what is shown.

A new benchmark is a subclass of `Benchmark` and one line in `metareward.evaluation.benchmarks.BENCHMARKS`. A recipe may
also name a subclass in another package: ``kind: package.module:Class``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import Field, model_validator

from metareward.data.files import HUB, resolve_file
from metareward.evaluation.compare import (
    SAMPLING,
    OracleJudge,
    PairwiseJudge,
    RubricPairwiseJudge,
    StoredScoresJudge,
)
from metareward.evaluation.held_out import HeldOut, Oracle
from metareward.evaluation.judges import JudgeSpec, verdict_store
from metareward.generation.progress import JUDGMENTS
from metareward.generation.verdicts import RubricGrader
from metareward.method.judge import Rubric
from metareward.settings import Count, Section, Text
from metareward.storage.serialization import json_lines
from metareward.types import Candidate, Prompt, Sampling, Scored

T = TypeVar("T")
Figures = Mapping[str, Any]
Results = Sequence[Figures]
Mismatch = tuple[str, object, str]
Opponent = Literal["m0", "previous"]
Iteration = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Requests:
    """What the model answers. With ``turn_by_turn`` each message of a prompt is a turn of its own."""

    prompts: Sequence[Prompt]
    temperature: float = 0.0
    turn_by_turn: bool = False

    @property
    def completions(self) -> int:
        """How many answers that makes."""
        return sum(len(prompt.messages) if self.turn_by_turn else 1 for prompt in self.prompts)


class Price(Section):
    """What a judge's tokens cost."""

    prompt: float = Field(ge=0.0, description="Of a million prompt tokens")
    completion: float = Field(ge=0.0, description="Of a million completion tokens")
    currency: Text = Field("USD", description="Its unit")

    def of(self, prompt_tokens: float, completion_tokens: float) -> str:
        """The price of so many tokens with its unit, such as ``12.40 USD``."""
        return f"{(prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6:,.2f} {self.currency}"


@dataclass(frozen=True, slots=True)
class Completions:
    """At most ``calls`` completions of ``role``, each of at most ``max_tokens``, by the model itself or another judge.

    ``like_run``: the run makes such completions too, so their measured length holds for these. ``judge``: the benchmark
    whose judge is asked, if `plan` lists its cost, from ``price`` and the characters of its prompt besides the question
    and the answer.
    """

    role: str
    calls: int
    max_tokens: int
    itself: bool = True
    like_run: bool = True
    judge: str | None = None
    prompt_chars: int = 0
    price: Price | None = None


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model of the run: its answers to the requests (a file), and its records on the run's held-out prompts."""

    name: str
    answers: Path
    held_out: Callable[[], Sequence[HeldOut]]


@dataclass(frozen=True, slots=True)
class ScoringInputs:
    """All that a score rests on. ``folder`` is where the benchmark writes; ``prompts`` are the held-out ones.

    ``opponent`` is the earlier model of `Benchmark.opponent`; ``judge`` is None where `Benchmark.asked_judge` is.
    ``first`` is M0. ``verdicts`` is a folder for replies of the judge that hold for all models of the run. Models
    judge by ``rubric``; ``grader`` is `Benchmark.grader`.
    """

    model: EvaluatedModel
    opponent: EvaluatedModel | None
    first: EvaluatedModel
    folder: Path
    verdicts: Path
    prompts: Sequence[Prompt]
    rubric: Rubric
    grader: RubricGrader
    oracle: Oracle | None
    judge: JudgeSpec | None
    seed: int


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of a result: its heading and its dotted key.

    ``error`` is the key of its standard error. Shares are shown in percent, a p-value that rounds to 0 as "< 0.0001".
    A ``{low, high}`` value is an interval; ``counts`` are what was left out, by word, instead of a key. Only
    ``metareward evaluate`` shows a ``detail``.
    """

    label: str
    key: str = ""
    digits: int = 2
    error: str | None = None
    unit: Literal["", "share", "p"] = ""
    counts: tuple[tuple[str, str], ...] = ()
    detail: bool = False

    def cell(self, figures: Figures, least_digits: int = 0) -> str:
        """The figure as text, "-" where there is nothing to count."""
        if self.counts:
            left_out = ((figures.get(key) or 0, word) for word, key in self.counts)
            return ", ".join(f"{count} {word}" for count, word in left_out if count) or "0"
        value, digits = figure(figures, self.key), self.digits if self.detail else max(self.digits, least_digits)
        if value is None:
            return "-"
        if isinstance(value, Mapping):
            return f"{value['low']:.{digits}f} to {value['high']:.{digits}f}"
        if self.unit == "p" and value < 0.5 * 10**-digits:
            return f"< {10**-digits:.{digits}f}"
        error = figure(figures, self.error) if self.error else None
        scale = 100 if self.unit == "share" else 1
        text = f"{scale * value:.{digits}f}" if isinstance(value, float) else str(value)
        return text if error is None else f"{text} ± {error:.{digits}f}"


def figure(figures: Figures, key: str) -> Any:
    """The value at a dotted key, None where there is none."""
    found: object = figures
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


@dataclass(frozen=True, slots=True)
class ResultTable:
    """Rows of figures under columns; ``notes`` say what the figures rest on."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, Figures], ...]
    notes: tuple[str, ...] = ()
    first: str = "model"


@dataclass(frozen=True, slots=True)
class EvaluateSession:
    """What ``metareward evaluate`` gives every command: whom it asks if one is named, how to name others, the seed."""

    judge: JudgeSpec | None
    judge_named: Callable[[str], JudgeSpec]
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The tables to print and the numbers for ``--json``."""

    tables: tuple[ResultTable, ...]
    numbers: Mapping[str, object]


class EvaluateCommand(Section):
    """``metareward evaluate KIND``: its fields are the command's options, its docstring the command's help.

    ``asks``: whom `EvaluateSession.judge` names, a judge (``--judge-engine``), the evaluated model (``--engine``) or
    nobody.
    """

    asks: ClassVar[Literal["judge", "model", "nobody"]] = "judge"

    async def evaluate(self, session: EvaluateSession) -> Evaluated:
        """The numbers from named files, after the judge was asked for what isn't stored. Raises `UserError`."""
        raise NotImplementedError


class Benchmark(Section):
    """One benchmark of a recipe; M_t is the evaluated model. A subclass adds settings and overrides what differs."""

    kind: str = Field(description="Which benchmark, or package.module:Class of one of yours")
    name: str = Field(
        "",
        pattern=r"^[A-Za-z][A-Za-z0-9_-]*$",
        description="Its folder under iter-*/eval and its title in the report; the kind if it isn't given",
    )
    models: Annotated[tuple[Iteration, ...], Field(strict=False)] = Field(
        (), description="Measured after these iterations, such as [0, 4]; empty for after each"
    )

    title: ClassVar[str]
    answers_file: ClassVar[str] = "answers.jsonl"
    command: ClassVar[type[EvaluateCommand]]
    # The settings that a resumed run may change: no stored result depends on them.
    changeable: ClassVar[frozenset[str]] = frozenset({"models"})

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or values.get("name"):
            return values
        kind = values.get("kind") or cls.model_fields["kind"].default
        return {**values, "name": str(kind).rpartition(":")[2]}

    def with_local_files(self, network: bool) -> Benchmark:
        """The same with paths for ``hub:`` names of files, which are fetched if ``network`` allows it."""
        named = {name: getattr(self, name) for name in type(self).model_fields}
        hub = {name: value for name, value in named.items() if isinstance(value, str) and value.startswith(HUB)}
        return self.model_copy(update={name: str(resolve_file(value, network)) for name, value in hub.items()})

    # --- checked before the run begins ---

    def mismatches(self, oracle: bool) -> Iterator[Mismatch]:  # noqa: ARG002
        """Settings that don't fit together: field, value, what is expected. ``oracle``: one knows the prompts."""
        return iter(())

    def files(self) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """The files that it needs, each with a reader that raises `UserError` for a bad one."""
        return iter(())

    def digests(self) -> Mapping[str, str]:
        """The digests of texts that it only names and that its results depend on, such as a rubric's."""
        return {}

    # --- who is asked what ---

    @property
    def opponent(self) -> Opponent | None:
        """The earlier model that M_t is compared with; M_t is not measured where that is M_t itself."""
        return None

    @property
    def has_requests(self) -> bool:
        """Whether M_t answers `requests`, for itself or as a later model's opponent."""
        return False

    def requests(self) -> Requests:
        """What M_t is asked. Raises `UserError` for a file of questions that can't be read."""
        return Requests(())

    def answers_text(self, model: str, prompts: Sequence[Prompt], turns: Sequence[Sequence[str]]) -> str:
        """The file of answers: of each prompt that was answered, what the model wrote in each turn."""
        rows = zip(prompts, turns, strict=True)
        return json_lines({"id": prompt.id, "model": model, "turns": list(each)} for prompt, each in rows)

    @property
    def asked_judge(self) -> str | None:
        """The judge that `score` asks: a name that `JudgeSpec` takes. None: nobody is asked."""
        return None

    @property
    def rubric_judgments(self) -> int:
        """Judgments of each answer where the judge scores by the run's rubric and samples."""
        return 1

    def grader(self, run: RubricGrader) -> RubricGrader:
        """How a judge scores by a rubric; ``run``: by the run's, with `rubric_judgments` of each answer."""
        return run

    def judge_completions(self, held_out: int, grader: RubricGrader) -> Completions | None:  # noqa: ARG002
        """What the judge is asked about one model, at most; there are ``held_out`` held-out prompts."""
        return None

    # --- results ---

    async def score(self, inputs: ScoringInputs) -> Results:
        """The results of one model, ready for JSON; None where there is nothing to count, never NaN.

        Raises `UserError` for files that can't be read or don't fit each other.
        """
        raise NotImplementedError

    def incomplete(self, results: Results) -> str | None:  # noqa: ARG002
        """Why the judge is asked again by the next start of the run; None where the results are final."""
        return None

    def facts(self, inputs: ScoringInputs) -> dict[str, object]:
        """What the results rest on, stored beside them: whom the model is compared with, and who judges by what."""
        against = inputs.opponent.name if inputs.opponent else None
        return {"against": against, "judge": None, "by_rubric": False}

    def heading(self, against: str | None) -> str:
        """The title of the table of all models; ``against`` if it is the same for all."""
        return f"{self.title}{f', against {against}' if against else ''}"

    def rows(self, results: Results) -> Sequence[tuple[str, Figures]]:
        """The rows of one model's results; the text follows the model's name, such as " math" for a category."""
        return [("", figures) for figures in results]

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:
        """What is shown of these rows."""
        raise NotImplementedError

    def tables(self, rows: Sequence[Figures]) -> tuple[tuple[str, tuple[Column, ...]], ...]:
        """The tables that these rows make, each with a title of its own: one, unless they say different things."""
        return (("", self.columns(rows)),)

    def notes(self, rows: Sequence[Figures]) -> tuple[str, ...]:  # noqa: ARG002
        """What the figures rest on."""
        return ()


class JudgedBenchmark(Benchmark):
    """A benchmark whose results are a judge's: by its own prompt, or by the run's rubric where ``prompt`` is empty."""

    judge: Text = Field(
        "itself",
        description="'itself': the model; 'oracle': the world's program; a model folder, a recipe, URL#MODEL, or "
        "package.module:name of a judge of yours",
    )
    prompt: Text | None = Field(
        None, description="The judge's prompt, the benchmark's own file; empty: it scores by judgments.rubric"
    )
    judgments: Count = Field(3, description="Judgments of each answer where the judge scores by the rubric")

    @property
    def stored_judgments(self) -> bool:
        """Whether all that is needed was asked when the models were measured on the held-out prompts."""
        return False

    @property
    def asked_judge(self) -> str | None:
        """Nobody where an oracle judges or the judgments are stored."""
        return None if self.judge == "oracle" or self.stored_judgments else self.judge

    @property
    def rubric_judgments(self) -> int:
        """Of ``judgments``."""
        return self.judgments

    def mismatches(self, oracle: bool) -> Iterator[Mismatch]:
        """The oracle compares outputs only, and without a prompt."""
        if self.judge == "oracle" and not (oracle and self._oracle_can_judge):
            yield (
                "judge",
                "oracle",
                "another judge: the oracle compares answers to the held-out prompts of a world",
            )
        if self.judge == "oracle" and self.prompt is not None:
            yield "prompt", self.prompt, "nothing, as the oracle is asked no question"

    @property
    def _oracle_can_judge(self) -> bool:
        return False

    def facts(self, inputs: ScoringInputs) -> dict[str, object]:
        """Also the judge."""
        by_rubric = self.judge != "oracle" and self.prompt is None
        return {**super().facts(inputs), "judge": self.judge, "by_rubric": by_rubric}

    def heading(self, against: str | None) -> str:
        """Also who judges."""
        judge = {"itself": "each model itself", "oracle": "the oracle"}.get(self.judge, self.judge)
        how = " by the run's rubric" if self.judge != "oracle" and self.prompt is None else ""
        return f"{super().heading(against)}, judged by {judge}{how}"


class ComparisonBenchmark(JudgedBenchmark):
    """A judged benchmark that compares M_t's answers with an earlier model's, or with a file of outputs."""

    against: Text = Field("m0", description="'m0', 'previous', or a file of outputs in the benchmark's format")
    questions: Text | None = Field(None, description="File of the questions; empty for the held-out prompts")
    temperature: float = Field(0.0, ge=0.0, description="Sampling temperature of the answers; held-out ones are there")

    # What the judge is asked about a pair by the benchmark's own prompt: how many completions, and their sampling.
    prompt_completions: ClassVar[int] = 1
    prompt_sampling: ClassVar[Sampling] = SAMPLING

    @property
    def opponent(self) -> Opponent | None:
        """Of ``against``."""
        return "m0" if self.against == "m0" else "previous" if self.against == "previous" else None

    @property
    def has_requests(self) -> bool:
        """Where there is a file of questions."""
        return self.questions is not None

    @property
    def stored_judgments(self) -> bool:
        """M_t judged its own held-out answers and M0's."""
        held_out = self.questions is None and self.prompt is None
        return held_out and self.against == "m0" and self.judge == "itself"

    @property
    def _oracle_can_judge(self) -> bool:
        return self.questions is None

    def facts(self, inputs: ScoringInputs) -> dict[str, object]:
        """Also the file that the answers are compared with."""
        return {**super().facts(inputs), "against": inputs.opponent.name if inputs.opponent else self.against}

    def judge_completions(self, held_out: int, grader: RubricGrader) -> Completions | None:
        """By the benchmark's prompt ``prompt_completions`` of each pair; by the rubric N judgments of both answers."""
        if self.asked_judge is None:
            return None
        pairs, itself = self.requests().completions if self.has_requests else held_out, self.judge == "itself"
        if self.prompt is not None:
            calls = pairs * self.prompt_completions
            return Completions(JUDGMENTS, calls, self.prompt_sampling.max_tokens, itself, like_run=False)
        return Completions(JUDGMENTS, pairs * 2 * grader.n, grader.most_tokens, itself)

    async def compare_one_by_one(self, inputs: ScoringInputs, work: Callable[[PairwiseJudge], Awaitable[T]]) -> T:
        """``work`` with the judge that sees one output at a time: by the rubric, an oracle, or stored scores."""
        if inputs.judge is not None:
            # Each model is a judge of its own; any other one is asked about M0's answers once for all models.
            itself, folder = self.judge == "itself", inputs.verdicts
            store = inputs.folder / "judge.sqlite" if itself else verdict_store(folder, inputs.judge, inputs.grader)
            return await inputs.judge.run(store, lambda client: work(RubricPairwiseJudge(client, inputs.grader)))
        if self.stored_judgments:
            scores_N = {
                (record.prompt.id, answer.text): stored_scores(answer)
                for record in inputs.model.held_out()
                for answer in (*record.anchors_K, *record.own)
            }
            return await work(StoredScoresJudge(inputs.model.name, scores_N))
        assert inputs.oracle is not None, "the recipe's check allows an oracle only where there is one"
        return await work(OracleJudge(inputs.oracle))


def stored_scores(answer: Candidate) -> tuple[float | None, ...]:
    """The score of each judgment of an answer, None for an unreadable one."""
    readings = (judgment.reading for judgment in answer.judgments_N)
    return tuple(reading.score if isinstance(reading, Scored) else None for reading in readings)
