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

from metareward.config.schema import BenchmarkSettings, Recipe, load_recipe
from metareward.errors import UserError
from metareward.evaluation import judges as label_judge
from metareward.evaluation.arena_hard import run as arena_judge
from metareward.evaluation.judge_quality.data import read_pairs, read_rankings
from metareward.evaluation.mt_bench import run as mt_bench_judge
from metareward.generation.progress import ANSWERS, JUDGMENTS, META
from metareward.generation.throughput import UNKNOWN, Rates, measure_rates
from metareward.pipeline.benchmarks import Entry, entries, questions_of
from metareward.pipeline.engines import model_folder
from metareward.pipeline.experiment import Experiment
from metareward.storage.run_dir import RunDir, read_done
from metareward.storage.store import RecordStore, from_json
from metareward.training.memory import Load, model_size, training_bytes
from metareward.types import PromptRecord, Sampling

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
            for _, document in store.documents():
                for role, count in _completions(from_json(document)):
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


# --- What a recipe's benchmarks ask for, counted before anything is asked: completions by role, and their longest
# texts.
#
# Upper bounds, but for Arena-Hard's second tries. What is counted from answers and judgments that are there asks
# nothing.
# A judge that is another model than M_t counts here, and the time that it takes does not.


_GAMES = 2  # each pair is shown in both orders
_OUTPUTS = 2  # the model's and the one that it is compared with


@dataclass(frozen=True, slots=True)
class Asking:
    """So many completions of one role, at most ``limit`` tokens each, of M_t itself or of another judge.

    ``like_the_run``: they are what the run asks in this role, so what is known of those holds for them.
    """

    role: str
    calls: int
    limit: int
    itself: bool = True
    like_the_run: bool = True


def askings(recipe: Recipe, t: int, held_out: int) -> tuple[Asking, ...]:
    """What all benchmarks ask of M_t and about it, with so many held-out prompts.

    Raises `UserError` for a file of questions that can't be read or isn't there.
    """
    every = entries(Experiment(RunDir(Path(recipe.name)), recipe), t)
    return tuple(asking for entry in every for asking in _of(entry, held_out))


def _of(entry: Entry, held_out: int) -> list[Asking]:
    asked, recipe = entry.asked, entry.of.recipe
    if not entry.due and not entry.answering:
        return []
    outputs = _outputs(entry.local, held_out)
    found = [Asking(ANSWERS, outputs, recipe.answers.max_tokens)] if entry.answering else []
    if entry.due and not entry.graded and asked.judge != "oracle":
        found.append(_judging(entry, outputs))
    return found


def _outputs(asked: BenchmarkSettings, held_out: int) -> int:
    """Texts of one model; of a benchmark of judges, responses to be graded, or pairs where they are compared."""
    if asked.questions is None:
        return held_out
    if asked.kind != "judge":
        return sum(_turns(asked, len(each.messages)) for each in questions_of(asked))
    path = Path(asked.questions)
    if asked.form == "pairs":
        pairs = len(read_pairs(path))
        return pairs if asked.prompt else pairs * _OUTPUTS
    return sum(len(item.responses) for item in read_rankings(path))


def _turns(asked: BenchmarkSettings, messages: int) -> int:
    return messages if asked.kind == "mt-bench" else 1


def _judging(entry: Entry, outputs: int) -> Asking:
    asked, itself = entry.asked, entry.asked.judge == "itself"
    if asked.prompt is not None and (asked.kind, asked.form) != ("judge", "rankings"):
        games, sampling = _questions(asked)
        return Asking(JUDGMENTS, outputs * games, sampling.max_tokens, itself, like_the_run=False)
    judged = entry.of.recipe.judgments
    each = asked.judgments if judged.temperature > 0 else 1
    shown = _OUTPUTS if asked.kind in ("alpaca", "arena") else 1
    return Asking(JUDGMENTS, outputs * shown * each, judged.max_tokens, itself)


def _questions(asked: BenchmarkSettings) -> tuple[int, Sampling]:
    """How often a judge with the benchmark's own prompt is asked about each output, and how."""
    if asked.kind == "arena":
        return _GAMES, arena_judge.SAMPLING
    if asked.kind == "mt-bench":
        return 1, mt_bench_judge.SAMPLING
    return (1 if asked.kind == "alpaca" else _GAMES), label_judge.SAMPLING


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
    asked, uncounted = _asked(recipe, held_out or 0)
    benchmarks = None if asked is None else tuple(_benchmarked(t, found, rates) for t, found in enumerate(asked))
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
    steps = ceil((prompts + judge_pairs) / recipe.training.batch_size) * recipe.keep_epoch(t)
    return IterationPlan(t, _roles(recipe, answers, answers * n, battles, rates), prompts, judge_pairs, steps)


def _evaluation(recipe: Recipe, t: int, held_out: int, rates: Rates) -> EvaluationPlan:
    """Every model after M0 judges its own answers and M0's (see `metareward.evaluation.held_out`)."""
    asked = recipe.evaluation
    answers = held_out * asked.answers
    judgments = answers * asked.judgments * (1 if t == 0 else 2)
    return EvaluationPlan(f"M{t}", _roles(recipe, answers, judgments, held_out * asked.meta_pairs * 2, rates))


def _asked(recipe: Recipe, held_out: int) -> tuple[list[tuple[Asking, ...]] | None, str | None]:
    """What the benchmarks ask after each iteration from 0 on; or None, and why it can't be counted."""
    try:
        return [askings(recipe, t, held_out) for t in range(len(recipe.iterations) + 1)], None
    except UserError as error:
        return None, str(error)


def _benchmarked(t: int, found: Sequence[Asking], rates: Rates) -> EvaluationPlan:
    return EvaluationPlan(f"M{t}", tuple(_asking(each, rates) for each in found))


def _asking(asked: Asking, rates: Rates) -> RolePlan:
    known = rates.tokens_each if asked.itself and asked.like_the_run else {}
    tokens = round(asked.calls * known.get(asked.role, asked.limit))
    spent = rates.seconds(asked.role, asked.calls, tokens) if asked.itself else 0.0
    return RolePlan(asked.role, asked.calls, tokens, spent)


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
    rows = 2 * asked.micro_batch_size
    completion = max(recipe.answers.max_tokens, recipe.judgments.max_tokens)
    load = Load(
        tokens=rows * asked.max_length,
        completion_tokens=rows * min(asked.max_length, completion),
        adapter=0 if asked.method == "full" else asked.lora.rank,
        four_bit=asked.method == "qlora",
        two_bytes=asked.dtype == "bfloat16" or (asked.dtype == "auto" and asked.device != "cpu"),
        checkpointing=asked.gradient_checkpointing,
        separate_reference=asked.method == "full" or asked.reference in ("m0", "ema"),
        processes=asked.processes,
        sharding=asked.sharding,
    )
    return training_bytes(size, load)


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
