"""The command line: every command calls one function and prints what it returns.

What the user can mend is one line on standard error and exit code 2, a run stopped by a gate of judge health one line
and 3, Ctrl-C one line and 130. Heavy modules are imported inside the commands, so that ``--help`` and typing mistakes
answer at once.
"""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metareward.cli.data import model_command, print_rich, prompts_app, seed_app, sft_command
from metareward.cli.evaluate import evaluate_app
from metareward.cli.launch import launch_app
from metareward.cli.runs import compare_command, experiment_command, list_command, push_command, verify_command
from metareward.engines.base import Engine, EngineError
from metareward.errors import JudgeHealthError, UserError
from metareward.text import escape_control, replace_surrogates

if TYPE_CHECKING:
    from metareward.config.schema import Recipe
    from metareward.types import Judge

app = typer.Typer(
    name="metareward",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A language model that acts, judges its answers, judges its judgments, and trains on what it found.",
)
pocket_app = typer.Typer(no_args_is_help=True, help="The pocket world: a small model whose right answers are known.")
app.add_typer(pocket_app, name="pocket")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(launch_app, name="launch")
app.add_typer(seed_app, name="seed")
app.add_typer(prompts_app, name="prompts")
app.command("sft")(sft_command)
app.command("model")(model_command)
app.command("list")(list_command)
app.command("compare")(compare_command)
app.command("experiment")(experiment_command)
app.command("push")(push_command)
app.command("verify")(verify_command)

# Errors of the machine, wherever they come: no memory, no open files left, disks that are full, gone or broken.
_MACHINE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE)
_STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, a preset's name such as pocket, or a run folder.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, as iterations.1.rho=0.2. Repeatable."),
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/pocket.")]


def main() -> None:
    """The entry point ``metareward``."""
    try:
        signal.signal(signal.SIGTERM, _interrupt)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
            signal.signal(signal.SIGHUP, _interrupt)
        app()
        return
    except (UserError, EngineError) as error:
        message, code = str(error), 3 if isinstance(error, JudgeHealthError) else 2
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _MACHINE:
            raise
        what = "out of memory" if isinstance(error, MemoryError) else f"{error.filename or 'system'}: {error.strerror}"
        message, code = f"{what}; what is finished is kept; fix: make room, then run the same command again", 2
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        for each in _STOPS:  # a second Ctrl-C finds a process that is ending
            signal.signal(each, signal.SIG_IGN)
        message, code = "stopped; what is finished is kept, and the same command goes on from there", 130
    # A message can quote model or server text.
    sys.stderr.write(f"metareward: {escape_control(' '.join(message.split()))}\n")
    raise SystemExit(code)


def _interrupt(*_: object) -> None:
    """SIGTERM and SIGHUP raise KeyboardInterrupt so that child processes are cleaned up."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as for a shell script's background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.raise_signal(signal.SIGINT)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"metareward {version('metareward')}")
        raise typer.Exit


async def _open_judge(name: str) -> Engine | Judge:
    from metareward.pipeline.engines import open_judge

    return await open_judge(name)


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""
    context.obj = context.obj or _open_judge


@app.command("run")
def run_command(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A recipe file, a preset's name such as pocket, or a run folder."),
    ] = None,
    changes: Changes = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Run folder; if not given, runs/<name>, or the run folder named."),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN", help="Take over what is the same from RUN; RECIPE is RUN's by default."),
    ] = None,
    network: Annotated[
        bool, typer.Option("--network", help="Fetch models of the hub that the recipe names to models/OWNER/NAME.")
    ] = False,
) -> None:
    """Run a recipe; go on with a stopped run (`run RUN`); fork a run (`run --from RUN --set ... --out NEW`)."""
    from metareward.config.yaml_file import default_folder, recipe_text

    name = recipe or (None if parent is None else str(parent))
    if name is None:
        raise UserError("run: no recipe given; fix: name a recipe file, a preset or a run folder, or give --from RUN")
    loaded, given = _with_local_models(name, changes or (), network)

    from metareward.pipeline.loop import run_recipe
    from metareward.report.benchmark_tables import benchmarks_text
    from metareward.report.facts import gather
    from metareward.report.independent_judge import judge_sentences, pending_lines
    from metareward.report.judge_health import headline
    from metareward.report.tables import metrics_text, win_rates_text
    from metareward.storage.run_dir import RunDir

    folder = out or (default_folder(name, loaded.name) if recipe or parent is None else Path("runs") / loaded.name)
    worked = run_recipe(loaded, folder, recipe_text(name, given), parent)
    run = RunDir(folder)
    facts = gather(run)
    print_rich(metrics_text(facts.evaluations))
    for shown in (win_rates_text(facts.evaluations), benchmarks_text(facts)):
        if shown is not None:
            print_rich(shown)
    judge = headline(facts)
    if judge is not None:
        print_rich(str(judge))
    if facts.judge_check is not None:
        print_rich(f"Before iteration 1: {facts.judge_check.finding}")
    for line in (*judge_sentences(facts), *pending_lines(facts)):
        print_rich(escape_control(line))
    print_rich(f"{'finished' if worked else 'finished before, nothing to do'}; open the report: {run.report}")


def _with_local_models(name: str, changes: Sequence[str], network: bool = False) -> tuple[Recipe, Sequence[str]]:
    """The recipe with folders on this machine for models of the hub, and all changes that it was made with."""
    from metareward.config.schema import load_recipe
    from metareward.pipeline.preflight import model_names
    from metareward.pipeline.published_models import local_models

    recipe = load_recipe(name, changes)
    found = local_models(model_names(recipe), network, print_rich)
    return (load_recipe(name, [*changes, *found]), [*changes, *found]) if found else (recipe, changes)


@app.command("plan")
def plan_command(
    recipe: RecipeName,
    changes: Changes = None,
    rate: Annotated[
        float | None, typer.Option("--rate", min=0.001, help="Completion tokens per second, to estimate time.")
    ] = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="RUN", help="Take lengths and rate from a run.")
    ] = None,
    measure: Annotated[
        float | None,
        typer.Option("--measure", metavar="SECONDS", min=0.1, help="Measure the engine's speed, so long per role."),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine",
            metavar="GPUSxGB",
            help="Check it for this machine, such as 8x80; for a Ray cluster MACHINESxGPUSxGB.",
        ),
    ] = None,
) -> None:
    """Check a recipe as a run does, and estimate its cost: completions, tokens, pairs, steps, disk, memory, time."""
    from metareward.engines.device import described_machine, this_machine
    from metareward.generation.throughput import Rates
    from metareward.pipeline.bound_recipe import BoundRecipe
    from metareward.pipeline.plan import measured_rates, plan, plan_table
    from metareward.pipeline.preflight import check_inputs, check_machine, nodes_unknown
    from metareward.storage.run_dir import RunDir

    chosen, _ = _with_local_models(recipe, changes or ())
    fits = described_machine(machine) if machine else this_machine()
    bound = BoundRecipe(RunDir(Path("runs") / f"plan of {chosen.name}"), chosen)  # nothing is written there
    check_inputs(bound, here=not fits.described)
    if measure:
        from metareward.pipeline.plan import measure_recipe

        rates = measure_recipe(chosen, measure)
    else:
        rates = measured_rates(RunDir(like), rate) if like else Rates(rate)
    print_rich(plan_table(plan(chosen, rates)))
    check_machine(bound, fits)
    if nodes_unknown(chosen, fits):
        print_rich(
            "the GPUs and memory of the Ray cluster's nodes aren't checked; --machine 2x8x80 checks such a cluster"
        )
    else:
        print_rich(f"the recipe can run on {fits if machine else f'this machine ({fits})'}")


@app.command("check-judge")
def check_judge_command(
    recipe: RecipeName,
    changes: Changes = None,
    pairs: Annotated[
        str | None, typer.Option("--pairs", metavar="FILE", help="Labelled pairs, as evaluate judge-quality reads.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers there, too.")] = None,
) -> None:
    """Check a recipe's judge on labelled pairs before a run: does it see more than an answer's length?"""
    import json
    from dataclasses import asdict

    from metareward.generation.progress import terminal_progress
    from metareward.pipeline.engines import judge_recipe
    from metareward.pipeline.judge_check import check_recipe, cost_line
    from metareward.report.judge_health import check_table
    from metareward.storage.atomic import write_atomic

    own = [] if pairs is None else [f"judge_check.pairs={json.dumps(pairs)}"]
    loaded = judge_recipe(recipe, [*(changes or ()), *own])
    print_rich(cost_line(loaded))
    check = check_recipe(loaded, terminal_progress())
    print_rich(check_table(check))
    if out is not None:
        numbers = {**asdict(check), "beats_length": check.beats_length, "finding": check.finding}
        write_atomic(out, json.dumps(numbers, indent=2) + "\n")


@app.command("status")
def status_command(run: RunFolder) -> None:
    """Show what is done and what is pending in a run."""
    from metareward.pipeline.status import status_text
    from metareward.storage.run_dir import RunDir

    typer.echo(status_text(RunDir(run)), nl=False)


@app.command("show")
def show_command(
    run: RunFolder,
    prompt: Annotated[str, typer.Option("--prompt", metavar="ID", help="The prompt's id.")],
    iteration: Annotated[int | None, typer.Option("--iteration", min=1, help="Only this iteration.")] = None,
) -> None:
    """Show everything about one prompt: answers, judgments, meta-judgments, Elo ratings, pairs."""
    from metareward.report.prompt_trace import find_trace
    from metareward.report.trace_text import trace_text
    from metareward.storage.run_dir import RunDir

    typer.echo(trace_text(find_trace(RunDir(run), prompt, iteration)))


@app.command("pairs")
def pairs_command(
    run: RunFolder,
    changes: Changes = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where to write; RUN/rebuilt/... if not given.")
    ] = None,
) -> None:
    """Build pairs again from stored records, by other rules; nothing is generated and the run stays as it is."""
    from metareward.pipeline.rebuild import pair_counts_table, rebuild, write_rebuilt
    from metareward.storage.run_dir import RunDir

    folder = RunDir(run)
    rebuilt = rebuild(folder, changes or ())
    print_rich(pair_counts_table(rebuilt))
    print_rich(f"written to {write_rebuilt(folder, changes or (), rebuilt, out)}")


@app.command("report")
def report_command(run: RunFolder) -> None:
    """Write a run's report as one HTML file."""
    from metareward.report.write import write_report
    from metareward.storage.run_dir import RunDir

    print_rich(f"written to {write_report(RunDir(run))}")


ViewSelection = Annotated[
    str,
    typer.Option(
        "--select",
        metavar="QUERY",
        help="For --export, as in a list's address: t=2&flipped=1. For --export-pairs: kind=judge.",
    ),
]
ViewPrompts = Annotated[
    list[str] | None, typer.Option("--prompt", metavar="ID", help="Only this prompt for --export. Repeatable.")
]


@app.command("view")
def view_command(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; more than one to compare them.")],
    host: Annotated[str, typer.Option("--host", help="The address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; a free one if not given.")] = 0,
    token: Annotated[bool, typer.Option("--token/--no-token", help="Ask for the token in the printed address.")] = True,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", metavar="NAME", help="A host name to serve under. Repeatable.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", metavar="DIR", help="Where indexes are kept; ~/.cache/metareward/view.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", metavar="FILE", help="Write a selection as one HTML file instead.")
    ] = None,
    selected: ViewSelection = "",
    prompt: ViewPrompts = None,
    person: Annotated[
        str | None,
        typer.Option("--person", metavar="NAME", help="Who judges pairs; your login if not given."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", metavar="FILE", help="Where judgments go; by default into the run."),
    ] = None,
    export_pairs: Annotated[
        Path | None,
        typer.Option("--export-pairs", metavar="FILE", help="Write judged pairs for evaluate judge-quality instead."),
    ] = None,
) -> None:
    """Look at runs in a browser: every prompt, judgment and verdict, searched and filtered; models side by side."""
    try:
        from metareward.viewer.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"view: {error.name} is missing; fix: pip install 'metareward[view]'") from None

    from metareward.storage.atomic import write_atomic
    from metareward.viewer.annotations import exported_pairs, login_name
    from metareward.viewer.export import exported
    from metareward.viewer.index import default_cache
    from metareward.viewer.runs import open_runs
    from metareward.viewer.selection import Selection

    chosen = Selection.parse(selected, strict=True)
    if export is None and (prompt or chosen != Selection(kind=chosen.kind) or (selected and export_pairs is None)):
        raise UserError("view: --select and --prompt are for --export; fix: add --export FILE (pairs: only kind=judge)")
    viewed, exports = open_runs(runs, cache or default_cache(), annotations), [export, export_pairs]
    if not any(exports):
        serve(viewed, host, port, token, allow_host or (), login_name() if person is None else person)
        return
    if len(viewed) > 1:
        raise UserError("view: --export and --export-pairs are for one run; fix: name one run folder")
    viewed[0].refresh()
    if export is not None:
        write_atomic(export, exported(viewed[0], chosen, prompt or ()))
    if export_pairs is not None:
        write_atomic(export_pairs, replace_surrogates(exported_pairs(viewed[0], chosen.kind)))
    print_rich(f"written to {' and '.join(str(path) for path in exports if path is not None)}")


@app.command("init")
def init_command(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="The file to write.")] = Path("recipe.yaml"),
    preset: Annotated[str, typer.Option("--preset", metavar="NAME", help="What it extends.")] = "pocket",
) -> None:
    """Write a new recipe with every setting explained. A file that is there stays."""
    from metareward.config.template import write_starter

    write_starter(path, preset)
    print_rich(f"written to {path}; see what it costs with: metareward plan {path}")


@pocket_app.command("build")
def pocket_build_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the model and the log of its making.")],
    seed: Annotated[int, typer.Option("--seed", help="Every random choice follows from it.")] = 0,
    device: Annotated[str, typer.Option("--device", help="Where to train it: cpu, cuda, ...")] = "cpu",
    start: Annotated[
        Path | None, typer.Option("--start", metavar="DIR", help="A model to teach further instead of a new one.")
    ] = None,
    phase: Annotated[
        list[str] | None, typer.Option("--phase", metavar="NAME", help="Only this phase of the plan. Again for more.")
    ] = None,
) -> None:
    """Build the pocket model as the package's own was built: three phases, about an hour on one core."""
    from dataclasses import replace

    from metareward.pocket.build import BuildPlan, build

    plan = BuildPlan(seed=seed)
    chosen = tuple(each for each in plan.phases if phase is None or each.name in phase)
    if not chosen:
        names = ", ".join(each.name for each in plan.phases)
        raise UserError(f"--phase {' '.join(phase or ())}: no such phase; the plan has {names}")
    print_rich(f"written to {build(out, replace(plan, phases=chosen), device, start)}")


@pocket_app.command("sample")
def pocket_sample_command(
    count: Annotated[int, typer.Option("--count", min=1, help="How many demonstrations.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Other demonstrations.")] = 0,
) -> None:
    """Show right demonstrations of the three roles in the pocket world."""
    from metareward.pocket.demonstrations import EVAL_MIX, demonstrations

    for shown in demonstrations(count, seed, EVAL_MIX):
        typer.echo(f"[{shown.role}]\n{shown.messages[-1].content}\n=> {shown.completion}\n")
