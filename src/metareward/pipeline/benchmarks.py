"""The recipe's benchmarks in the loop: M_t answers and is judged, and the results lie in ``iter-<t>/eval/<name>/``.

M_t's engine serves its answers, and its verdicts where M_t is the judge itself. Other judges are opened after it is
closed, so that two models never share the memory. Every answer and verdict is stored as it comes, so that a killed run
resumes with the rest; ``result.json`` is written last.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from metareward.config.sections import engine_fingerprint
from metareward.engines.base import Engine, StripReasoning
from metareward.errors import UserError
from metareward.evaluation.base import Benchmark, Completions, EvaluatedModel, ScoringInputs
from metareward.evaluation.judges import JudgeClient, JudgeSpec, JudgeUnavailableError, cached_queries
from metareward.generation.progress import ANSWERS, Progress
from metareward.generation.usage import BENCHMARK, log_usage
from metareward.generation.verdicts import RubricGrader
from metareward.method.template import with_system
from metareward.pipeline.bound_recipe import BoundRecipe, verdict_rules
from metareward.pipeline.engines import judge_fingerprint, open_judge
from metareward.pipeline.stages import held_out_of
from metareward.seeds import derive
from metareward.storage import manifest
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import fingerprint_model, weights_deleted
from metareward.storage.run_log import log_event, timed
from metareward.text import replace_surrogates
from metareward.types import Completion, Judge, Message, Messages, ModelRole, Prompt, Sampling

_STAGE = "benchmarks"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkRun:
    """One benchmark of the recipe and M_t: whether it is due, what is pending, where its files are."""

    bound: BoundRecipe
    t: int
    benchmark: Benchmark

    @property
    def model(self) -> str:
        """What M_t is called."""
        return f"M{self.t}"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.bound.run.iteration(self.t).evaluation / self.benchmark.name

    @property
    def answers(self) -> Path:
        """M_t's answers to the benchmark's requests, in the benchmark's own format."""
        return self.folder / self.benchmark.answers_file

    @property
    def result(self) -> Path:
        """The results."""
        return self.folder / "result.json"

    @property
    def pending(self) -> Path:
        """Why the judge is asked again by the next start; there where it couldn't be asked for all that is needed."""
        return self.folder / "pending.json"

    @property
    def local(self) -> Benchmark:
        """The benchmark with paths for files on the hub, which are fetched if the recipe allows it."""
        return self.benchmark.with_local_files(self.bound.recipe.prompts.network)

    @property
    def seed(self) -> int:
        """Every random choice of the benchmark follows from it; the same after each iteration."""
        return derive(self.bound.recipe.seed, "benchmarks", self.benchmark.name)

    @property
    def opponent(self) -> BenchmarkRun | None:
        """The same benchmark and the earlier model that M_t is compared with; None where there is none."""
        match self.benchmark.opponent:
            case "m0":
                return replace(self, t=0)
            case "previous":
                return replace(self, t=self.t - 1)
            case None:
                return None

    @property
    def due(self) -> bool:
        """Whether M_t is measured: it was chosen, and what it is compared with isn't itself."""
        return self._chosen and not self._lacks_weights

    @property
    def _chosen(self) -> bool:
        models = self.benchmark.models
        return (not models or self.t in models) and (self.t > 0 or self.benchmark.opponent is None)

    @property
    def _lacks_weights(self) -> bool:
        """Whether M_t can't be measured any more, because weights that it takes are deleted."""
        if self.result.is_file():
            return False
        deleted = weights_deleted(self.bound.model(self.t)) and self.benchmark.asked_judge == "itself"
        opponent = self.opponent if self.t else None
        return deleted or self._cannot_answer or (opponent is not None and opponent._cannot_answer)

    @property
    def _cannot_answer(self) -> bool:
        """Whether M_t has not answered and its weights are deleted."""
        unanswered = self.benchmark.has_requests and not self.answers.is_file()
        return unanswered and weights_deleted(self.bound.model(self.t))

    @property
    def answering(self) -> bool:
        """Whether M_t answers requests: for itself, or because a later model is compared with it."""
        if not self.benchmark.has_requests:
            return False
        later = (replace(self, t=t) for t in range(self.t + 1, self.bound.last + 1))
        return self.due or any(each.due and each.opponent == self for each in later)

    @property
    def pending_answers(self) -> bool:
        """Whether M_t has not answered."""
        return self.answering and not self.answers.is_file()

    @property
    def pending_result(self) -> bool:
        """Whether M_t has no results yet, or a part of them only."""
        return self.due and (self.pending.is_file() or not self.result.is_file())

    @property
    def needs_model(self) -> bool:
        """Whether something is pending that M_t's engine is asked."""
        return self.pending_answers or (self.pending_result and self.benchmark.asked_judge == "itself")

    def completions(self, held_out: int) -> Iterator[Completions]:
        """What M_t and the judge are asked, at most, with so many held-out prompts.

        Raises `UserError` for a file of questions that can't be read.
        """
        recipe, benchmark = self.bound.recipe, self.local
        if self.answering:
            yield Completions(ANSWERS, benchmark.requests().completions, recipe.answers.max_tokens)
        if self.due and benchmark.asked_judge is not None:
            judged = benchmark.judge_completions(held_out, self.grader)
            yield from () if judged is None else (judged,)

    @property
    def grader(self) -> RubricGrader:
        """By the run's rubric and sampling, or the benchmark's own; greedy judgments are all the same, so one."""
        judged, rubric = self.bound.recipe.judgments, self.bound.rubric
        n = 1 if judged.temperature == 0 else rubric.different(self.benchmark.rubric_judgments)
        sampling = Sampling(judged.temperature, judged.top_p, judged.max_tokens)
        expected, rules = judged.score == "expected", verdict_rules(judged)
        return self.benchmark.grader(RubricGrader(rubric, n, sampling, expected, rules))

    def inputs(self, judge: JudgeSpec | None) -> ScoringInputs:
        """What the score rests on: the models, the rubrics and sampling, and the judge."""
        return ScoringInputs(
            model=self._evaluated,
            opponent=self.opponent._evaluated if self.opponent else None,
            first=replace(self, t=0)._evaluated,
            folder=self.folder,
            verdicts=self.bound.run.verdicts / self.benchmark.name,
            prompts=self.bound.held_out,
            rubric=self.bound.rubric,
            grader=self.grader,
            oracle=self.bound.oracle,
            judge=judge,
            seed=self.seed,
        )

    @property
    def _evaluated(self) -> EvaluatedModel:
        return EvaluatedModel(self.model, self.answers, partial(held_out_of, self.bound, self.t))


def benchmark_runs(bound: BoundRecipe, t: int) -> tuple[BenchmarkRun, ...]:
    """Every benchmark of the recipe, with M_t."""
    return tuple(BenchmarkRun(bound, t, benchmark) for benchmark in bound.recipe.benchmarks)


def _pending(bound: BoundRecipe) -> Iterator[BenchmarkRun]:
    """Every benchmark of every model with something to do."""
    every = (each for t in range(bound.last + 1) for each in benchmark_runs(bound, t))
    return (each for each in every if each.pending_answers or each.pending_result)


def pending(bound: BoundRecipe) -> bool:
    """Whether a benchmark has something to do with any model."""
    return next(_pending(bound), None) is not None


def check(bound: BoundRecipe) -> None:
    """Read every file that is needed yet, and write nothing. Raises `UserError` for one that can't be read.

    Judges are looked at without opening them: a server needn't be up before it is asked.
    """
    every = [each for t in range(bound.last + 1) for each in benchmark_runs(bound, t)]
    for each in (each for each in every if each._chosen and not each.due):
        name = each.benchmark.name
        _LOG.warning("benchmarks.%s: %s isn't measured: weights that it needs are deleted", name, each.model)
    for each in {each.benchmark.name: each for each in _pending(bound)}.values():
        for name, reader in each.local.files():
            reader(Path(name))
        if each.benchmark.asked_judge is not None:
            judge_fingerprint(each.benchmark.asked_judge)


def needs_model(bound: BoundRecipe, t: int) -> bool:
    """Whether a benchmark has something to ask M_t."""
    return any(each.needs_model for each in benchmark_runs(bound, t))


async def ask_model(bound: BoundRecipe, t: int, engine: Engine, progress: Progress) -> None:
    """M_t answers, and judges where it is the judge itself. ``engine`` stays open."""
    pending = [each for each in benchmark_runs(bound, t) if each.needs_model]
    if not pending:
        return
    reasoning, extra = bound.settings(1).reasoning, bound.recipe.judgments.max_tokens
    actor = _SharedEngine(engine if reasoning is None else StripReasoning(engine, reasoning))
    judge = _SharedEngine(engine if reasoning is None else StripReasoning(engine, reasoning, extra))
    with timed(bound.run, t, _STAGE):
        for each in pending:
            if each.pending_answers:
                await answer(each, actor, progress)
            if each.pending_result and each.benchmark.asked_judge == "itself":
                await _score(each, JudgeSpec(each.model, judge.opened, each.seed, progress))


async def ask_others(bound: BoundRecipe, t: int, progress: Progress) -> None:
    """Score the rest: from what is stored, and with judges that have other engines.

    A judge that can't be asked doesn't stop the run: its results stay pending, and the next start asks it again.
    """

    async def open_logged(name: str) -> Engine | Judge:
        judge = await open_judge(name)
        return judge if isinstance(judge, Judge) else log_usage(bound.run, f"judge {name}", judge)

    pending = [each for each in benchmark_runs(bound, t) if each.pending_result]
    if not pending:
        return
    with timed(bound.run, t, _STAGE):
        for each in pending:
            name = each.benchmark.asked_judge
            if name is None:
                await _score(each, None)
                continue
            judge = JudgeSpec(name, open_logged, each.seed, progress, judge_fingerprint(name))
            try:
                await _score(each, judge)
            except JudgeUnavailableError as error:
                _mark_pending(each, str(error))


@dataclass(frozen=True)
class _SharedEngine:
    """M_t's engine for one benchmark, which can't close it."""

    engine: Engine

    async def opened(self, _: str) -> Engine:
        return self

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        return await self.engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Nothing: the loop closes it."""


async def answer(run: BenchmarkRun, engine: Engine, progress: Progress) -> None:
    """Write M_t's answers without their reasoning, generating those that aren't stored yet.

    A request that the engine can't serve has no answer and counts as missing. Raises `UserError` for a file that can't
    be read, and when M_t answered nothing.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    requests, recipe = run.local.requests(), run.bound.recipe
    sampling = Sampling(requests.temperature, recipe.answers.top_p, recipe.answers.max_tokens)
    client = JudgeClient(engine, run.model, run.folder / "answers.sqlite", run.seed, progress=progress)

    async def converse(prompt: Prompt) -> dict[str, object]:
        """The model's replies, one to each turn of the user."""
        history: Messages = ()
        replies: list[str] = []
        turns = [(each,) for each in prompt.messages] if requests.turn_by_turn else [prompt.messages]
        for turn, messages in enumerate(turns):
            history = with_system(recipe.answers.system_prompt, (*history, *messages))
            seeded = replace(sampling, seed=derive(run.seed, "answer", prompt.id, turn))
            (reply,) = await engine.complete(history, seeded, 1, "actor")
            replies.append(replace_surrogates(reply.text))
            history = (*history, Message("assistant", replies[-1]))
        return {"turns": replies}

    settings: dict[str, object] = {
        "model": fingerprint_model(run.bound.model(run.t)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "system_prompt": recipe.answers.system_prompt,
        **engine_fingerprint(recipe.engine),
    }
    stage = f"{run.model} answers {run.benchmark.name}"
    results = await cached_queries(client, requests.prompts, converse, settings, stage, ANSWERS)
    turns = {key: document["turns"] for key, document in results.documents.items()}
    if not turns:
        raise UserError(f"benchmarks.{run.benchmark.name}: {run.model} answered none of the questions")
    prompts = [prompt for prompt in requests.prompts if prompt.id in turns]
    write_atomic(run.answers, run.benchmark.answers_text(run.model, prompts, [turns[each.id] for each in prompts]))
    manifest.record(run.bound.run, run.answers, run.folder / "answers.sqlite")


async def _score(run: BenchmarkRun, judge: JudgeSpec | None) -> None:
    """Write the results."""
    run.folder.mkdir(parents=True, exist_ok=True)
    used = [run.folder] if run.opponent is None else [run.folder, run.opponent.folder]
    manifest.require_whole(run.bound.run, *used)
    with manifest.changing(run.bound.run, run.folder, run.bound.run.verdicts / run.benchmark.name):
        await _write_result(run, judge)


async def _write_result(run: BenchmarkRun, judge: JudgeSpec | None) -> None:
    inputs, names = run.inputs(judge), {"benchmark": run.benchmark.name, "kind": run.benchmark.kind, "model": run.model}
    started = time.monotonic()
    results = list(await run.local.score(inputs))
    incomplete = run.benchmark.incomplete(results)
    if incomplete is not None:
        _mark_pending(run, incomplete)
    found = {**names, **run.benchmark.facts(inputs), "results": results}
    run.bound.run.report.unlink(missing_ok=True)  # it would lack these results
    write_atomic(run.result, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    if incomplete is None:
        run.pending.unlink(missing_ok=True)
    seconds = round(time.monotonic() - started, 1)
    log_event(run.bound.run, BENCHMARK, name=run.benchmark.name, model=run.model, seconds=seconds)


def _mark_pending(run: BenchmarkRun, reason: str) -> None:
    """Say why the judge is asked again by the next start."""
    run.folder.mkdir(parents=True, exist_ok=True)
    found = {"benchmark": run.benchmark.name, "model": run.model, "reason": reason}
    run.bound.run.report.unlink(missing_ok=True)
    write_atomic(run.pending, json.dumps(found, ensure_ascii=False) + "\n")
    _LOG.warning(
        "benchmarks.%s: not all of %s is judged: %s; the run goes on, and its next start asks the judge again",
        run.benchmark.name,
        run.model,
        reason,
    )
