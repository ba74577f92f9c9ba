"""``metareward evaluate``: a command for each benchmark, on stored annotations alone or after a judge is asked.

The commands and their options come from `Benchmark.command` of every kind. Judges are opened by the context's object, a
function from a judge's name to an engine.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

import typer
from typer.core import TyperGroup

from metareward.cli.data import print_rich
from metareward.errors import UserError
from metareward.text import escape_control, replace_surrogates

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from rich.console import Group

    from metareward.engines.base import Engine
    from metareward.evaluation.base import Benchmark, EvaluateCommand, ResultTable
    from metareward.evaluation.judges import JudgeSpec
    from metareward.types import Judge

HELP = "Benchmarks of the papers, and the quality of judges."

# The options that every benchmark has.
Seed = Annotated[int, typer.Option("--seed", help="Seed of the sampling and of the intervals.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there, too.")]


class _EvaluateGroup(TyperGroup):
    """The commands of `BENCHMARKS`, which are imported only when one is needed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return self._commands().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return self._commands().get_command(ctx, cmd_name)

    @staticmethod
    def _commands() -> TyperGroup:
        from metareward.evaluation.benchmarks import BENCHMARKS

        group = typer.main.get_command(evaluate_commands(BENCHMARKS))
        assert isinstance(group, TyperGroup)
        return group


evaluate_app = typer.Typer(cls=_EvaluateGroup, no_args_is_help=True, help=HELP)


@evaluate_app.callback()
def _evaluate() -> None:
    """Benchmarks of the papers, and the quality of judges."""


def evaluate_commands(benchmarks: Mapping[str, type[Benchmark]]) -> typer.Typer:
    """A command for every benchmark, called like its kind with dashes, and ``compare``."""
    from metareward.evaluation.comparison import CompareCommand

    app = typer.Typer(no_args_is_help=True, help=HELP)
    app.callback()(_evaluate)
    for kind, benchmark in benchmarks.items():
        app.command(kind.replace("_", "-"), help=benchmark.command.__doc__)(_command(benchmark.command))
    app.command("compare", help=CompareCommand.__doc__)(_command(CompareCommand))
    return app


def _command(options: type[EvaluateCommand]) -> Callable[..., None]:
    """The function behind one command: the fields of ``options`` are its parameters."""

    def run(
        context: typer.Context,
        out: Path | None,
        seed: int = 0,
        engine: str | None = None,
        thinking: int | None = None,
        **given: Any,
    ) -> None:
        from pydantic import ValidationError

        from metareward.evaluation.base import EvaluateSession
        from metareward.storage.atomic import write_atomic

        def judge_named(name: str) -> JudgeSpec:
            return _judge(context, name, seed, thinking)

        values = {name: _value(options.model_fields[name], each) for name, each in given.items()}
        try:
            command = options.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            flag = f"--{str(first['loc'][0]).replace('_', '-')}"
            raise UserError(f"{flag} {first['input']}: {first['msg']}; fix: give another value") from None
        session = EvaluateSession(judge_named(engine) if engine else None, judge_named, seed)
        evaluated = asyncio.run(command.evaluate(session))
        print_rich(tables_text(evaluated.tables), 200)
        if out is not None:  # JSON without NaN
            text = json.dumps(evaluated.numbers, indent=1, ensure_ascii=False, allow_nan=False)
            write_atomic(out, replace_surrogates(text) + "\n")

    parameters = [
        *(_parameter(name, field) for name, field in options.model_fields.items()),
        *_engine_options(options.asks),
        _keyword("out", Json, None),
    ]
    run.__signature__ = inspect.Signature([_keyword("context", typer.Context), *parameters])  # type: ignore[attr-defined]
    run.__annotations__ = {"context": typer.Context, **{each.name: each.annotation for each in parameters}}
    return run


def _engine_options(asks: str) -> Iterator[inspect.Parameter]:
    """Which engine a command asks, and the seed; a command that asks nobody draws nothing at random."""
    if asks == "nobody":
        return
    flag = "--judge-engine" if asks == "judge" else "--engine"
    engine = typer.Option(flag, metavar="ENGINE", help=f"Ask this {asks} what isn't stored yet.")
    reasoning = f"Tokens for the {asks}'s reasoning, which is stripped."
    yield _keyword("engine", Annotated[str | None, engine], None)
    thinking = typer.Option("--thinking", metavar="TOKENS", min=1, help=reasoning)
    yield _keyword("thinking", Annotated[int | None, thinking], None)
    yield _keyword("seed", Seed, 0)


def _keyword(name: str, annotation: object, default: object = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    """An option for a field; files are named by path or as ``hub:OWNER/NAME/FILE``, so their options take texts."""
    kind = next(each for each in (*get_args(field.annotation), field.annotation) if each is not type(None))
    if get_origin(field.annotation) is tuple:
        annotation: Any = list[str]
    else:
        annotation = str if kind is Path else kind
    metavar = {Path: "FILE", str: "NAME"}.get(kind)
    least = next((each.ge for each in field.metadata if hasattr(each, "ge")), None)
    flag = f"--{name.replace('_', '-')}"
    option = typer.Option(flag, metavar=metavar, min=least, help=field.description)
    if field.is_required():
        return _keyword(name, Annotated[annotation, option])
    optional = annotation if isinstance(field.default, bool | int | str) else annotation | None
    return _keyword(name, Annotated[optional, option], None if field.default == () else field.default)


def _value(field: FieldInfo, given: Any) -> Any:
    """What was given as the field has it: paths for names of files, which are fetched where they are on the hub."""
    from metareward.data.files import resolve_file

    if get_origin(field.annotation) is tuple:
        return tuple(resolve_file(each, network=True) for each in given or ())
    if isinstance(given, str) and Path in (field.annotation, *get_args(field.annotation)):
        return resolve_file(given, network=True)
    return given


def tables_text(tables: Sequence[ResultTable]) -> Group:
    """The tables with every column; names from files are made safe to look at."""
    from rich.console import Group
    from rich.table import Table

    shown: list[Table | str] = []
    for each in tables:
        table = Table(title=escape_control(each.title), title_justify="left")
        table.add_column(each.first, overflow="fold")
        for column in each.columns:
            table.add_column(escape_control(column.label), justify="right")
        for name, figures in each.rows:
            table.add_row(
                escape_control(name), *(escape_control(column.cell(figures, least_digits=2)) for column in each.columns)
            )
        shown += [table, *map(escape_control, each.notes)]
    return Group(*shown)


def _judge(context: typer.Context, name: str, seed: int, thinking: int | None) -> JudgeSpec:
    """The judge ``name``; with ``thinking``, without the text between <think> and </think> of an engine."""
    from metareward.engines.base import StripReasoning
    from metareward.evaluation.judges import JudgeSpec
    from metareward.generation.progress import terminal_progress
    from metareward.method.judge import Reasoning
    from metareward.types import Judge

    if context.obj is None:
        raise UserError(f"engine {name}: no engine can be opened here; fix: use stored annotations")
    if thinking is None:
        return JudgeSpec(name, context.obj, seed, terminal_progress())

    async def open_without_reasoning(name: str) -> Engine | Judge:
        judge: Engine | Judge = await context.obj(name)
        return judge if isinstance(judge, Judge) else StripReasoning(judge, Reasoning(), thinking)

    return JudgeSpec(name, open_without_reasoning, seed, terminal_progress(), {"thinking": thinking})
