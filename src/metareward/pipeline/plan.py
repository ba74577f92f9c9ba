"""What a recipe will cost, before anything is spent: calls, tokens, pairs, training steps, disk, perhaps time.

Counts are upper bounds: repeated answers aren't judged, unreadable judgments aren't compared, filters drop pairs.
Tokens are those written, at most ``max_tokens`` for each completion, or what an earlier run's records really took.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from metareward.config.schema import Recipe, load_recipe
from metareward.errors import UserError
from metareward.evaluation.base import Completions
from metareward.generation.progress import ANSWERS, JUDGMENTS, META
from metareward.generation.throughput import UNKNOWN, Rates, measure_rates
from metareward.pipeline.benchmarks import benchmark_runs
from metareward.pipeline.engines import model_folder
from metareward.pipeline.experiment import Experiment
from metareward.storage.run_dir import RunDir, read_done
from metareward.storage.store import RecordStore, read_records
from metareward.training.memory import MemorySpec, model_size, training_bytes
from metareward.types import PromptRecord

# --- How long completions are and how fast they come, measured on the records of a run.


def measured_rates(run: RunDir, tokens_per_second: float | None = None) -> Rates:
    """The mean length of completions by role in the records a run has, and how fast finished iterations wrote them.

    The rate comes from iterations whose done-mark says how many ``seconds`` their ``generating`` took;
    ``tokens_per_second`` goes before it.
    """
    if not run.resolved.is_file():
        raise UserError(f"{run.path}: no {run.resolved.name} here, so this is not a run folder; name one, as runs/NAME")
    recipe = load_recipe(str(run.resolved))
    written = [_written(run.iteration(t).records) for t in recipe.iterations]
    seconds = [_generating_seconds(run.iteration(t).done) for t in recipe.iterations]
    timed = [(each.tokens.total(), spent) for each, spent in zip(written, seconds, strict=True) if spent]
    spent = sum(spent for _, spent in timed)
    measured = sum(tokens for tokens, _ in timed) / spent if spent else None
    tokens = sum((each.tokens for each in written), Counter[str]())
    calls = sum((each.calls for each in written), Counter[str]())
    return Rates(tokens_per_second or measured, {role: tokens[role] / calls[role] for role in calls})


def _generating_seconds(done: Path) -> float | None:
    seconds = (read_done(done) or {}).get("seconds")
    spent = seconds.get("generating") if isinstance(seconds, Mapping) else None
    return float(spent) if isinstance(spent, int | float) and spent > 0 else None


@dataclass(frozen=True, slots=True)
class _Written:
    """Completions and tokens by role."""

    calls: Counter[str]
    tokens: Counter[str]


def _written(records: Path) -> _Written:
    calls, tokens = Counter[str](), Counter[str]()
    if records.is_file():
        with RecordStore.read(records) as store:
            for record in read_records(store):
                for role, count in _completions(record):
                    calls[role] += 1
                    tokens[role] += count
    return _Written(calls, tokens)


def _completions(record: PromptRecord) -> Iterator[tuple[str, int]]:
    """The role and the tokens of everything that was written for a prompt."""
    for answer in record.candidates_K:
        yield ANSWERS, answer.tokens
        yield from ((JUDGMENTS, judgment.tokens) for judgment in answer.judgments_N)
    if record.dispute is not None:
        yield from ((META, meta.tokens) for meta in record.dispute.meta)


# --- A recipe's engine tried out for a few seconds, in a folder that is thrown away.


def try_out(recipe: Recipe, seconds: float) -> Rates:
    """How long a completion of each role of ``recipe`` takes M_0, measured for ``seconds`` a role.

    Raises `UserError` for a recipe that couldn't run, `EngineError` for an engine that doesn't serve.
    """
    with tempfile.TemporaryDirectory() as folder:
        of = Experiment(RunDir(Path(folder)), recipe)
        of.check()
        return asyncio.run(_measured(of, seconds))


async def _measured(of: Experiment, seconds: float) -> Rates:
    engine = await of.engine(0)
    try:
        return await measure_rates(engine, of.first_prompts, of.settings(of.meta_judged), seconds)
    finally:
        await engine.aclose()


# --- Upper bounds of what the recipe takes; what a benchmark counts from stored answers and judgments asks nothing.


# Rough sizes for the disk estimate, in bytes.
_BYTES_A_TOKEN = 5
_BYTES_A_CALL = 130


@dataclass(frozen=True, slots=True)
class RolePlan:
    """So many completions of one role, the tokens they are expected to take, and the time if a rate is known."""

    role: str
    calls: int
    tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class IterationPlan:
    """What iteration ``t`` takes at most. ``steps`` are optimiser steps until the epoch that is kept."""

    t: int
    roles: tuple[RolePlan, ...]
    actor_pairs: int
    judge_pairs: int
    steps: int


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """What measuring one model takes, on the held-out prompts or by the recipe's benchmarks."""

    model: str
    roles: tuple[RolePlan, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole run. ``seconds`` cover generation and evaluation, not training; None when no rate is known.

    ``training_bytes`` is the memory that training takes at most on each device. It, ``held_out`` and ``model_bytes``
    are None when the file or folder they come from isn't there, and so are ``benchmarks`` when one's questions can't be
    read: ``uncounted`` says why. ``other_judges`` are asked too, whose time isn't in ``seconds``.
    """

    name: str
    prompts_needed: int
    held_out: int | None
    measured: bool
    iterations: tuple[IterationPlan, ...]
    evaluations: tuple[EvaluationPlan, ...]
    benchmarks: tuple[EvaluationPlan, ...] | None
    uncounted: str | None
    other_judges: bool
    record_bytes: int
    model_bytes: int | None
    training_bytes: int | None
    seconds: float | None

    @property
    def tokens(self) -> int:
        """All tokens written."""
        return sum(role.tokens for role in self.roles)

    @property
    def roles(self) -> tuple[RolePlan, ...]:
        """All that is asked."""
        return tuple(_all_roles((*self.iterations, *self.evaluations, *(self.benchmarks or ()))))


def _seconds(roles: Iterable[RolePlan]) -> float | None:
    """The time of all; None when one's is not known."""
    total = 0.0
    for role in roles:
        if role.seconds is None:
            return None
        total += role.seconds
    return total


def _all_roles(parts: Sequence[IterationPlan | EvaluationPlan]) -> list[RolePlan]:
    return [role for part in parts for role in part.roles]


def plan(recipe: Recipe, rates: Rates = UNKNOWN) -> Plan:
    """What ``recipe`` takes. Looks at the disk only for the size of the model and of a file of held-out prompts."""
    held_out = _held_out(recipe)
    iterations = tuple(_iteration(recipe, t, rates) for t in sorted(recipe.iterations))
    evaluations = tuple(_evaluation(recipe, t, held_out or 0, rates) for t in range(len(iterations) + 1))
    asked, uncounted = _benchmark_completions(recipe, held_out or 0)
    benchmarks = None
    if asked is not None:
        roles_T = (tuple(_benchmark_role(each, rates) for each in found) for found in asked)
        benchmarks = tuple(EvaluationPlan(f"M{t}", each) for t, each in enumerate(roles_T))
    roles = _all_roles((*iterations, *evaluations, *(benchmarks or ())))
    kept_apart = recipe.prompts.held_out if isinstance(recipe.prompts.held_out, int) else 0
    one_model = _model_bytes(recipe.model)
    return Plan(
        name=recipe.name,
        prompts_needed=recipe.prompts.per_iteration * len(iterations) + kept_apart,
        held_out=held_out,
        measured=bool(rates.tokens_each),
        iterations=iterations,
        evaluations=evaluations,
        benchmarks=benchmarks,
        uncounted=uncounted,
        other_judges=any(not each.itself for found in asked or () for each in found),
        record_bytes=sum(role.tokens * _BYTES_A_TOKEN + role.calls * _BYTES_A_CALL for role in roles),
        model_bytes=None if one_model is None else one_model * len(iterations),
        training_bytes=_training_bytes(recipe),
        seconds=_seconds(roles),
    )


def _iteration(recipe: Recipe, t: int, rates: Rates) -> IterationPlan:
    prompts, n = recipe.prompts.per_iteration, recipe.judgments.n
    answers = prompts * recipe.answers.k
    battles = prompts * n * (n - 1) if recipe.runs_meta_judge(t) else 0
    judge_pairs = prompts if recipe.iterations[t].judge_pairs else 0
    steps = ceil((prompts + judge_pairs) / recipe.training.batch_size) * recipe.training_of(t).last_epoch
    return IterationPlan(t, _roles(recipe, answers, answers * n, battles, rates), prompts, judge_pairs, steps)


def _evaluation(recipe: Recipe, t: int, held_out: int, rates: Rates) -> EvaluationPlan:
    """Every model after M0 judges its own answers and M0's (see `metareward.evaluation.held_out`)."""
    asked = recipe.evaluation
    answers = held_out * asked.answers
    judgments = answers * asked.judgments * (1 if t == 0 else 2)
    return EvaluationPlan(f"M{t}", _roles(recipe, answers, judgments, held_out * asked.meta_pairs * 2, rates))


def _benchmark_completions(recipe: Recipe, held_out: int) -> tuple[list[list[Completions]] | None, str | None]:
    """What the benchmarks ask after each iteration from 0 on; or None, and why it can't be counted."""
    experiment = Experiment(RunDir(Path(recipe.name)), recipe)
    try:
        return [
            [each for run in benchmark_runs(experiment, t) for each in run.completions(held_out)]
            for t in range(len(recipe.iterations) + 1)
        ], None
    except UserError as error:
        return None, str(error)


def _benchmark_role(asked: Completions, rates: Rates) -> RolePlan:
    """The time of judges that are other models isn't known."""
    known = rates.tokens_each if asked.itself and asked.like_run else {}
    tokens = round(asked.calls * known.get(asked.role, asked.max_tokens))
    seconds = rates.seconds(asked.role, asked.calls, tokens) if asked.itself else 0.0
    return RolePlan(asked.role, asked.calls, tokens, seconds)


def _roles(recipe: Recipe, answers: int, judgments: int, battles: int, rates: Rates) -> tuple[RolePlan, ...]:
    most = {
        ANSWERS: (answers, recipe.answers.max_tokens),
        JUDGMENTS: (judgments, recipe.judgments.max_tokens),
        META: (battles, recipe.meta_judgments.max_tokens),
    }
    sizes = [(role, calls, round(calls * rates.tokens_each.get(role, limit))) for role, (calls, limit) in most.items()]
    return tuple(RolePlan(*size, rates.seconds(*size)) for size in sizes)


def _held_out(recipe: Recipe) -> int | None:
    given = recipe.prompts.held_out
    if isinstance(given, int):
        return given
    path = Path(given)
    return sum(1 for line in path.open("rb") if line.strip()) if path.is_file() else None


def _model_bytes(model: str) -> int | None:
    folder = model_folder(model)
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file()) if folder.is_dir() else None


def _training_bytes(recipe: Recipe) -> int | None:
    size, asked = model_size(model_folder(recipe.model)), recipe.training
    if size is None:
        return None
    rows = 2 * asked.per_device_train_batch_size
    completion = max(recipe.answers.max_tokens, recipe.judgments.max_tokens)
    spec = MemorySpec(
        tokens=rows * asked.max_length,
        completion_tokens=rows * min(asked.max_length, completion),
        lora_r=0 if asked.method == "full" else asked.lora.r,
        four_bit=asked.method == "qlora",
        bfloat16=asked.dtype == "bfloat16" or (asked.dtype == "auto" and asked.device != "cpu"),
        gradient_checkpointing=asked.gradient_checkpointing,
        separate_reference=asked.method == "full" or asked.reference in ("m0", "ema"),
        num_processes=asked.num_processes,
        sharding=asked.sharding,
    )
    return training_bytes(size, spec)


def plan_table(made: Plan) -> Group:
    """The plan for the terminal: a line for each iteration, for the evaluations and for the sum; notes below."""
    table = Table(title=f"{made.name}: at most", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in (ANSWERS, JUDGMENTS, META, "tokens", "time", "actor pairs", "judge pairs", "DPO steps"):
        table.add_column(name, justify="right")
    for each in made.iterations:
        table.add_row(f"iteration {each.t}", *_called(each.roles), *_trained([each]))
    table.add_section()
    measuring = _all_roles(made.evaluations)
    table.add_row(f"evaluating M0..M{len(made.iterations)}", *_called(measuring), "", "", "")
    if tested := _all_roles(made.benchmarks or ()):
        table.add_row("benchmarks", *_called(tested), "", "", "")
    table.add_section()
    table.add_row("all", *_called(made.roles), *_trained(made.iterations))
    return Group(table, *(Text(note) for note in _notes(made)))


def _trained(iterations: Sequence[IterationPlan]) -> tuple[str, str, str]:
    actor, judge = sum(each.actor_pairs for each in iterations), sum(each.judge_pairs for each in iterations)
    return f"{actor:,}", f"{judge:,}", f"{sum(each.steps for each in iterations):,}"


def _called(roles: Iterable[RolePlan]) -> tuple[str, ...]:
    """Calls by role, then the tokens and the time of all."""
    calls, tokens, all_roles = Counter[str](), 0, tuple(roles)
    for role in all_roles:
        calls[role.role] += role.calls
        tokens += role.tokens
    seconds = _seconds(all_roles)
    spent = "" if seconds is None else _span(seconds)
    return (*(f"{calls[name]:,}" for name in (ANSWERS, JUDGMENTS, META)), f"{tokens:,}", spent)


def _notes(made: Plan) -> Iterator[str]:
    yield f"prompts: {made.prompts_needed:,} are needed, {_or_unknown(made.held_out)} are evaluated on"
    measured = "as long as measured" if made.measured else "each as long as max_tokens allows"
    yield f"tokens: those written, {measured}; prompts are read on top"
    models = "not known until the model's folder is there" if made.model_bytes is None else _size(made.model_bytes)
    yield f"disk: records {_size(made.record_bytes)}, models {models}"
    if made.training_bytes is not None:
        yield f"memory: training takes at most about {_size(made.training_bytes)} on each device, besides the libraries"
    if made.seconds is None:
        yield "time: give --measure, --rate TOKENS_PER_SECOND, or --like RUN with a run that has finished an iteration"
    else:
        others = ", and judges that are other models" if made.other_judges else ""
        yield f"time: {_span(made.seconds)} to generate and evaluate; training comes on top{others}"
    if made.uncounted is not None:
        yield f"benchmarks: what they ask isn't counted: {made.uncounted}"


def _or_unknown(count: int | None) -> str:
    return "an unknown number (the file isn't there)" if count is None else f"{count:,}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _span(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
