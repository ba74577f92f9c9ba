"""AlpacaEval 2 (tatsu-lab/alpaca_eval): outputs against a baseline's, annotated by a judge or by stored annotations."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from metareward.data.prompts import load_prompts
from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import (
    Annotations,
    Output,
    read_annotations,
    read_difficulty,
    read_gamed,
    read_outputs,
    read_weights,
)
from metareward.evaluation.alpaca_eval.length_control import LengthControlled, win_rate_of_weights
from metareward.evaluation.alpaca_eval.score import OFFICIAL, UNOFFICIAL, AlpacaResult, evaluate
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
from metareward.evaluation.compare import (
    FirstShare,
    LabelJudge,
    LabelPrompt,
    OutputPair,
    PairwiseJudge,
    load_label_prompt,
)
from metareward.evaluation.held_out import HeldOut
from metareward.evaluation.input_checks import require_readable
from metareward.evaluation.judges import JudgeClient, JudgeSpec
from metareward.method.template import conversation
from metareward.settings import Text
from metareward.storage.atomic import write_atomic
from metareward.text import one_line
from metareward.types import Message, Prompt

AnnotationRows = Sequence[Mapping[str, object]]

# Upstream draws ``Random("is_switched_outputs" + instruction + seed)`` with the annotator's seed, 0 on the leaderboard.
LEADERBOARD_SEED = 0


def model_first(instruction: str, seed: int = LEADERBOARD_SEED) -> bool:
    """Whether the evaluated model's output is shown first (as "m"): random, but decided by the instruction alone."""
    drawn = random.Random(f"is_switched_outputs{instruction}{seed}")
    return drawn.choices([False, True], k=1)[0]


def preference(first_share: float, model_was_first: bool) -> float:
    """The evaluated model's share of a preference whose first output got ``first_share``."""
    return first_share if model_was_first else 1 - first_share


# --- Annotations by a judge of the user's choice, in upstream's format.
#
# Identical outputs are not judged: they draw. Replies are stored beside the annotations, so the same call again asks
# only what is pending. A row without a readable preference has null and says why in ``outcome``.


@dataclass(frozen=True, slots=True)
class Matchup:
    """The baseline's output and the model's to the instruction of number ``index``.

    ``prompt`` is what the judge sees of the instruction; its id is unique among the matchups.
    """

    index: int
    prompt: Prompt
    base: Output
    own: Output

    @property
    def pair(self) -> OutputPair:
        """As the judge sees it, in upstream's order."""
        base, own = self.base.output, self.own.output
        return OutputPair(self.prompt, *((own, base) if model_first(self.base.instruction) else (base, own)))


def matchups(baseline: Sequence[Output], outputs: Sequence[Output]) -> tuple[Matchup, ...]:
    """One for every instruction of ``baseline`` that ``outputs`` answers, numbered and in order as there."""
    by_instruction = {output.instruction: output for output in outputs}
    return tuple(
        Matchup(index, Prompt(str(index), (Message("user", base.instruction),)), base, own)
        for index, base in enumerate(baseline)
        if (own := by_instruction.get(base.instruction)) is not None
    )


def label_judge(client: JudgeClient, prompt: LabelPrompt) -> LabelJudge:
    """The judge of the benchmark."""
    return LabelJudge(client, prompt, {"order": LEADERBOARD_SEED})


async def annotate(judge: PairwiseJudge, pairs: Sequence[Matchup]) -> AnnotationRows:
    """A row for every matchup, in their order. Raises `UserError` as the judge does."""
    shares = await judge.shares([each.pair for each in pairs if each.base.output != each.own.output])
    rows: list[dict[str, object]] = []
    for each in pairs:
        share = shares.get(each.prompt.id)
        verdict: dict[str, object]
        if share is None:
            verdict = {"preference": 1.5, "outcome": "identical"}
        elif isinstance(share, FirstShare):
            gained = preference(share.share, model_first(each.base.instruction))
            verdict = {"preference": 1 + gained, "outcome": "judged", "mode": share.mode}
        else:
            verdict = {"preference": None, "outcome": share}
        rows.append(
            {
                "index": each.index,
                "instruction": each.base.instruction,
                "dataset": each.base.dataset,
                "output_1": each.base.output,
                "generator_1": each.base.generator,
                "output_2": each.own.output,
                "generator_2": each.own.generator,
                "annotator": judge.name,
                **verdict,
            }
        )
    return rows


def _write_rows(path: Path, rows: AnnotationRows) -> None:
    write_atomic(path, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")


# --- ``metareward evaluate alpaca-eval`` ---


class AlpacaEvalCommand(EvaluateCommand):
    """AlpacaEval 2: win rate, length-controlled win rate, lengths."""

    annotations: tuple[Path, ...] = Field((), description="annotations.json, or the one to write. Again for more.")
    outputs: Path | None = Field(None, description="The model's model_outputs.json.")
    reference: Path | None = Field(None, description="The baseline's model_outputs.json.")
    difficulty: Path | None = Field(None, description="Upstream's instruction_difficulty.csv.")
    gamed: Path | None = Field(None, description="Upstream's df_gamed.csv.")
    weights: Path | None = Field(None, description="Published weights instead of annotations.")
    prompt: Path | None = Field(None, description="The judge's alpaca_eval_clf.txt.")
    by_instruction: bool = Field(False, description="Number rows by the reference's order, not by place.")

    async def evaluate(self, session: EvaluateSession) -> Evaluated:
        """The models of the annotation files, or the win rates that published weights stand for."""
        if self.weights is not None:
            return self._published(self.weights)
        if session.judge is not None:
            await self._annotate(session.judge)
        elif not self.annotations:
            raise UserError("give --annotations, the judge's annotations.json, or --judge-engine to ask a judge")
        figures = [each.as_dict() for each in self.results()]
        rows = tuple((str(each["model"]), each) for each in figures)
        table = ResultTable("AlpacaEval 2", _columns(figures), rows, _notes(figures))
        return Evaluated((table,), {"benchmark": "alpaca_eval", "models": figures})

    def results(self) -> tuple[AlpacaResult, ...]:
        """Every model of the annotation files. Raises `UserError` for files that don't fit each other."""
        if self.gamed is not None and self.difficulty is None:
            raise UserError("--gamed: needs --difficulty; fix: give both of upstream's tables, or neither")
        if self.by_instruction and self.reference is None:
            raise UserError("--by-instruction: needs --reference, whose order counts")
        reference = read_outputs(self.reference) if self.reference else ()
        order = {output.instruction: i for i, output in enumerate(reference)} if self.by_instruction else None
        models = tuple(each for path in self.annotations for each in read_annotations(path, order))
        names = [each.model for each in models]
        if len(names) > len(set(names)):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(
                f"--annotations: two files have annotations of {twice!r}; fix: give one file for each model"
            )
        for each in models:
            if reference and each.baseline not in (None, reference[0].generator):
                raise UserError(
                    f"{self.reference}: has outputs of {reference[0].generator!r}, but the annotations of "
                    f"{each.model!r} are against {each.baseline!r}; fix: name the outputs of that baseline"
                )
            if reference and self.reference is not None:
                _require_instructions(each, reference, self.reference)
        require_readable(
            {each.model: sum(row.preference is not None for row in each.rows) for each in models},
            ", ".join(map(str, self.annotations)),
            "preference",
        )
        chars: dict[str, list[int]] = {}
        if self.outputs:
            outputs = read_outputs(self.outputs)
            model = models[0].model if len(models) == 1 else outputs[0].generator
            if model not in names:
                raise UserError(
                    f"{self.outputs}: has outputs of {model!r}, of which there are no annotations; fix: name the "
                    f"outputs of {names[0]!r}"
                )
            _require_instructions(models[names.index(model)], outputs, self.outputs)
            chars = {model: [len(output.output) for output in outputs]}
        return evaluate(
            models,
            difficulty=read_difficulty(self.difficulty) if self.difficulty else None,
            gamed=read_gamed(self.gamed) if self.gamed else None,
            instructions=len(reference) or None,
            chars=chars,
        )

    def _published(self, weights: Path) -> Evaluated:
        if self.difficulty is None:
            raise UserError("--weights: needs --difficulty")
        fitted = published_rates(weights, self.difficulty)
        rows = [
            {"model": model, "length_controlled_winrate": each.win_rate, "lc_standard_error": each.standard_error}
            for model, each in fitted.items()
        ]
        columns = (Column("LC win rate", "length_controlled_winrate", error="lc_standard_error"),)
        table = ResultTable("AlpacaEval 2, from published weights", columns, tuple((str(r["model"]), r) for r in rows))
        return Evaluated((table,), {"benchmark": "alpaca_eval", "published_weights": rows})

    async def _annotate(self, judge: JudgeSpec) -> None:
        """Write the judge's annotations of ``outputs`` to ``annotations``; its replies are stored beside them."""
        if self.outputs is None or self.reference is None or self.prompt is None or len(self.annotations) != 1:
            raise UserError(
                "--judge-engine: needs --outputs, --reference (the baseline's outputs), --prompt, "
                "and one --annotations, the file to write"
            )
        (path,), prompt = self.annotations, load_label_prompt(self.prompt)
        pairs = matchups(read_outputs(self.reference), read_outputs(self.outputs))
        rows = await judge.run(path.with_suffix(".sqlite"), lambda client: annotate(label_judge(client, prompt), pairs))
        if not rows:
            raise UserError(
                f"{self.outputs}: answers none of the reference's instructions; fix: name outputs to the same ones"
            )
        _write_rows(path, rows)


def published_rates(weights: Path, difficulty: Path) -> dict[str, LengthControlled]:
    """The length-controlled win rate that every model's published weights stand for, in the file's order."""
    hard_I = read_difficulty(difficulty)
    return {model: win_rate_of_weights(each, hard_I) for model, each in read_weights(weights).items()}


def _require_instructions(annotated: Annotations, outputs: Sequence[Output], path: Path) -> None:
    """Raise `UserError` where ``outputs`` lack an instruction that was annotated."""
    known = {None, *(output.instruction for output in outputs)}
    for row in annotated.rows:
        if row.instruction not in known:
            raise UserError(
                f"{path}: no output for the instruction {one_line(str(row.instruction), 60)!r}, which the annotations "
                f"of {annotated.model!r} are about; fix: name the outputs to the same instructions"
            )


# --- in a recipe ---


class AlpacaEval(ComparisonBenchmark):
    """AlpacaEval's comparison: (length-controlled) win rates against an earlier model or a file of outputs."""

    kind: Literal["alpaca_eval"] = Field("alpaca_eval", description="AlpacaEval's comparison of outputs")
    difficulty: Text | None = Field(None, description="With gamed: the official length control's files")
    gamed: Text | None = Field(None, description="With difficulty")

    title: ClassVar[str] = "AlpacaEval"
    answers_file: ClassVar[str] = "outputs.json"
    command: ClassVar[type[EvaluateCommand]] = AlpacaEvalCommand

    def mismatches(self, oracle: bool) -> Iterator[Mismatch]:
        """Also that the length control's files come together."""
        if (self.difficulty is None) != (self.gamed is None):
            yield "gamed", self.gamed, "both difficulty and gamed, or neither"
        yield from super().mismatches(oracle)

    def files(self) -> Iterator[tuple[str, Callable[[Path], object]]]:
        """Questions, the judge's prompt, a baseline's outputs, the length control's files."""
        against = None if self.opponent else self.against
        readers: tuple[tuple[str | None, Callable[[Path], object]], ...] = (
            (self.questions, load_prompts),
            (self.prompt, load_label_prompt),
            (against, read_outputs),
            (self.difficulty, read_difficulty),
            (self.gamed, read_gamed),
        )
        yield from ((name, reader) for name, reader in readers if name)

    def requests(self) -> Requests:
        """The instructions of a file."""
        return Requests(load_prompts(Path(str(self.questions))), self.temperature)

    def answers_text(self, model: str, prompts: Sequence[Prompt], turns: Sequence[Sequence[str]]) -> str:
        """As upstream's model_outputs.json."""
        rows = [
            {"id": prompt.id, "instruction": conversation(prompt.messages), "output": each[0], "generator": model}
            for prompt, each in zip(prompts, turns, strict=True)
        ]
        return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"

    async def score(self, inputs: ScoringInputs) -> Results:
        """Annotations, written in upstream's format, and what they come to."""
        pairs, total = self._matchups(inputs)
        if not pairs:
            raise UserError(f"benchmarks.{self.name}: {self.against} answers none of the instructions; name another")
        if inputs.judge is None or self.prompt is None:
            rows = await self.compare_one_by_one(inputs, lambda judge: annotate(judge, pairs))
        else:
            prompt, store = load_label_prompt(Path(self.prompt)), inputs.folder / "judge.sqlite"
            rows = await inputs.judge.run(store, lambda client: annotate(label_judge(client, prompt), pairs))
        path = inputs.folder / "annotations.json"
        _write_rows(path, rows)
        found = evaluate(
            read_annotations(path),
            difficulty=read_difficulty(Path(self.difficulty)) if self.difficulty else None,
            gamed=read_gamed(Path(self.gamed)) if self.gamed else None,
            instructions=total,
        )
        return [each.as_dict() for each in found]

    def _matchups(self, inputs: ScoringInputs) -> tuple[Sequence[Matchup], int]:
        """Both outputs to every instruction, and how many instructions there are."""
        opponent, model = inputs.opponent, inputs.model
        if self.questions is None and opponent is not None:
            # By prompt, not by instruction: a prompt of several turns has no instruction of its own.
            theirs = {record.prompt.id: record for record in opponent.held_out()}
            both = [
                Matchup(index, record.prompt, _output(theirs[record.prompt.id], opponent), _output(record, model))
                for index, record in enumerate(model.held_out())
                if record.prompt.id in theirs
            ]
            return both, len(inputs.prompts)
        baseline = read_outputs(opponent.answers if opponent else Path(self.against))
        if self.questions is None:
            return matchups(baseline, [_output(record, model) for record in model.held_out()]), len(baseline)
        return matchups(baseline, read_outputs(model.answers)), len(baseline)

    def columns(self, rows: Sequence[Figures]) -> tuple[Column, ...]:
        """Win rates with standard errors; the length-controlled one is called so only if it is the leaderboard's."""
        return _columns(rows)

    def notes(self, rows: Sequence[Figures]) -> tuple[str, ...]:
        """How preferences were read and lengths controlled."""
        return _notes(rows)


def _output(record: HeldOut, model: EvaluatedModel) -> Output:
    """The first answer, where there are several."""
    return Output(conversation(record.prompt.messages), record.own[0].text, "held out", model.name)


def _columns(rows: Sequence[Figures]) -> tuple[Column, ...]:
    official = {bool(figures["official"]) for figures in rows}
    lengths = [Column("LC win rate", "length_controlled_winrate", 1, "lc_standard_error")] if True in official else []
    if False in official:
        lengths.append(Column("length-adjusted", "length_adjusted_winrate", 1, "length_adjusted_standard_error"))
    left_out = tuple((word, f"n_{word}") for word in ("missing", "unreadable", "refused"))
    return (
        Column("win rate", "win_rate", 1, "standard_error"),
        *lengths,
        Column("discrete", "discrete_win_rate", 1),
        Column("length", "avg_length"),
        Column("judged", "n_judged"),
        Column("left out", counts=left_out),
    )


_PREFERENCES = {
    "token probabilities": "A preference is the probability that the judge gives to one of the two labels",
    "sampled label": "A preference is the label that the judge wrote",
    "scores of each alone": "A preference compares the scores that the two answers got, each judged alone",
    "truth": "A preference compares the two answers' true scores",
    "as stored": "Preferences are those of the annotations file, which doesn't say how the judge gave them",
}
_LENGTH_METHODS = {
    OFFICIAL: "Lengths are controlled by the leaderboard's regression",
    UNOFFICIAL: "Lengths are controlled by the leaderboard's regression, on data that isn't the leaderboard's",
    "length, constant": "Length-adjusted: at equal lengths, by a regression on the difference in length alone",
}


def _notes(rows: Sequence[Figures]) -> tuple[str, ...]:
    preferences, methods = (
        list(dict.fromkeys(str(row[key]) for row in rows)) for key in ("preferences", "length_method")
    )
    said = [_PREFERENCES.get(each, f"Preferences were read from: {each}") for each in preferences]
    said += [_LENGTH_METHODS.get(each, f"Length-adjusted: by a regression on {each}") for each in methods]
    own = (f"{row['model']}: {note}" for row in rows for note in row["notes"])
    return tuple(f"{each}." for each in (*said, *own))
