"""The benchmarks that the recipe chose, inside the loop: M_t answers and is judged, and the numbers lie in ``eval/``.

What needs M_t's engine is done while that is open: its answers, and its verdicts where it is the judge itself. Other
judges are asked when it is closed, so that two models never need the memory at once. Everything that was answered is
kept at once: after a kill only what is owed is asked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from metareward.benchmarking_answers import answer, questions_of
from metareward.benchmarking_entries import Entry, entries
from metareward.benchmarking_results import numbers
from metareward.benchmarks.alpaca_files import read_difficulty, read_gamed, read_outputs
from metareward.benchmarks.arena_files import read_answers, read_judge_prompt
from metareward.benchmarks.asking import Door, OpenEngine
from metareward.benchmarks.judge_files import read_pairs, read_rankings
from metareward.benchmarks.label_judge import load_label_prompt
from metareward.benchmarks.mt_bench_files import read_prompts, read_references
from metareward.billing import billed
from metareward.engines.engine import Engine
from metareward.engines.thinking import WithoutThinking
from metareward.experiment import Experiment
from metareward.opening import open_judge
from metareward.progress import Progress
from metareward.recipe import BenchmarkSettings
from metareward.rundir import write_atomic
from metareward.runlog import tell, timed
from metareward.types import Completion, Messages, ModelRole, Sampling

_STAGE = "benchmarks"


def check(of: Experiment) -> None:
    """Read every file that is needed yet, and write nothing. Raises `UserError` for one that can't be read."""
    every = (each for t in range(of.last + 1) for each in entries(of, t))
    owed = {each.name: each for each in every if each.owes_answers or each.owes_result}
    for path, read in (file for each in owed.values() for file in _files(each.local)):
        read(path)


def _files(asked: BenchmarkSettings) -> Iterator[tuple[Path, Callable[[Path], object]]]:
    """The files of one benchmark, each with its reader."""
    arena, pairs = asked.kind == "arena", asked.form == "pairs"
    if asked.questions and asked.kind != "judge":
        yield Path(asked.questions), lambda _: questions_of(asked)
    elif asked.questions:
        yield Path(asked.questions), read_pairs if pairs else read_rankings
    if asked.prompt:
        reader = {"arena": read_judge_prompt, "mt-bench": read_prompts}.get(asked.kind, load_label_prompt)
        yield Path(asked.prompt), reader
    if asked.kind in ("alpaca", "arena") and asked.against not in ("m0", "previous"):
        yield Path(asked.against), read_answers if arena else read_outputs
    others = ((asked.references, read_references), (asked.difficulty, read_difficulty), (asked.gamed, read_gamed))
    yield from ((Path(name), reader) for name, reader in others if name)


def needs_model(of: Experiment, t: int) -> bool:
    """Whether a benchmark has something to ask M_t."""
    return any(each.owes_answers or (each.owes_result and each.asks_itself) for each in entries(of, t))


async def ask_model(of: Experiment, t: int, engine: Engine, progress: Progress) -> None:
    """M_t answers, and judges where it is the judge itself. ``engine`` stays open."""
    owed = [each for each in entries(of, t) if each.owes_answers or (each.owes_result and each.asks_itself)]
    if not owed:
        return
    thinking, room = of.settings(1).reasoning, of.recipe.judgments.max_tokens
    acting = _Lent(engine if thinking is None else WithoutThinking(engine, thinking))
    judging = _Lent(engine if thinking is None else WithoutThinking(engine, thinking, room))
    with timed(of.run, t, _STAGE):
        for each in owed:
            if each.owes_answers:
                await answer(each, acting, progress)
            if each.owes_result and each.asks_itself:
                await _finish(each, Door(each.model, judging.lent, each.seed, progress))


async def ask_others(of: Experiment, t: int, progress: Progress) -> None:
    """The rest: what is there already is counted, and judges of other engines are asked."""
    owed = [each for each in entries(of, t) if each.owes_result]
    if not owed:
        return
    with timed(of.run, t, _STAGE):
        for each in owed:
            silent = each.graded or each.asked.judge == "oracle"
            await _finish(each, None if silent else Door(each.asked.judge, _opening(of), each.seed, progress))


def _opening(of: Experiment) -> OpenEngine:
    async def opened(name: str) -> Engine:
        return billed(of.run, f"judge {name}", await open_judge(name))

    return opened


@dataclass(frozen=True)
class _Lent:
    """An engine that its borrower can't close."""

    engine: Engine

    async def lent(self, _: str) -> Engine:
        return self

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        return await self.engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Nothing."""


async def _finish(entry: Entry, door: Door | None) -> None:
    """Write the result."""
    found = {
        "benchmark": entry.name,
        "kind": entry.asked.kind,
        "model": entry.model,
        "against": _against(entry),
        "judge": entry.asked.judge,
        "by_rubric": entry.asked.judge != "oracle" and entry.asked.prompt is None,
        "results": await numbers(entry, door),
    }
    write_atomic(entry.result, json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    tell(entry.of.run, "benchmark", name=entry.name, model=entry.model)


def _against(entry: Entry) -> str | None:
    """Whom the model is compared with; of a judge, who says what is right."""
    if entry.asked.kind == "judge":
        return entry.asked.questions or "the oracle"
    if entry.asked.kind == "mt-bench":
        return None
    return entry.baseline.model if entry.baseline else entry.asked.against
