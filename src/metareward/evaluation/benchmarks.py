"""The benchmarks by kind. A new one is a class with the `Benchmark` protocol and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.run import AlpacaEval
from metareward.evaluation.arena_hard.run import ArenaHard
from metareward.evaluation.base import Benchmark
from metareward.evaluation.independent_judge.run import IndependentJudge
from metareward.evaluation.judge_quality.run import JudgeQuality
from metareward.evaluation.mt_bench.run import MtBench
from metareward.evaluation.verifiable.run import IfEval, Verifiable
from metareward.method.import_path import import_name

BENCHMARKS: Mapping[str, type[Benchmark]] = {
    "alpaca_eval": AlpacaEval,
    "arena_hard": ArenaHard,
    "mt_bench": MtBench,
    "judge_quality": JudgeQuality,
    "independent_judge": IndependentJudge,
    "ifeval": IfEval,
    "verifiable": Verifiable,
}


def benchmark_class(kind: str, benchmarks: Mapping[str, type[Benchmark]] = BENCHMARKS) -> type[Benchmark]:
    """The class of ``kind``: one of ``benchmarks``, or what the import path names.

    Raises `UserError` for an import path that names no benchmark.
    """
    if kind in benchmarks:
        return benchmarks[kind]
    found = import_name(kind, "benchmarks: kind").value
    if not (isinstance(found, type) and issubclass(found, Benchmark)):
        raise UserError(f"benchmarks: kind: {kind} is no subclass of Benchmark; fix: name one")
    return found
