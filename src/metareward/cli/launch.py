"""``metareward launch``: writes the job file with which a cluster runs a recipe. Nothing is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from metareward.pipeline.cluster_jobs import ClusterJob

launch_app = typer.Typer(no_args_is_help=True, help="Write the job file with which a cluster runs a recipe.")

_RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, a preset's name, or a run folder.")]
_Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting. Repeatable.")
]
_Run = Annotated[Path | None, typer.Option("--run", metavar="DIR", help="Run folder; if not given, runs/<name>.")]
_Nodes = Annotated[
    int, typer.Option("--nodes", min=1, help="Machines; several need Ray, as engine.kind or training.launcher.")
]
_Gpus = Annotated[int, typer.Option("--gpus", min=0, help="GPUs of each machine.")]
_Time = Annotated[str, typer.Option("--time", metavar="HH:MM:SS", help="Longest time of the job.")]
_Setup = Annotated[
    Path | None,
    typer.Option("--setup", metavar="FILE", help="Shell file that is sourced first: modules, virtual environments."),
]
_Out = Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write here; if not given, to the terminal.")]


@launch_app.command("slurm")
def slurm_command(
    recipe: _RecipeName,
    changes: _Changes = None,
    run: _Run = None,
    nodes: _Nodes = 1,
    gpus: _Gpus = 8,
    time: _Time = "24:00:00",
    setup: _Setup = None,
    partition: Annotated[str | None, typer.Option("--partition", help="sbatch's partition.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="sbatch's account.")] = None,
    cpus: Annotated[
        int | None,
        typer.Option("--cpus", min=1, help="CPU cores of each machine; if not given, Slurm's default, often 1."),
    ] = None,
    memory: Annotated[str | None, typer.Option("--memory", help="sbatch's mem: memory of each machine.")] = None,
    out: _Out = None,
) -> None:
    """A script for sbatch, which starts Ray on the nodes where there are several."""
    from metareward.pipeline.cluster_jobs import slurm_script

    named = {"partition": partition, "account": account, "cpus-per-task": cpus, "mem": memory}
    options = {name: str(value) for name, value in named.items() if value is not None}
    _write(slurm_script(_job(recipe, changes, run, nodes, gpus, setup), time, options), out)


@launch_app.command("kuberay")
def kuberay_command(
    recipe: _RecipeName,
    image: Annotated[str, typer.Option("--image", help="Container image with metareward[ray].")],
    claim: Annotated[str, typer.Option("--claim", help="Persistent volume claim with recipe, model and runs.")],
    changes: _Changes = None,
    run: _Run = None,
    nodes: _Nodes = 1,
    gpus: _Gpus = 8,
    time: _Time = "24:00:00",
    setup: _Setup = None,
    mount: Annotated[str, typer.Option("--mount", help="Where the claim is mounted; paths are relative to it.")] = (
        "/mnt/metareward"
    ),
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="CPU cores of each pod.")] = 16,
    memory: Annotated[str, typer.Option("--memory", help="Memory of each pod.")] = "128Gi",
    out: _Out = None,
) -> None:
    """A RayJob for KubeRay."""
    from metareward.pipeline.cluster_jobs import kuberay_manifest

    job = _job(recipe, changes, run, nodes, gpus, setup)
    _write(kuberay_manifest(job, time, image, claim, mount, cpus, memory), out)


@launch_app.command("skypilot")
def skypilot_command(
    recipe: _RecipeName,
    changes: _Changes = None,
    run: _Run = None,
    nodes: _Nodes = 1,
    gpus: _Gpus = 8,
    accelerator: Annotated[str, typer.Option("--accelerator", help="SkyPilot's name of the GPU.")] = "H100",
    infra: Annotated[str | None, typer.Option("--infra", help="Cloud, region, zone, such as aws/us-east-1.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Image, such as docker:ubuntu:24.04.")] = None,
    setup: _Setup = None,
    out: _Out = None,
) -> None:
    """A task for SkyPilot."""
    from metareward.pipeline.cluster_jobs import sky_task

    _write(sky_task(_job(recipe, changes, run, nodes, gpus, setup), accelerator, infra, image), out)


def _job(
    recipe: str, changes: list[str] | None, run: Path | None, nodes: int, gpus: int, setup: Path | None
) -> ClusterJob:
    from metareward.config.schema import load_recipe
    from metareward.pipeline.cluster_jobs import cluster_job

    words = [word for change in changes or () for word in ("--set", change)]
    folder = [] if run is None else ["--out", str(run)]
    return cluster_job(load_recipe(recipe, changes or ()), (recipe, *words, *folder), nodes, gpus, setup)


def _write(text: str, out: Path | None) -> None:
    from metareward.storage.atomic import write_atomic

    if out is None:
        typer.echo(text, nl=False)
    else:
        write_atomic(out, text)
        typer.echo(f"written: {out}")
