"""An independent judge in the loop: it grades the held-out answers of M0 to MT; the models' judgments are held to it.

Its verdicts are stored by the prompt and the answer's words, for all models of the run together: M0's answers, which
every model judges too, are graded once. With ``cache_dir`` runs share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from metareward.errors import UserError
from metareward.evaluation.base import (
    Benchmark,
    Column,
    Completions,
    EvaluateCommand,
    Evaluated,
    EvaluateSession,
    Figures,
    Mismatch,
    Price,
    Results,
    ResultTable,
    ScoringInputs,
)
from metareward.evaluation.held_out import HeldOut, held_out_records
from metareward.evaluation.independent_judge.score import (
    UNREADABLE,
    Verdicts,
    graded_outputs,
    half_point,
    model_figures,
    verdict_rows,
)
from metareward.evaluation.judges import JudgeSpec, grade, judge_kind, verdict_store
from metareward.generation.progress import JUDGMENTS
from metareward.generation.verdicts import RubricGrader, VerdictFormatSettings, VerdictRules
from metareward.method.judge import Rubric
from metareward.settings import Count, Text
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.storage.store import RecordStore
from metareward.types import Sampling

_RELIABLE = 0.5  # the rank correlation of two judgments of one answer
_MOST_REFUSED = 0.05  # of the answers; with more the judge is asked again by the next start


@dataclass(frozen=True, slots=True)
class _Measured:
    """One model's records, and what decides its figures."""

    model: str
    records: Sequence[HeldOut]
    first: Sequence[HeldOut]
    answers: int
    half: float | None
    seed: int

    async def ask(self, judge: JudgeSpec, store: Path, grader: RubricGrader) -> Verdicts:
        """The judge's verdicts, asked for where they aren't in ``store``. Raises as `grade` does."""
        outputs = graded_outputs(self.records, self.answers)
        results = await judge.run(store, lambda client: grade(client, grader, outputs))
        return Verdicts(judge.name, results.documents)

    def figures(self, verdicts: Verdicts) -> dict[str, object]:
        """What the verdicts come to."""
        return model_figures(self.model, self.records, self.first, verdicts, self.half, self.answers, self.seed % 2**32)


# --- in a recipe ---

_RUN = "empty: the run's"


class IndependentJudge(Benchmark):
    """A judge beside the model grades its held-out answers, and its judgments of M0's answers are compared with it."""

    kind: Literal["independent_judge"] = Field("independent_judge", description="A judge that isn't the trained model")
    judge: Text = Field(
        description="A model folder, 'pocket', a recipe (its model and engine), URL#MODEL, or package.module:name of a "
        "judge of yours"
    )
    judgments: Count = Field(3, description="Its judgments of each answer; greedy ones are all the same, so one")
    answers: Count = Field(1, description="Answers to each held-out prompt that it grades, of evaluation.answers")
    rubric: Text | None = Field(None, description=f"Packaged rubric, or a .txt file of your own; {_RUN}")
    verdict_format: VerdictFormatSettings | None = Field(None, description=f"The form of the rubric's verdict; {_RUN}")
    min_score: float | None = Field(None, description=f"Lowest score of the rubric; {_RUN}")
    max_score: float | None = Field(None, description=f"Highest score of the rubric; {_RUN}")
    system_prompt: Text | None = Field(None, description=f"Its system prompt; {_RUN}")
    temperature: float | None = Field(None, ge=0.0, description=f"Sampling temperature; {_RUN}")
    top_p: float | None = Field(None, gt=0.0, le=1.0, description=f"Nucleus sampling mass; {_RUN}")
    max_tokens: Count | None = Field(None, description=f"Longest judgment, in new tokens; {_RUN}")
    scores: Literal["sampled", "expected"] | None = Field(
        None, description=f"'sampled': as written; 'expected': the mean over the tokens possible there; {_RUN}"
    )
    verdict: Literal["text", "constrained"] | None = Field(
        None, description=f"'text': as written; 'constrained': drawn from the rubric's values; {_RUN}"
    )
    retries: int | None = Field(None, ge=0, description=f"How often an unreadable judgment is asked again; {_RUN}")
    price: Price | None = Field(None, description="What its tokens cost, for plan, status and the report")
    cache_dir: Text | None = Field(None, description="Folder of verdicts that runs share; empty: in the run's folder")

    title: ClassVar[str] = "Independent judge"
    changeable: ClassVar[frozenset[str]] = frozenset({"models", "price", "cache_dir"})

    def mismatches(self, oracle: bool) -> Iterator[Mismatch]:  # noqa: ARG002
        """That it is another judge, and that its scale is one."""
        if self.judge in ("itself", "oracle"):
            yield "judge", self.judge, "a judge beside the model; kinds alpaca_eval and judge_quality take this one"
        if self.min_score is not None and self.max_score is not None and self.min_score >= self.max_score:
            yield "min_score", self.min_score, f"a number below max_score, which is {self.max_score}"

    def files(self) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """The rubric's text."""
        if self.rubric is not None:
            yield self.rubric, lambda path: Rubric.load(str(path))

    def digests(self) -> Mapping[str, str]:
        """That of the rubric's text."""
        return {} if self.rubric is None else {"rubric's text": Rubric.load(self.rubric).template.sha256}

    @property
    def asked_judge(self) -> str | None:
        """Of ``judge``."""
        return self.judge

    def grader(self, run: RubricGrader) -> RubricGrader:
        """The run's rubric and sampling with this benchmark's own settings."""
        ours, sampling = self._rubric(run.rubric), run.sampling
        sampling = Sampling(
            sampling.temperature if self.temperature is None else self.temperature,
            self.top_p or sampling.top_p,
            self.max_tokens or sampling.max_tokens,
        )
        rules = VerdictRules(
            run.rules.constrained if self.verdict is None else self.verdict == "constrained",
            run.rules.retries if self.retries is None else self.retries,
        )
        expected = run.expected if self.scores is None else self.scores == "expected"
        n = ours.different(self.judgments if sampling.temperature > 0 else 1)
        return replace(run, rubric=ours, n=n, sampling=sampling, rules=rules, expected=expected)

    def _rubric(self, run: Rubric) -> Rubric:
        own, form = run if self.rubric is None else Rubric.load(self.rubric), self.verdict_format
        return Rubric(
            own.template,
            run.min_score if self.min_score is None else self.min_score,
            run.max_score if self.max_score is None else self.max_score,
            run.system_prompt if self.system_prompt is None else self.system_prompt,
            run.kind if form is None else form.kind,
            run.words if form is None else form.words,
            own.criteria,
        )

    def judge_completions(self, held_out: int, grader: RubricGrader) -> Completions:
        """N judgments of each model's answers, and of M0's where it isn't measured itself."""
        answers = held_out * self.answers * (2 if self.models and 0 not in self.models else 1)
        return Completions(
            JUDGMENTS,
            answers * grader.n,
            grader.most_tokens,
            itself=False,
            judge=self.name,
            prompt_chars=len(grader.rubric.template.text) + len(grader.rubric.system_prompt or ""),
            price=self.price,
        )

    async def score(self, inputs: ScoringInputs) -> Results:
        """One row of figures; a row to each answer is in ``verdicts.jsonl``."""
        assert inputs.judge is not None, "the recipe's check allows no oracle here"
        measured = _Measured(
            inputs.model.name,
            inputs.model.held_out(),
            inputs.first.held_out(),
            self.answers,
            half_point(inputs.rubric, inputs.grader.rubric),
            inputs.seed,
        )
        folder = inputs.verdicts if self.cache_dir is None else Path(self.cache_dir)
        store = verdict_store(folder, inputs.judge, inputs.grader)
        verdicts = await measured.ask(inputs.judge, store, inputs.grader)
        rows = verdict_rows(measured.model, measured.records, verdicts, self.answers)
        write_atomic(inputs.folder / "verdicts.jsonl", json_lines(rows))
        return [measured.figures(verdicts)]

    def incomplete(self, results: Results) -> str | None:
        """Where the judge failed on more than a few answers."""
        missing, asked = (sum(int(each[key]) for each in results) for key in ("n_not_answered", "n_asked"))
        return f"the judge failed on {missing} of {asked} answers" if missing > _MOST_REFUSED * asked else None

    def facts(self, inputs: ScoringInputs) -> dict[str, object]:
        """Also the judge."""
        by_rubric = self.rubric is None and judge_kind(self.judge) != "object"
        return {**super().facts(inputs), "judge": self.judge, "by_rubric": by_rubric}

    def heading(self, against: str | None) -> str:  # noqa: ARG002
        """Who judges, and by what."""
        how = "the run's rubric" if self.rubric is None else self.rubric
        return f"{self.title} {self.judge}{'' if judge_kind(self.judge) == 'object' else f', by {how}'}"

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:
        """Of both tables."""
        return tuple(column for _, columns in self.tables(rows) for column in columns)

    def tables(self, rows: Sequence[Figures]) -> tuple[tuple[str, tuple[Column, ...]], ...]:
        """The answers, and the models as judges."""
        return tables(rows)

    def notes(self, rows: Sequence[Figures]) -> tuple[str, ...]:
        """What the figures mean."""
        return notes(rows)


def tables(rows: Sequence[Figures]) -> tuple[tuple[str, tuple[Column, ...]], ...]:
    """The figures of models in two tables: their answers, and their judgments of M0's answers."""
    one_scale = any(each["same_scale"] for each in rows)
    excess = (Column("own score − this", "metrics.excess.mean"),) if one_scale else ()
    exact = (Column("exact %", "metrics.exact.mean", 1, unit="share"),) if one_scale else ()
    answers = (
        Column("score", "metrics.score.mean"),
        Column("95 %", "metrics.score"),
        *excess,
        Column("win rate", "win_rate.win_rate", 1),
        Column("95 %", "win_rate", 1),
        Column("by itself", "own_win_rate.win_rate", 1),
        Column("length-adjusted", "win_rate.length_adjusted", 1, detail=True),
        Column("judged", "n_judged"),
        Column("left out", counts=(("unreadable", "n_unreadable"), ("refused", "n_refused"))),
        Column(
            "unreadable judgments", counts=tuple((reason.replace("_", " "), f"n_{reason}") for reason in UNREADABLE)
        ),
    )
    judgments = (
        *exact,
        Column("rank corr.", "metrics.rank_correlation.mean"),
        Column("95 %", "metrics.rank_correlation"),
        Column("without noise", "metrics.disattenuated.mean"),
        Column("self-agreement %", "metrics.self_agreement.mean", 1, unit="share"),
        Column("pairs right %", "metrics.pair_accuracy.mean", 1, unit="share"),
        Column("confidence %", "metrics.pair_confidence.mean", 1, unit="share"),
        Column("judgments", "n_judgments_compared"),
        Column("since M0", "judge_change"),
    )
    return ("answers", answers), ("the models as judges of M0's answers", judgments)


def notes(rows: Sequence[Figures]) -> tuple[str, ...]:
    """What the columns mean, and how much of the disagreement may be the independent judge's own noise."""
    found = [
        "Win rates against M0 by both answers' scores, in percent; by itself: by the model's own scores.",
        "As judges: single judgments against the independent judge's mean; without noise: the rank correlation "
        "divided by the root of the model's own reliability; self-agreement: two of its judgments of an answer give "
        "the same score.",
        "Since M0: better if the change of the correlation without noise is above 0 (95 % interval), less noisy if "
        "only single judgments agree better, more confident if only self-agreement rose.",
    ]
    agreed = rows[-1]["reference"].get("self_agreement") if rows else None
    if agreed is not None:
        found.append(f"The independent judge gives an answer the same score twice in {100 * agreed:.0f} % of cases.")
    return (*found, *noise_notes(rows[-1:]))


def noise_notes(rows: Sequence[Figures]) -> tuple[str, ...]:
    """That the independent judge is too noisy itself to tell much by it, where it is."""
    found = [each["reference"].get("reliability") for each in rows]
    return tuple(
        f"This judge is noisy itself: two of its judgments of an answer correlate at {reliability:.2f}; a better "
        "one, or more judgments, would tell more."
        for reliability in found
        if reliability is not None and reliability < _RELIABLE
    )


# --- ``metareward evaluate independent-judge`` ---


class IndependentJudgeCommand(EvaluateCommand):
    """A judge beside the models of a finished run: grades of their held-out answers, agreement of their judgments."""

    run: Path = Field(description="The run's folder.")
    cache: Path | None = Field(None, description="Folder that stores the judge's verdicts.")
    answers: int = Field(1, ge=1, description="Answers to each held-out prompt that are graded.")
    rubric: str = Field("judge", description="Packaged rubric, .txt file, or criteria (.yaml).")
    min_score: float = Field(0.0, description="The rubric's lowest score, also of the run's.")
    max_score: float = Field(5.0, description="The highest.")
    judgments: int = Field(3, ge=1, description="Judgments of each answer.")
    temperature: float = Field(0.8, ge=0.0, description="Sampling temperature of the judge.")
    top_p: float = Field(0.95, description="Its nucleus sampling mass.")
    max_tokens: int = Field(1024, ge=1, description="Its longest judgment, in new tokens.")
    constrained: bool = Field(False, description="Draw scores from the rubric's values: always readable.")
    retries: int = Field(0, ge=0, description="How often an unreadable judgment is asked again.")

    async def evaluate(self, session: EvaluateSession) -> Evaluated:
        """A row to each model of the run. Raises `UserError` for a folder without evaluations."""
        if session.judge is None or self.cache is None:
            raise UserError("--judge-engine, and --cache for what it answers, must be given: this command asks a judge")
        records_T = self._records()
        rubric = Rubric.load(self.rubric, min_score=self.min_score, max_score=self.max_score)
        sampling = Sampling(self.temperature, self.top_p, self.max_tokens)
        n = rubric.different(self.judgments if self.temperature > 0 else 1)
        grader = RubricGrader(rubric, n, sampling, rules=VerdictRules(self.constrained, self.retries))
        store, half, found = verdict_store(self.cache, session.judge, grader), half_point(rubric, rubric), []
        for model, records in records_T.items():
            measured = _Measured(model, records, records_T["M0"], self.answers, half, session.seed)
            found.append(measured.figures(await measured.ask(session.judge, store, grader)))
        rows = tuple((str(each["model"]), each) for each in found)
        shown = [
            ResultTable(f"Independent judge {session.judge.name}: {title}", columns, rows, notes(found) if last else ())
            for last, (title, columns) in enumerate(tables(found))
        ]
        return Evaluated(tuple(shown), {"benchmark": "independent_judge", "models": found})

    def _records(self) -> dict[str, tuple[HeldOut, ...]]:
        """The held-out records of each model that was evaluated."""
        found: dict[str, tuple[HeldOut, ...]] = {}
        paths = self.run.glob("iter-*/eval/records.sqlite")
        for path in sorted(paths, key=lambda each: int(each.parents[1].name.removeprefix("iter-"))):
            with RecordStore.read(path) as store:
                found[f"M{path.parents[1].name.removeprefix('iter-')}"] = held_out_records(store)
        if "M0" not in found:
            raise UserError(f"{self.run}: has no evaluation of M0; fix: name the folder of a run, as runs/NAME")
        return found


IndependentJudge.command = IndependentJudgeCommand
