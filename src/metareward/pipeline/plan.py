"""What a recipe will cost: completions, tokens, pairs, training steps, disk, memory, and time if a rate is known.

Counts are upper bounds: duplicate answers aren't judged, unreadable judgments aren't compared, filters drop pairs.
Tokens are completion tokens: ``max_tokens`` for each completion, or the mean length measured on an earlier run.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from metareward.config.schema import Recipe, load_recipe
from metareward.engines.base import run_concurrently
from metareward.engines.vllm import automatic_engine
from metareward.errors import UserError
from metareward.evaluation.base import Completions
from metareward.generation.progress import ANSWERS, JUDGMENTS, META
from metareward.generation.throughput import UNKNOWN, Rates, measure_judge, measure_rates
from metareward.generation.usage import benchmark_seconds
from metareward.method.template import conversation
from metareward.pipeline.benchmarks import BenchmarkRun, benchmark_runs
from metareward.pipeline.bound_recipe import BoundRecipe, most_questions, most_tokens
from metareward.pipeline.engines import model_folder, open_judge
from metareward.pipeline.judge_check import planned_completions
from metareward.pipeline.kept_models import most_models
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir, read_done
from metareward.storage.store import RecordStore
from metareward.training.memory import host_bytes, model_size, training_bytes
from metareward.training.requirements import memory_spec
from metareward.types import Judge, Prompt, PromptRecord

# --- lengths and speed ---


def measured_rates(run: RunDir, tokens_per_second: float | None = None) -> Rates:
    """Mean completion length by kind in a run's records, and tokens per second of its finished iterations.

    ``tokens_per_second`` overrides the measured speed. Raises `UserError` if ``run`` is no run folder.
    """
    run.require()
    calls, tokens = Counter[str](), Counter[str]()
    timed_tokens, timed_seconds = 0, 0.0
    for t in load_recipe(str(run.resolved)).iterations:
        folder, before = run.iteration(t), tokens.total()
        if folder.records.is_file():
            with RecordStore.read(folder.records) as store:
                for kind, count in (each for record in read_records(store) for each in _completions(record)):
                    calls[kind] += 1
                    tokens[kind] += count
        stages = (read_done(folder.done) or {}).get("seconds")
        seconds = stages.get("generating") if isinstance(stages, Mapping) else None
        if isinstance(seconds, int | float) and seconds > 0:
            timed_tokens += tokens.total() - before
            timed_seconds += seconds
    measured = timed_tokens / timed_seconds if timed_seconds else None
    lengths = {kind: tokens[kind] / calls[kind] for kind in calls}
    return Rates(tokens_per_second or measured, lengths, judges=_measured_judges(run))


def _measured_judges(run: RunDir) -> dict[str | None, tuple[float, float]]:
    """Tokens and seconds of a judgment by the judges beside the model, from what a run stored and logged of them."""
    seconds, found = benchmark_seconds(run), dict[str | None, tuple[float, float]]()
    for folder in (each for each in run.verdicts.glob("*") if each.name in seconds):
        tokens = list[int]()
        for path in folder.glob("*.sqlite"):
            with RecordStore.read(path) as store:
                tokens += (count for _, document in store.documents() for count in json.loads(document)["tokens"])
        if tokens:
            found[folder.name] = sum(tokens) / len(tokens), seconds[folder.name] / len(tokens)
    return found


def _completions(record: PromptRecord) -> Iterator[tuple[str, int]]:
    """Kind and tokens of every completion in a record."""
    for answer in record.candidates_K:
        yield ANSWERS, answer.tokens
        yield from ((JUDGMENTS, judgment.tokens) for judgment in answer.judgments_N)
    if record.dispute is not None:
        yield from ((META, meta.tokens) for meta in record.dispute.meta)


def measure_recipe(recipe: Recipe, seconds: float) -> Rates:
    """Lengths and speed of M_0 on the recipe's prompts and engine, measured for ``seconds`` for each role.

    So are the judges beside the model whose cost is listed: each is asked about a few answers of M_0. Writes only
    to a temporary folder. Raises `UserError` for a recipe that can't run, `EngineError` if an engine fails.
    """

    async def measure(bound: BoundRecipe) -> Rates:
        # The first iteration with the meta-judge measures all three roles.
        t = next((t for t in sorted(recipe.iterations) if recipe.runs_meta_judge(t)), 1)
        engine, prompts, settings = await bound.engine(0), bound.choose_prompts(1), bound.settings(t)
        asked = [each for each in benchmark_runs(bound, 0) if _has_listed_judge(each)]
        try:
            rates = await measure_rates(engine, prompts, settings, seconds, recipe.prompts.in_flight)
            shown = prompts[: _MEASURED_ANSWERS if asked else 0]
            answered = await run_concurrently(
                engine.complete(each.messages, settings.answers, 1, "actor") for each in shown
            )
        finally:
            await engine.aclose()
        answers = [(prompt, answer.text) for prompt, (answer,) in zip(shown, answered, strict=True)]
        return replace(
            rates, judges={each.benchmark.name: await _measure_judge(each, answers, seconds) for each in asked}
        )

    with tempfile.TemporaryDirectory() as folder:
        bound = BoundRecipe(RunDir(Path(folder)), recipe)
        bound.check()
        return asyncio.run(measure(bound))


async def _measure_judge(
    run: BenchmarkRun, answers: Sequence[tuple[Prompt, str]], seconds: float
) -> tuple[float, float]:
    judge = await open_judge(str(run.benchmark.asked_judge))
    try:
        return await measure_judge(judge, answers, run.grader, seconds)
    finally:
        if not isinstance(judge, Judge):
            await judge.aclose()


def _has_listed_judge(run: BenchmarkRun) -> bool:
    if run.benchmark.asked_judge in (None, "itself"):
        return False
    try:
        asked = run.local.judge_completions(0, run.grader)
    except UserError:  # its questions can't be read yet: the plan says so
        return False
    return asked is not None and asked.judge is not None


# --- the plan ---

# Rough sizes for the disk estimate, in bytes.
_BYTES_PER_TOKEN = 5
_BYTES_PER_COMPLETION = 130
_CHARS_PER_TOKEN = 4
_MEASURED_ANSWERS = 16  # of M_0, on which other judges are measured


@dataclass(frozen=True, slots=True)
class RolePlan:
    """Completions of one kind, their expected tokens, and seconds if a rate is known."""

    role: str
    calls: int
    tokens: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class IterationPlan:
    """Upper bounds for iteration ``t``. ``steps``: optimizer steps until the epoch at which training stops."""

    t: int
    roles: tuple[RolePlan, ...]
    actor_pairs: int
    judge_pairs: int
    steps: int


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """Evaluation of one model, on the held-out prompts or by the recipe's benchmarks."""

    model: str
    roles: tuple[RolePlan, ...]


@dataclass(frozen=True, slots=True)
class JudgePlan:
    """What a benchmark's judge beside the model is asked about all models. ``price``: None if none is given.

    ``prompt_tokens`` rest on about four characters a token; every judgment reads its prompt, though servers that give
    several judgments at once read it once. ``prompts_known``: the held-out prompts' lengths are in it.
    """

    name: str
    calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float | None
    price: str | None
    prompts_known: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole run. ``seconds``: generation and evaluation without training; None if no rate is known.

    ``prompts_needed``: prompts to train on. ``check``: the judge on labelled pairs, empty if the recipe asks for none.
    ``training_bytes``: upper bounds of training memory, per device and of the host. They, ``held_out`` and
    ``model_bytes`` are None if the file or folder doesn't exist; ``benchmarks`` is None if a file of questions can't be
    read, and ``uncounted`` says why. ``other_judges``: benchmarks ask judges that are other models, whose time is not
    in ``seconds``.
    ``questions``: the most that a judgment by criteria asks the judge, 0 without criteria. ``verdict_requests``:
    further requests, for constrained verdicts, one for each judgment that has one.
    """

    name: str
    engine: str
    prompts_needed: int
    held_out: int | None
    measured: bool
    check: tuple[RolePlan, ...]
    iterations: tuple[IterationPlan, ...]
    evaluations: tuple[EvaluationPlan, ...]
    benchmarks: tuple[EvaluationPlan, ...] | None
    uncounted: str | None
    other_judges: bool
    judges: tuple[JudgePlan, ...]
    questions: int
    verdict_requests: int
    record_bytes: int
    model_bytes: int | None
    training_bytes: tuple[int, int] | None
    seconds: float | None

    @property
    def roles(self) -> tuple[RolePlan, ...]:
        """All completions."""
        return (*self.check, *_all_roles((*self.iterations, *self.evaluations, *(self.benchmarks or ()))))

    @property
    def tokens(self) -> int:
        """All completion tokens."""
        return sum(role.tokens for role in self.roles)


def _all_roles(parts: Sequence[IterationPlan | EvaluationPlan]) -> tuple[RolePlan, ...]:
    return tuple(role for part in parts for role in part.roles)


def _seconds(roles: Iterable[RolePlan]) -> float | None:
    """The sum of seconds; None if one is unknown."""
    seconds = [role.seconds for role in roles]
    return None if None in seconds else sum(each or 0.0 for each in seconds)


def plan(recipe: Recipe, rates: Rates = UNKNOWN) -> Plan:
    """The plan of ``recipe``. Reads the disk only for the model's size, held-out prompts and benchmark questions."""
    held_out, (automatic, why) = _count_held_out(recipe.prompts.held_out), automatic_engine()
    iterations = tuple(_plan_iteration(recipe, t, rates) for t in sorted(recipe.iterations))
    models = range(len(iterations) + 1)
    evaluations = tuple(_plan_evaluation(recipe, t, held_out or 0, rates) for t in models)
    bound = BoundRecipe(RunDir(Path(recipe.name)), recipe)
    uncounted: str | None = None
    benchmarks: tuple[EvaluationPlan, ...] | None = None
    try:
        asked_T = [[c for run in benchmark_runs(bound, t) for c in run.completions(held_out or 0)] for t in models]
        benchmarks = tuple(
            EvaluationPlan(f"M{t}", tuple(_plan_benchmark(each, rates) for each in asked))
            for t, asked in enumerate(asked_T)
        )
    except UserError as error:
        asked_T, benchmarks, uncounted = [], None, str(error)
    check = _roles(recipe, *planned_completions(recipe), rates) if recipe.judge_check.action else ()
    all_roles = (*check, *_all_roles((*iterations, *evaluations, *(benchmarks or ()))))
    folder = model_folder(recipe.model)
    files = [file for file in folder.iterdir() if file.is_file()] if folder.is_dir() else None
    return Plan(
        name=recipe.name,
        engine=f"{recipe.engine.kind} (auto is {automatic['kind']} here: {why}){_cluster_note(recipe)}",
        prompts_needed=recipe.prompts.per_iteration * len(iterations),
        held_out=held_out,
        measured=bool(rates.tokens_each),
        check=check,
        iterations=iterations,
        evaluations=evaluations,
        benchmarks=benchmarks,
        uncounted=uncounted,
        other_judges=any(_unknown_speed(each, rates) for asked in asked_T for each in asked),
        judges=_plan_judges(bound, [each for asked in asked_T for each in asked], rates),
        questions=most_questions(recipe.judgments),
        verdict_requests=_verdict_requests(recipe, (*check, *_all_roles((*iterations, *evaluations))), asked_T),
        record_bytes=sum(role.tokens * _BYTES_PER_TOKEN + role.calls * _BYTES_PER_COMPLETION for role in all_roles),
        model_bytes=None if files is None else sum(file.stat().st_size for file in files) * most_models(recipe),
        training_bytes=_training_bytes(recipe),
        seconds=_seconds(all_roles),
    )


def _cluster_note(recipe: Recipe) -> str:
    """How many GPUs of a Ray cluster the prompts in flight keep busy; empty without one."""
    if recipe.engine.kind != "ray":
        return ""
    in_flight = recipe.prompts.in_flight  # docs/engines.md: about 64 for each GPU
    return f"; prompts.in_flight, {in_flight}, keeps about {ceil(in_flight / 64)} GPUs busy"


def _count_held_out(held_out: int | str) -> int | None:
    if isinstance(held_out, int):
        return held_out
    path = Path(held_out)
    return sum(1 for line in path.open("rb") if line.strip()) if path.is_file() else None


def _plan_iteration(recipe: Recipe, t: int, rates: Rates) -> IterationPlan:
    prompts, n = recipe.prompts.per_iteration, recipe.judgments.n
    answers = prompts * recipe.answers.k
    most_pairs = min(n * (n - 1) // 2, recipe.meta_judgments.max_pairs or n * n)
    comparisons = prompts * 2 * most_pairs if recipe.runs_meta_judge(t) else 0
    judge_pairs = prompts if recipe.iterations[t].judge_pairs else 0
    steps = ceil((prompts + judge_pairs) / recipe.training.batch_size) * recipe.training_of(t).last_epoch
    judgments = 0 if recipe.reward is not None else answers * n
    return IterationPlan(t, _roles(recipe, answers, judgments, comparisons, rates), prompts, judge_pairs, steps)


def _plan_evaluation(recipe: Recipe, t: int, held_out: int, rates: Rates) -> EvaluationPlan:
    """Every model after M0 judges its own answers and M0's (see `metareward.evaluation.held_out`)."""
    section = recipe.evaluation
    answers = held_out * section.answers
    judgments = answers * section.judgments * (1 if t == 0 else 2)
    return EvaluationPlan(f"M{t}", _roles(recipe, answers, judgments, held_out * section.meta_pairs * 2, rates))


def _roles(recipe: Recipe, answers: int, judgments: int, comparisons: int, rates: Rates) -> tuple[RolePlan, ...]:
    limits = {
        ANSWERS: (answers, recipe.answers.max_tokens),
        JUDGMENTS: (judgments, most_tokens(recipe.judgments)),
        META: (comparisons, most_tokens(recipe.meta_judgments)),
    }
    sizes = [(kind, calls, round(calls * rates.tokens_each.get(kind, top))) for kind, (calls, top) in limits.items()]
    return tuple(RolePlan(*size, rates.seconds(*size)) for size in sizes)


def _verdict_requests(recipe: Recipe, roles: Sequence[RolePlan], asked_T: Sequence[Sequence[Completions]]) -> int:
    """Verdicts that are drawn by a request of their own; benchmarks with a prompt of their own have none."""
    sections = ((JUDGMENTS, recipe.judgments), (META, recipe.meta_judgments))
    kinds = [kind for kind, section in sections if section.verdict == "constrained" and not most_questions(section)]
    calls = [(role.role, role.calls) for role in roles]
    calls += [(each.role, each.calls) for asked in asked_T for each in asked if each.like_run]
    return sum(count for kind, count in calls if kind in kinds)


def _plan_benchmark(asked: Completions, rates: Rates) -> RolePlan:
    """The speed of judges that are other models counts as 0 seconds where it isn't measured."""
    if asked.judge in rates.judges:
        tokens_each, seconds_each = rates.judges[asked.judge]
        return RolePlan(asked.role, asked.calls, round(asked.calls * tokens_each), asked.calls * seconds_each)
    lengths = rates.tokens_each if asked.itself and asked.like_run else {}
    tokens = round(asked.calls * lengths.get(asked.role, asked.max_tokens))
    seconds = rates.seconds(asked.role, asked.calls, tokens) if asked.itself else 0.0
    return RolePlan(asked.role, asked.calls, tokens, seconds)


def _unknown_speed(asked: Completions, rates: Rates) -> bool:
    return not asked.itself and asked.judge not in rates.judges


def _plan_judges(bound: BoundRecipe, asked: Sequence[Completions], rates: Rates) -> tuple[JudgePlan, ...]:
    """The judges whose cost is listed, over all models."""
    names = dict.fromkeys(each.judge for each in asked if each.judge is not None)
    chars = _prompt_chars(bound) if names else None
    answer = rates.tokens_each.get(ANSWERS, bound.recipe.answers.max_tokens)
    found = []
    for name in names:
        own = [each for each in asked if each.judge == name]
        roles, price = [_plan_benchmark(each, rates) for each in own], own[0].price
        completion, read = sum(role.tokens for role in roles), (own[0].prompt_chars + (chars or 0)) / _CHARS_PER_TOKEN
        prompt = round(sum(role.calls for role in roles) * (read + answer))
        found.append(
            JudgePlan(
                name=str(name),
                calls=sum(role.calls for role in roles),
                prompt_tokens=prompt,
                completion_tokens=completion,
                seconds=None if _unknown_speed(own[0], rates) else _seconds(roles),
                price=None if price is None else price.of(prompt, completion),
                prompts_known=chars is not None,
            )
        )
    return tuple(found)


def _prompt_chars(bound: BoundRecipe) -> float | None:
    """The mean length of the held-out prompts; None if their file can't be read yet."""
    try:
        prompts = bound.choose_prompts(0)
    except UserError:
        return None
    return sum(len(conversation(prompt.messages)) for prompt in prompts) / max(1, len(prompts))


def _training_bytes(recipe: Recipe) -> tuple[int, int] | None:
    size = model_size(model_folder(recipe.model))
    if size is None:
        return None
    spec = memory_spec(recipe.training, max(recipe.answers.max_tokens, recipe.judgments.max_tokens))
    return training_bytes(size, spec), host_bytes(size, spec)


# --- as text ---


def plan_table(made: Plan) -> Group:
    """The plan for the terminal: a row for each iteration, for evaluation, benchmarks and the sum; notes below."""
    table = Table(title=f"{made.name}: at most", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in (ANSWERS, JUDGMENTS, META, "tokens", "time", "actor pairs", "judge pairs", "DPO steps"):
        table.add_column(name, justify="right")
    for each in made.iterations:
        table.add_row(f"iteration {each.t}", *_generation_cells(each.roles), *_training_cells([each]))
    table.add_section()
    if made.check:
        table.add_row("checking the judge", *_generation_cells(made.check), "", "", "")
    evaluation = _all_roles(made.evaluations)
    table.add_row(f"evaluating M0..M{len(made.iterations)}", *_generation_cells(evaluation), "", "", "")
    if benchmarks := _all_roles(made.benchmarks or ()):
        table.add_row("benchmarks", *_generation_cells(benchmarks), "", "", "")
    table.add_section()
    table.add_row("all", *_generation_cells(made.roles), *_training_cells(made.iterations))
    return Group(table, *(Text(note) for note in _notes(made)))


def _generation_cells(roles: Sequence[RolePlan]) -> tuple[str, ...]:
    """Completions by kind, then tokens and time of all."""
    calls = Counter[str]()
    for role in roles:
        calls[role.role] += role.calls
    seconds = _seconds(roles)
    time = "" if seconds is None else _duration(seconds)
    return (*(f"{calls[kind]:,}" for kind in (ANSWERS, JUDGMENTS, META)), f"{sum(r.tokens for r in roles):,}", time)


def _training_cells(iterations: Sequence[IterationPlan]) -> tuple[str, str, str]:
    actor, judge = sum(each.actor_pairs for each in iterations), sum(each.judge_pairs for each in iterations)
    return f"{actor:,}", f"{judge:,}", f"{sum(each.steps for each in iterations):,}"


def _notes(made: Plan) -> Iterator[str]:
    held_out = "an unknown number (the file isn't there)" if made.held_out is None else f"{made.held_out:,}"
    yield f"prompts: {made.prompts_needed:,} to train on, {held_out} others for evaluation"
    lengths = "with measured lengths" if made.measured else "each completion as long as max_tokens allows"
    yield f"tokens: completion tokens, {lengths}; prompt tokens come on top"
    if made.questions:
        yield f"criteria: each judgment asks up to {made.questions} questions of one token, which differ in their end"
    if made.verdict_requests:
        verdicts = f"{made.verdict_requests:,} more requests, which read a prompt and its judgment again"
        yield f"verdicts: constrained ones take {verdicts}; their tokens and time are counted"
    models = "unknown until the model's folder exists" if made.model_bytes is None else _size(made.model_bytes)
    for judge in made.judges:
        yield _judge_note(judge)
    yield f"engine: {made.engine}"
    yield f"disk: records {_size(made.record_bytes)}, models {models}"
    if made.training_bytes is not None:
        device, host = (_size(each) for each in made.training_bytes)
        on_gpus = f"; on GPUs also {host} of the machine's own memory, to load and save weights"
        yield f"memory: training takes at most about {device} on each device, besides the libraries{on_gpus}"
    if made.seconds is None:
        yield "time: give --measure, --rate TOKENS_PER_SECOND, or --like RUN with a run that has finished an iteration"
    else:
        others = ", and judges that are other models" if made.other_judges else ""
        yield f"time: {_duration(made.seconds)} to generate and evaluate; training comes on top{others}"
    if made.uncounted is not None:
        yield f"benchmarks: not counted: {made.uncounted}"


def _judge_note(judge: JudgePlan) -> str:
    """Calls, tokens, money and time of a judge beside the model."""
    known = "" if judge.prompts_known else ", the questions' own not counted"
    cost = "no price given (benchmarks: price)" if judge.price is None else judge.price
    time = (
        "time unknown (--measure asks it for a moment, --like RUN takes a run's)"
        if judge.seconds is None
        else _duration(judge.seconds)
    )
    return (
        f"judge {judge.name}: {judge.calls:,} judgments, about {judge.prompt_tokens:,} prompt tokens{known}, "
        f"{judge.completion_tokens:,} completion tokens; {cost}; {time}"
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
