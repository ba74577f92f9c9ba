"""A recipe: the whole experiment as frozen, checked values.

The defaults are the published setting of Meta-Rewarding (arXiv 2407.19594), so a recipe file says only what differs.
What the paper leaves open has a default too; its description then doesn't mention the paper. Paths are relative to the
folder in which the command runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError

from metareward.config.sections import (
    ENGINE,
    AnswerSettings,
    EngineSettings,
    JudgmentSettings,
    MetaJudgmentSettings,
    PairSettings,
    PromptSettings,
    ReasoningSettings,
    engine_fingerprint,
)
from metareward.config.yaml_file import Key, explain, label, read_layers, recipe_path, run_of
from metareward.engines.local.workers import LocalSettings
from metareward.engines.ray.settings import RaySettings, one_engine
from metareward.errors import UserError
from metareward.evaluation.base import Benchmark
from metareward.evaluation.benchmarks import BENCHMARKS, benchmark_class
from metareward.evaluation.worlds import WORLDS
from metareward.method.criteria import names_criteria
from metareward.method.gates import GATES, Action, Limit
from metareward.method.pairs import PairRules
from metareward.method.verdict_format import READER_VERSION
from metareward.settings import Count, ImportPath, Section, Text
from metareward.storage.serialization import flatten
from metareward.training.config import TrainingSettings


class RoleSettings(Section):
    """Another model for one role, such as an external judge: an ablation, as it isn't trained."""

    model: Text | None = Field(None, description="Its Hugging Face folder; empty with kind openai, which names a model")
    engine: EngineSettings = Field(default_factory=LocalSettings, description=ENGINE)


class EvaluationSettings(Section):
    """What is asked on the held-out prompts, of M0 and of every model made."""

    answers: Count = Field(1, description="Answers to each held-out prompt")
    judgments: Count = Field(3, description="Judgments of each of these answers")
    meta_pairs: int = Field(1, ge=0, description="Pairs of judgments compared for each held-out prompt, in both orders")


class JudgeCheckSettings(Section):
    """The check of the judge on labelled pairs: `metareward check-judge`, and before iteration 1 of a run."""

    action: Action | None = Field(
        None, description="A judge no better than length alone: mention it, warn, or stop the run; empty: no check"
    )
    pairs: Text | None = Field(
        None, description="Labelled pairs (JSONL); empty: M0's answers where there is an oracle, else the package's"
    )
    count: int = Field(48, ge=2, description="At most so many pairs, half of them with the longer answer better")


if TYPE_CHECKING:
    AnyBenchmark = Benchmark
else:  # the reference page and the messages list the settings of every kind
    AnyBenchmark = Union[tuple(BENCHMARKS.values())]  # noqa: UP007


def _benchmark(value: object, _: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Benchmark:
    """One benchmark of a recipe by its kind; ``info.context`` may hold other kinds than `BENCHMARKS`."""
    if isinstance(value, Benchmark):
        return value
    if not isinstance(value, Mapping):
        raise PydanticKnownError("model_type", {"class_name": "Benchmark"})
    kind, benchmarks = value.get("kind"), (info.context or {}).get("benchmarks", BENCHMARKS)
    if not isinstance(kind, str) or (kind not in benchmarks and ":" not in kind):
        expected = f"one of {', '.join(benchmarks)}, or package.module:Class of one of yours"
        wrong = InitErrorDetails(type="literal_error", loc=("kind",), input=kind, ctx={"expected": expected})
        raise ValidationError.from_exception_data("Benchmark", [wrong])
    return benchmark_class(kind, benchmarks).model_validate(value)


class GateSettings(Section):
    """A gate of judge health: docs/judge-health.md lists all gates with their defaults."""

    threshold: float = Field(description="The last acceptable value: a share, a difference of shares, or a ratio")
    action: Action = Field(description="Past the threshold: mention it, warn, or stop the run before the next stage")


def _every_gate(given: object) -> object:
    """The gates of a recipe over the defaults of all gates."""
    if not isinstance(given, Mapping | None):
        return given
    merged: dict[str, object] = {name: asdict(gate.limit) for name, gate in GATES.items()}
    for name, own in (given or {}).items():
        if name not in merged:
            near = difflib.get_close_matches(str(name), GATES, n=1)
            expected = f"a gate; the nearest is {near[0]}" if near else "one of the gates in docs/judge-health.md"
            raise PydanticCustomError("mismatch", "{expected}", {"key": (name,), "value": None, "expected": expected})
        default = merged[name]
        if isinstance(own, Mapping) and isinstance(default, Mapping):
            merged[name] = {**default, **own}
        elif own is not None:
            merged[name] = own
    return merged


class IterationSettings(Section):
    """What differs from iteration to iteration (Meta-Rewarding appendix A.3)."""

    rho: float = Field(0.0, ge=0.0, le=1.0, description="Length control: 0 is off (paper: 0, 0.32, 0.32, 0.4)")
    max_answer_chars: Count | None = Field(
        None, description="Drop pairs whose chosen answer is longer, in characters (paper: 2500 in iteration 1)"
    )
    judge_pairs: bool = Field(True, description="Meta-judge and train the judge too (paper: in iterations 1 and 2)")
    max_judgment_chars: Count | None = Field(
        None, description="Drop judge pairs whose chosen judgment is longer, in characters (paper: 1100, then 1000)"
    )
    learning_rate: float | None = Field(
        None, gt=0.0, description="Instead of training.learning_rate, in this iteration"
    )
    num_train_epochs: Count | None = Field(None, description="Instead of training.num_train_epochs, in this iteration")
    stop_after_epoch: Count | None = Field(
        None, description="Instead of training.stop_after_epoch, in this iteration (paper: 6, 4, 2, 2)"
    )


PAPER_ITERATIONS: Mapping[int, Mapping[str, float | int | bool]] = {
    1: {"rho": 0.0, "max_answer_chars": 2500, "judge_pairs": True, "max_judgment_chars": 1100, "stop_after_epoch": 6},
    2: {"rho": 0.32, "judge_pairs": True, "max_judgment_chars": 1000, "stop_after_epoch": 4},
    3: {"rho": 0.32, "judge_pairs": False, "stop_after_epoch": 2},
    4: {"rho": 0.4, "judge_pairs": False, "stop_after_epoch": 2},
}


class Recipe(Section):
    """One experiment: what is run, T times, from which model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The run's name: its folder under runs/")
    seed: int = Field(0, ge=0, description="Every random choice follows from it")
    model: Text = Field(description="M0: a Hugging Face model folder, or 'pocket' for the model in this package")
    prompts: PromptSettings
    answers: AnswerSettings
    judgments: JudgmentSettings
    meta_judgments: MetaJudgmentSettings
    judge: ImportPath | RoleSettings | None = Field(
        None, description="Judge other than the model itself: an object as module:name, or a section with its engine"
    )
    meta_judge: RoleSettings | None = Field(None, description="Meta-judge other than the model itself")
    reward: ImportPath | None = Field(
        None, description="Object that scores answers in place of judgments, as module:name: a verifier, a reward model"
    )
    reasoning: ReasoningSettings
    pairs: PairSettings
    engine: EngineSettings = Field(default_factory=LocalSettings, description=ENGINE)
    training: TrainingSettings
    evaluation: EvaluationSettings
    judge_check: JudgeCheckSettings
    judge_health: Annotated[Mapping[str, GateSettings], BeforeValidator(_every_gate)] = Field(
        default_factory=dict, validate_default=True, description="Gates on the judge's health, by name"
    )
    benchmarks: Annotated[
        tuple[Annotated[SerializeAsAny[AnyBenchmark], WrapValidator(_benchmark)], ...], Field(strict=False)
    ] = Field((), description="Benchmarks after iterations, each of a kind; a list replaces a preset's")
    iterations: Mapping[int, IterationSettings] = Field(
        description="One section for each iteration, 1 to T; 'drop' takes one of a preset's away"
    )

    @model_validator(mode="before")
    @classmethod
    def _iterations_may_be_dropped(cls, values: Any) -> Any:
        """One that says 'drop' is none, an empty one means the defaults; an empty list of benchmarks is none."""
        if not isinstance(values, Mapping):
            return values
        iterations = values.get("iterations", PAPER_ITERATIONS)
        if isinstance(iterations, Mapping):
            iterations = {t: each or {} for t, each in iterations.items() if each != "drop"}
        return {**values, "iterations": iterations, "benchmarks": values.get("benchmarks") or ()}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Recipe:
        for key, value, expected in _mismatches(self):
            raise PydanticCustomError("mismatch", "{expected}", {"key": key, "value": value, "expected": expected})
        return self

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain JSON values in the schema's order: what ``resolved.json`` holds."""
        return self.model_dump(mode="json")

    def runs_meta_judge(self, t: int) -> bool:
        """Whether iteration ``t`` asks the meta-judge: where judge pairs are made, and only there."""
        return self.iterations[t].judge_pairs

    @property
    def gate_limits(self) -> dict[str, Limit]:
        """Threshold and action of every gate of judge health."""
        return {name: Limit(gate.threshold, gate.action) for name, gate in self.judge_health.items()}

    @property
    def engines(self) -> tuple[tuple[Key, EngineSettings], ...]:
        """Key and settings of every engine: the model's, and those of other judges and meta-judges."""
        roles = (("judge", self.judge), ("meta_judge", self.meta_judge))
        others = tuple(((role, "engine"), each.engine) for role, each in roles if isinstance(each, RoleSettings))
        return (("engine",), self.engine), *others

    def training_of(self, t: int) -> TrainingSettings:
        """The training settings of iteration ``t``."""
        names = {"learning_rate", "num_train_epochs", "stop_after_epoch"}
        own = self.iterations[t].model_dump(include=names, exclude_none=True)
        return self.training.model_copy(update=own)


Mismatch = tuple[Key, object, str]


def _mismatches(recipe: Recipe) -> Iterator[Mismatch]:
    """Settings that are each allowed but not together: the key, its value, what it should be."""
    iterations, judgments = recipe.iterations, recipe.judgments
    if not iterations:
        yield ("iterations",), None, "at least one iteration, such as 1"
    for due, t in enumerate(sorted(iterations), 1):
        if t != due:
            yield ("iterations", t), None, f"iterations numbered 1, 2, 3 and so on; {due} is not there"
    if recipe.answers.temperature == 0:
        yield ("answers", "temperature"), 0.0, "a number above 0: greedy answers to one prompt are all the same"
    if judgments.temperature == 0 and judgments.n > 1:
        why = "a number above 0: greedy judgments of one answer are all the same"
        yield ("judgments", "temperature"), 0.0, why
    yield from _criteria_mismatches(recipe)
    yield from _adaptive_mismatches(recipe)
    yield from _verdict_mismatches(recipe)
    if recipe.pairs.min_margin and (unknown := _unknown_uncertainty(recipe)):
        yield ("pairs", "min_margin"), recipe.pairs.min_margin, f"0: {unknown}"
    if judgments.min_valid > judgments.n:
        yield ("judgments", "min_valid"), judgments.min_valid, f"at most judgments.n, which is {judgments.n}"
    if recipe.judge is not None and recipe.reward is not None:
        yield ("reward",), recipe.reward, "nothing, as judge is given: answers are scored by one of them"
    with_judge_pairs = [t for t, iteration in iterations.items() if iteration.judge_pairs]
    scorer = "reward" if recipe.reward is not None else "judge" if isinstance(recipe.judge, str) else None
    if scorer is not None and with_judge_pairs:
        why = f"false, as {scorer} is an object of yours: judge pairs are made of a model's own judgments"
        yield ("iterations", with_judge_pairs[0], "judge_pairs"), True, why
    if judgments.min_score >= judgments.max_score:
        why = f"a number below judgments.max_score, which is {judgments.max_score}"
        yield ("judgments", "min_score"), judgments.min_score, why
    battles = judgments.n * (judgments.n - 1)
    if with_judge_pairs and 1 < battles < recipe.pairs.min_battles:
        why = f"at most {battles}, the battles that {judgments.n} judgments can have (judgments.n)"
        yield ("pairs", "min_battles"), recipe.pairs.min_battles, why
    yield from _benchmark_mismatches(recipe)
    yield from _ray_mismatches(recipe)
    metric = recipe.training.checkpoint_selection.metric
    if metric is not None and one_engine(recipe.engine).kind == "openai":
        why = "empty, as engine.kind is openai: your servers don't have the epochs' models"
        yield ("training", "checkpoint_selection", "metric"), metric, why
    for t, iteration in iterations.items():
        if iteration.judge_pairs and judgments.n < 2:
            why = "false while judgments.n is 1: a judge pair needs two judgments to compare"
            yield ("iterations", t, "judge_pairs"), True, why
        training = recipe.training_of(t)
        if training.last_epoch > training.num_train_epochs:
            why = f"at most {training.num_train_epochs}, the epochs of this iteration's schedule"
            yield ("iterations", t, "stop_after_epoch"), training.stop_after_epoch, why
        if training.min_lr > training.learning_rate:
            why = f"at least {training.min_lr}, the rate at the end of the schedule (training.min_lr)"
            yield ("iterations", t, "learning_rate"), training.learning_rate, why


def _verdict_mismatches(recipe: Recipe) -> Iterator[Mismatch]:
    for name, section in (("judgments", recipe.judgments), ("meta_judgments", recipe.meta_judgments)):
        if section.retries and section.temperature == 0:
            yield (name, "retries"), section.retries, "0: a greedy judgment is the same each time"
    if isinstance(recipe.judge, str):
        for key, plain in (("verdict", "text"), ("retries", 0)):
            if (value := getattr(recipe.judgments, key)) != plain:
                yield ("judgments", key), value, f"{plain}, as judge is an object of yours, which judges as it does"


def _unknown_uncertainty(recipe: Recipe) -> str | None:
    """Why it isn't known how sure a judge is of an answer's score; None if it is, or a judge of the user's may say."""
    judgments = recipe.judgments
    if recipe.reward is not None:
        return "a reward doesn't say how sure it is"
    known = judgments.n > 1 or judgments.score == "expected" or names_criteria(judgments.rubric)
    if known or isinstance(recipe.judge, str):
        return None
    return "one judgment as written doesn't say how sure it is; judgments.score expected, or a rubric of criteria, does"


def _adaptive_mismatches(recipe: Recipe) -> Iterator[Mismatch]:
    """Rounds of judgments, and comparisons of some pairs."""
    judgments, first, most = recipe.judgments, recipe.judgments.first_round, recipe.meta_judgments.max_pairs
    if first is not None:
        key, least = ("judgments", "first_round"), max(2, judgments.min_valid)
        if isinstance(recipe.judge, str) or recipe.reward is not None or names_criteria(judgments.rubric):
            yield key, first, "null: rounds are for judgments that the model or a server writes"
        elif judgments.n <= least:
            yield key, first, f"null, as all of judgments.n, {judgments.n}, are needed at first"
        elif not least <= first < judgments.n:
            yield key, first, f"from {least} to {judgments.n - 1}, or null: below judgments.n, enough for a variance"
    if most is not None and 2 * most < recipe.pairs.min_battles:
        least = (recipe.pairs.min_battles + 1) // 2
        why = f"at least {least}: in both orders that is enough for pairs.min_battles, {recipe.pairs.min_battles}"
        yield ("meta_judgments", "max_pairs"), most, why


def _criteria_mismatches(recipe: Recipe) -> Iterator[Mismatch]:
    """Criteria give one score of their own probabilities, the same each time, and no text to compare or train on."""
    judgments, evaluation = recipe.judgments, recipe.evaluation
    if not names_criteria(judgments.rubric) or isinstance(recipe.judge, str):
        return
    wrong = [
        *(["judgments.n 1"] if judgments.n > 1 else []),
        *(["judgments.min_valid 1"] if judgments.min_valid > 1 else []),
        *(["evaluation.judgments 1"] if evaluation.judgments > 1 else []),
        *(["evaluation.meta_pairs 0"] if evaluation.meta_pairs else []),
        *(f"iterations.{t}.judge_pairs false" for t, each in recipe.iterations.items() if each.judge_pairs),
    ]
    if wrong:
        why = "N judgments by criteria are the same, and judge pairs and meta-judgments are of written judgments"
        yield ("judgments", "rubric"), judgments.rubric, f"with a rubric of criteria also {', '.join(wrong)}: {why}"


def _ray_mismatches(recipe: Recipe) -> Iterator[Mismatch]:
    """Nodes may differ, so that 'auto' could mean another number format, and other texts, on each."""
    for key, settings in recipe.engines:
        if not isinstance(settings, RaySettings):
            continue
        if settings.engine.kind == "local" and settings.engine.dtype == "auto":
            yield (*key, "engine", "dtype"), "auto", "float32 or bfloat16: with kind ray all nodes must compute in one"
        if settings.engine.kind == "vllm" and settings.engine.reload:
            why = "false: replicas on Ray are closed before training, as it needs their GPUs"
            yield (*key, "engine", "reload"), True, why


def _benchmark_mismatches(recipe: Recipe) -> Iterator[Mismatch]:
    for place, benchmark in enumerate(recipe.benchmarks):
        if benchmark.name in [each.name for each in recipe.benchmarks[:place]]:
            why = f"a name of its own: {benchmark.name} is an earlier benchmark's"
            yield ("benchmarks", place, "name"), benchmark.name, why
        if any(t > len(recipe.iterations) for t in benchmark.models):
            last = f"at most {len(recipe.iterations)}, the last iteration"
            yield ("benchmarks", place, "models"), list(benchmark.models), last
        for field, value, expected in benchmark.mismatches(recipe.prompts.source in WORLDS):
            yield ("benchmarks", place, field), value, expected


def load_recipe(
    name_or_path: str, overrides: Sequence[str] = (), benchmarks: Mapping[str, type[Benchmark]] = BENCHMARKS
) -> Recipe:
    """The recipe of a preset's name or a YAML file, changed by each ``dotted.key=value`` of ``overrides``.

    ``benchmarks`` are the kinds that its benchmarks may have, besides import paths.
    A recipe without a name is called after its file. Raises `UserError` with one line that names the place, the key,
    its value and what is expected.
    """
    path, run = recipe_path(name_or_path), run_of(name_or_path)
    name = run.name() if run is not None and path == run.recipe else path.stem
    tree = read_layers(path, overrides, {"name": name, "iterations": PAPER_ITERATIONS})
    try:
        return Recipe.model_validate(tree.values, context={"benchmarks": benchmarks})
    except ValidationError as error:
        other = "" if run is None else run.other_version()
        raise UserError(f"{explain(error, tree, label(path), Recipe)}{other}") from None


def pairs_rules(recipe: Recipe, t: int) -> PairRules:
    """How iteration ``t``'s records become pairs."""
    iteration = recipe.iterations[t]
    own = iteration.model_dump(include={"rho", "max_answer_chars", "judge_pairs", "max_judgment_chars"})
    return PairRules(**own, **recipe.pairs.model_dump(), min_valid=recipe.judgments.min_valid)


def _rounds_fingerprint(recipe: Recipe, t: int) -> dict[str, object]:
    """What decides which judgments are asked in rounds."""
    if recipe.judgments.first_round is None:
        return {}
    return {
        "judgments.rounds.rho": recipe.iterations[t].rho,
        "judgments.rounds.mask_truncated_completions": recipe.pairs.mask_truncated_completions,
        "judgments.rounds.judge_pairs": recipe.runs_meta_judge(t),
    }


def generation_fingerprint(
    recipe: Recipe, t: int, *, model: str, prompts: str, rubric: str, metarubric: str
) -> dict[str, object]:
    """All that bears on what iteration ``t``'s records say, under dotted keys; nothing about where they are made.

    ``model`` fingerprints the weights and tokenizer, the others are SHA-256 of the chosen prompts and of the two
    rubrics' texts. The meta-judge's settings count only where it is asked, the batch's shape only where the run
    promises the same text again.
    """
    names = {"answers", "judgments", *(["reasoning"] if recipe.reasoning.strip else [])}
    meta = flatten(recipe.model_dump(mode="json", include={"meta_judgments"}))
    return {
        "seed": recipe.seed,
        "iteration": t,
        "model": model,
        "prompts": prompts,
        **flatten(recipe.model_dump(mode="json", include=names)),
        "judgments.rubric": rubric,
        "judgments.reader_version": READER_VERSION,
        **_rounds_fingerprint(recipe, t),
        "meta_judge": recipe.runs_meta_judge(t),
        **({**meta, "meta_judgments.rubric": metarubric} if recipe.runs_meta_judge(t) else {}),
        **engine_fingerprint(recipe.engine),
    }
