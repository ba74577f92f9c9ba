"""The commands on runs: ``metareward list``, ``compare``, ``experiment``, ``verify`` and ``push``.

Heavy modules are imported inside the commands, so that ``--help`` and usage errors are quick.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from metareward.cli.data import print_rich
from metareward.errors import UserError

_Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/pocket.")]
_Other = Annotated[Path, typer.Argument(metavar="RUN", help="Another one.")]


def list_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder of runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all fields.")] = False,
) -> None:
    """List the runs in a folder: state, iteration, stage, model, age, first figure."""
    from metareward.pipeline.run_list import list_runs, list_table

    runs = list_runs(folder)
    if as_json:
        typer.echo(json.dumps([each.as_dict() for each in runs], indent=1))
    elif runs:
        print_rich(list_table(runs))
    else:
        print_rich(f"no runs in {folder}")


def compare_command(
    first: _Run,
    second: _Other,
    plot: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Plot the differences there, as .svg or .png.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all numbers.")] = False,
) -> None:
    """Compare two runs: what differs in their recipes, and in their models on the same prompts."""
    from metareward.cli.evaluate import tables_text
    from metareward.pipeline.compare_runs import compare_runs, plot_runs
    from metareward.storage.run_dir import RunDir
    from metareward.text import escape_control

    found = compare_runs(RunDir(first), RunDir(second))
    if plot is not None:
        plot_runs(found, plot)
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
        return
    print_rich(escape_control("\n".join(["the recipes differ in:", *(f"  {each}" for each in found.recipe)])))
    if not found.recipe:
        print_rich("  nothing")
    print_rich(tables_text(found.tables()), 200)
    for note in found.notes:
        print_rich(escape_control(note))


def experiment_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What is compared: a recipe, arms, seeds.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of all runs; runs/<file's name> if not given.")
    ] = None,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Runs at once, each with its part of the processors and GPUs.")
    ] = 1,
) -> None:
    """Run the arms of a controlled experiment with several seeds each, and compare them. Goes on where it stopped."""
    from metareward.pipeline.arms import load_experiment, run_experiment
    from metareward.report.arms import difference_tables
    from metareward.report.benchmark_tables import plain_tables

    experiment = load_experiment(file, out or Path("runs") / file.stem)
    report = run_experiment(experiment, jobs, print_rich)
    if (tables := plain_tables(difference_tables(report.differences))) is not None:
        print_rich(tables, 200)
    print_rich(f"report: {experiment.out / 'report.html'}; all figures: differences.csv and figures.csv beside it")


def verify_command(
    run: _Run,
    repair: Annotated[
        bool, typer.Option("--repair", help="Have what is damaged made again by the next start, and nothing else.")
    ] = False,
) -> None:
    """Read all of a run, finished or not, and say what isn't what the run made. Exit code 2 if anything isn't."""
    from metareward.pipeline.repair import repair as repaired
    from metareward.pipeline.verify import verification_text, verify
    from metareward.storage.run_dir import RunDir
    from metareward.text import escape_control

    folder = RunDir(run)
    found = verify(folder)
    typer.echo(escape_control(verification_text(folder, found)), nl=False)
    if not found.findings:
        return
    if not repair:
        raise UserError(f"{run}: not all of it is what the run made; fix: metareward verify {run} --repair")
    for line in repaired(folder):
        typer.echo(escape_control(line))
    typer.echo(escape_control(f"make it again: metareward run {run}"))


def push_command(
    run: _Run,
    to: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="The repository on the Hugging Face hub.")],
    iteration: Annotated[
        int | None, typer.Option("--iteration", min=1, help="The model of this iteration; the last one if not given.")
    ] = None,
    pairs: Annotated[bool, typer.Option("--pairs", help="The pairs of all iterations, as a data set.")] = False,
    base: Annotated[
        str | None, typer.Option("--base", metavar="OWNER/NAME", help="The hub's name of M0, for the card.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", metavar="ID", help="The base's licence, such as apache-2.0.")
    ] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Of a new repository.")] = True,
    yes: Annotated[bool, typer.Option("--yes", help="Send it. Without this, only list what would be sent.")] = False,
) -> None:
    """Put a run's model (or its pairs) on the Hugging Face hub, with a card. Sends nothing without --yes."""
    from metareward.pipeline.publish import model_publication, pairs_publication, publication_table, push
    from metareward.storage.run_dir import RunDir
    from metareward.text import escape_control

    if pairs and (iteration is not None or base is not None):
        raise UserError("push --pairs: takes the pairs of all iterations; fix: leave --iteration and --base out")
    folder = RunDir(run)
    found = pairs_publication(folder, to, licence) if pairs else model_publication(folder, to, iteration, base, licence)
    print_rich(escape_control(f"{found.title} as {found.kind} {found.repository}:"))
    print_rich(publication_table(found))
    for warning in found.warnings:
        print_rich(escape_control(f"warning: {warning}"))
    if yes:
        print_rich(f"pushed to {push(found, private)}")
    else:
        print_rich("nothing was sent; send it with --yes")
