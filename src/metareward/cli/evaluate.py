"""``metareward evaluate``: the benchmarks of the papers and the quality of judges, from files or by an engine.

Every command works on stored annotations alone. With ``--judge-engine`` it first asks the judge what is not stored yet;
engines are opened by the context's object, a function from the option's value to an engine.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metareward.errors import UserError

if TYPE_CHECKING:
    from metareward.engines.base import Engine
    from metareward.evaluation.judges import Door, OpenEngine


evaluate_app = typer.Typer(no_args_is_help=True, help="Benchmarks of the papers, and the quality of judges.")

JudgeEngine = Annotated[
    str | None, typer.Option("--judge-engine", metavar="ENGINE", help="Ask this judge what isn't stored yet.")
]
Thinking = Annotated[
    int | None,
    typer.Option(
        "--thinking", metavar="TOKENS", min=1, help="The judge thinks first, in so many tokens: leave it out."
    ),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there, too.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the judge's sampling and of the intervals.")]


def option(name: str, text: str) -> Any:
    """A file by path, or by hub name."""
    return typer.Option(name, metavar="FILE", help=text)


@evaluate_app.command("alpaca")
def alpaca_command(
    context: typer.Context,
    annotations: Annotated[
        list[str] | None, option("--annotations", "annotations.json, or the one to write. Again for more.")
    ] = None,
    outputs: Annotated[str | None, option("--outputs", "The model's model_outputs.json.")] = None,
    reference: Annotated[str | None, option("--reference", "The baseline's model_outputs.json.")] = None,
    difficulty: Annotated[str | None, option("--difficulty", "Upstream's instruction_difficulty.csv.")] = None,
    gamed: Annotated[str | None, option("--gamed", "Upstream's df_gamed.csv.")] = None,
    weights: Annotated[str | None, option("--weights", "Published weights instead of annotations.")] = None,
    prompt: Annotated[str | None, option("--prompt", "The judge's alpaca_eval_clf.txt.")] = None,
    by_instruction: Annotated[
        bool, typer.Option("--by-instruction", help="Number rows by the reference's order, not by place.")
    ] = False,
    judge_engine: JudgeEngine = None,
    thinking: Thinking = None,
    seed: Seed = 0,
    out: Json = None,
) -> None:
    """AlpacaEval 2: win rate, length-controlled win rate, lengths."""
    from metareward.evaluation.alpaca_eval import run as alpaca_run
    from metareward.report.benchmark_tables import alpaca_table, weights_table

    if weights is not None:
        fitted = alpaca_run.published(_path(weights), _path(_given(difficulty, "--weights", "--difficulty")))
        rows = [{"model": model, "length_controlled_winrate": each.win_rate} for model, each in fitted.items()]
        return _tell(weights_table(fitted), {"benchmark": "alpaca", "published_weights": rows}, out)
    files = alpaca_run.AlpacaFiles(
        annotations=tuple(map(_path, annotations or ())),
        outputs=_optional(outputs),
        reference=_optional(reference),
        difficulty=_optional(difficulty),
        gamed=_optional(gamed),
        prompt=_optional(prompt),
        by_instruction=by_instruction,
    )
    if door := _door(context, judge_engine, seed, thinking):
        asyncio.run(alpaca_run.annotated(files, door))
    elif not files.annotations:
        raise UserError("give --annotations, the judge's annotations.json, or --judge-engine to ask a judge")
    results = alpaca_run.results(files)
    return _tell(alpaca_table(results), {"benchmark": "alpaca", "models": [each.as_dict() for each in results]}, out)


@evaluate_app.command("arena")
def arena_command(
    context: typer.Context,
    judgments: Annotated[str, option("--judgments", "Judgments: a file, or a folder of them; or the file to write.")],
    version: Annotated[str, typer.Option("--version", help="v0.1 or v2: how verdicts are read and scored.")] = "v0.1",
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="NAME", help="The baseline, if the file doesn't name it.")
    ] = None,
    answers: Annotated[str | None, option("--answers", "Answers, a file or a folder: gives style control.")] = None,
    questions: Annotated[str | None, option("--questions", "question.jsonl, to ask a judge.")] = None,
    prompt: Annotated[str | None, option("--prompt", "judge_config.yaml, to ask a judge.")] = None,
    judge_engine: JudgeEngine = None,
    thinking: Thinking = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of the bootstrap.")] = 1000,
    style_rounds: Annotated[
        int, typer.Option("--style-rounds", min=0, help="Rounds for intervals of style-controlled scores.")
    ] = 0,
    seed: Seed = 0,
    out: Json = None,
) -> None:
    """Arena-Hard: score against the baseline, intervals, style control."""
    from metareward.evaluation.arena_hard import run as arena_run
    from metareward.evaluation.arena_hard.data import version_named
    from metareward.report.benchmark_tables import arena_tables

    files = arena_run.ArenaFiles(
        judgments=_path(judgments),
        version=version_named(version),
        baseline=baseline,
        answers=_optional(answers),
        questions=_optional(questions),
        prompt=_optional(prompt),
    )
    if door := _door(context, judge_engine, seed, thinking):
        asyncio.run(arena_run.judged(files, door))
    results = arena_run.results(files, rounds, style_rounds, seed)
    _tell(arena_tables(results), {"benchmark": "arena", "categories": [each.as_dict() for each in results]}, out)


@evaluate_app.command("mt-bench")
def mt_bench_command(
    context: typer.Context,
    judgments: Annotated[str, option("--judgments", "Judgments: a file, or a folder of them; or the file to write.")],
    questions: Annotated[str | None, option("--questions", "question.jsonl: gives the categories.")] = None,
    answers: Annotated[str | None, option("--answers", "Answers, a file or a folder, to ask a judge.")] = None,
    references: Annotated[str | None, option("--references", "reference_answer/gpt-4.jsonl, to ask a judge.")] = None,
    prompts: Annotated[str | None, option("--prompts", "judge_prompts.jsonl, to ask a judge.")] = None,
    judge_engine: JudgeEngine = None,
    thinking: Thinking = None,
    seed: Seed = 0,
    out: Json = None,
) -> None:
    """MT-Bench: single-answer grading, per turn and per category."""
    from metareward.evaluation.mt_bench import run as mt_bench_run
    from metareward.report.benchmark_tables import mt_bench_tables

    files = mt_bench_run.MtBenchFiles(
        judgments=_path(judgments),
        questions=_optional(questions),
        answers=_optional(answers),
        references=_optional(references),
        prompts=_optional(prompts),
    )
    if door := _door(context, judge_engine, seed, thinking):
        asyncio.run(mt_bench_run.judged(files, door))
    scores = mt_bench_run.results(files)
    _tell(mt_bench_tables(scores), {"benchmark": "mt-bench", "models": [each.as_dict() for each in scores]}, out)


@evaluate_app.command("judge")
def judge_command(
    context: typer.Context,
    rankings: Annotated[str | None, option("--rankings", "Responses that humans ranked.")] = None,
    pairs: Annotated[str | None, option("--pairs", "Pairs with labels.")] = None,
    sections: Annotated[str | None, option("--sections", "RewardBench's rows, with scores or winners.")] = None,
    records: Annotated[str | None, option("--records", "A run's records.sqlite: its meta-judge.")] = None,
    verdicts: Annotated[str | None, option("--verdicts", "Judges' verdicts on the pairs.")] = None,
    protocol: Annotated[
        str | None, typer.Option("--protocol", metavar="NAME", help="gpt4-chosen, self-chosen, human or meta-judge.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What the judge is called in the table.")] = "judge",
    own: Annotated[
        str | None, typer.Option("--own", metavar="NAME", help="The generator whose outputs are the judge's own.")
    ] = None,
    judge_engine: JudgeEngine = None,
    thinking: Thinking = None,
    reference_engine: Annotated[
        str | None, typer.Option("--reference-engine", metavar="ENGINE", help="The judge that says what is right.")
    ] = None,
    prompt: Annotated[str | None, option("--prompt", "A pairwise question, alpaca_eval_clf.txt.")] = None,
    kept: Annotated[Path | None, typer.Option("--kept", metavar="FILE", help="Keeps what engines answer.")] = None,
    rubric: Annotated[str, typer.Option("--rubric", help="Packaged rubric, or a .txt file, to grade by.")] = "judge",
    count: Annotated[int, typer.Option("--judgments", min=1, help="Judgments of each answer.")] = 11,
    seed: Seed = 0,
    out: Json = None,
) -> None:
    """A judge's agreement with humans or labels, and its biases, beside the length-only judge and chance."""
    from metareward.evaluation.judge_quality import run as judge_run
    from metareward.report.benchmark_tables import judge_table

    files = judge_run.JudgeFiles(
        rankings=_optional(rankings),
        pairs=_optional(pairs),
        sections=_optional(sections),
        records=_optional(records),
        verdicts=_optional(verdicts),
        prompt=_optional(prompt),
        kept=kept,
    )
    judges = judge_run.Judges(
        name=name if judge_engine is None else judge_engine,
        grading=judge_run.grading(rubric, count),
        door=_door(context, judge_engine, seed, thinking),
        reference=_door(context, reference_engine, seed, thinking),
        own=own,
    )
    table = asyncio.run(judge_run.table(files, judges, judge_run.protocol_named(protocol)))
    _tell(judge_table(table), {"benchmark": "judge", **table.as_dict()}, out)


def _path(name: str) -> Path:
    from metareward.data.files import resolve_file

    return resolve_file(name, network=True)


def _optional(name: str | None) -> Path | None:
    return None if name is None else _path(name)


def _given(name: str | None, needing: str, needed: str) -> str:
    if name is None:
        raise UserError(f"{needing}: needs {needed}")
    return name


def _door(context: typer.Context, engine: str | None, seed: int, thinking: int | None) -> Door | None:
    from metareward.evaluation.judges import Door
    from metareward.generation.progress import terminal_progress

    if engine is None:
        return None
    if context.obj is None:
        raise UserError(f"engine {engine}: no engine can be opened here; fix: use stored annotations")
    if thinking is None:
        return Door(engine, context.obj, seed, terminal_progress())
    return Door(engine, _thoughtless(context.obj, thinking), seed, terminal_progress(), {"thinking": thinking})


def _thoughtless(opening: OpenEngine, room: int) -> OpenEngine:
    """Engines without what they think between <think> and </think>."""
    from metareward.engines.base import StripReasoning
    from metareward.method.judge import Reasoning

    async def opened(name: str) -> Engine:
        return StripReasoning(await opening(name), Reasoning(), room)

    return opened


def _tell(shown: Any, numbers: Mapping[str, object], out: Path | None) -> None:
    """Print the table; write the JSON, which never holds a NaN."""
    from rich.console import Console

    from metareward.storage.atomic import write_atomic

    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(shown, markup=False, highlight=False)
    if out is not None:
        write_atomic(out, json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
