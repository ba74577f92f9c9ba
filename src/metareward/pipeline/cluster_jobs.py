"""Job files that run a recipe on a cluster: Slurm, Ray on Kubernetes (KubeRay), SkyPilot.

Each starts Ray on the nodes where there are several, and the same ``metareward run`` inside it. A run goes on where it
stopped, so a job that ran out of time is submitted again as it is.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from metareward.config.schema import Recipe
from metareward.errors import UserError

_PLAIN = re.compile(r"[A-Za-z0-9_.,:@/+=-]+")  # in a line of #SBATCH nothing can be quoted
_TIME = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")
_MEMORY = re.compile(r"\d+(?:\.\d+)?(?:[KMGT]i?)?")
_LONGEST_NAME = 47  # of a RayJob
_GRACE_SECONDS = 180  # between the signal and the end of a Slurm job


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """``metareward run`` of a recipe on ``nodes`` machines of ``gpus`` GPUs each.

    ``arguments`` are those of the command. ``setup``: a shell file that is sourced on the nodes first.
    """

    name: str
    arguments: tuple[str, ...]
    nodes: int = 1
    gpus: int = 8
    setup: Path | None = None

    @property
    def command(self) -> str:
        """The command, quoted for a shell."""
        return shlex.join(["metareward", "run", *self.arguments])


def cluster_job(
    recipe: Recipe, arguments: tuple[str, ...], nodes: int, gpus: int, setup: Path | None = None
) -> ClusterJob:
    """The job of a recipe. Raises `UserError` where all nodes but one would stand idle."""
    trains = any(recipe.training_of(t).launcher == "ray" for t in recipe.iterations)
    if nodes > 1 and recipe.engine.kind != "ray" and not trains:
        raise UserError(
            f"--nodes {nodes}: engine.kind is {recipe.engine.kind} and training.launcher local, which use one machine; "
            "fix: make one of them ray (docs/cluster.md), or --nodes 1"
        )
    name = re.sub(r"[^a-z0-9]+", "-", recipe.name.lower()).strip("-")[:_LONGEST_NAME].strip("-") or "metareward"
    return ClusterJob(name if name[0].isalpha() else f"run-{name}"[:_LONGEST_NAME], arguments, nodes, gpus, setup)


def seconds_of(time: str) -> int:
    """Seconds of ``HH:MM:SS`` or ``D-HH:MM:SS``. Raises `UserError`."""
    found = _TIME.fullmatch(time)
    if found is None:
        raise UserError(f"--time {time}: not HH:MM:SS or D-HH:MM:SS; fix: such as 24:00:00")
    days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


# --- Slurm ---

_SLURM_RUN = """\
"${run[@]}" &
job=$!
# Near the end of its time the job gets SIGTERM: the run stops and keeps what is finished.
trap 'kill -TERM "$job"' TERM
code=0
wait "$job" || code=$?
while kill -0 "$job" 2>/dev/null; do  # the signal has ended the wait, not the run
    code=0
    wait "$job" || code=$?
done
exit "$code"
"""
_WAIT_FOR_HEAD = """\
for ((tries = 0; ; tries++)); do
    told=$(ray status --address "$RAY_ADDRESS" 2>&1) && break
    if ((tries == 120)); then echo "Ray's head on $head doesn't answer: ${told##*$'\\n'}" >&2; exit 1; fi
    sleep "${RAY_POLL_SECONDS:-5}"
done
"""
_SLURM_RAY = """\
# Ray on every node: the first one is the head.
nodes=()
while read -r node; do nodes+=("$node"); done < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
export RAY_ADDRESS="$head:$port"
# Ray lets those in who know the job's token; without one of its own it may ask for that in the home directory.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
# Since Slurm 22.05 srun doesn't take this from sbatch: Ray would have one core of each node.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
others=()
stop() { for each in "${others[@]}"; do kill "$each" 2>/dev/null || true; done; }
trap stop EXIT
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \\
    ray start --head --node-ip-address="$head" --port="$port" --block &
others+=("$!")
"""
_SLURM_NODES = """\
for node in "${nodes[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" ray start --address="$RAY_ADDRESS" --block &
    others+=("$!")
done
# Beside the head, on its node.
run=(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" "${run[@]}")
"""


def slurm_script(job: ClusterJob, time: str, options: Mapping[str, str]) -> str:
    """A script for ``sbatch``; ``options`` are further ones of sbatch, such as partition. Raises `UserError`."""
    seconds_of(time)
    given = {
        "job-name": job.name,
        "nodes": str(job.nodes),
        "ntasks-per-node": "1",
        **({"gpus-per-node": str(job.gpus)} if job.gpus else {}),
        "time": time,
        "output": f"{job.name}-%j.log",
        "signal": f"B:TERM@{_GRACE_SECONDS}",
        **options,
    }
    for name, value in given.items():
        if not _PLAIN.fullmatch(value.replace("%j", "")):
            raise UserError(f"--{name} {value!r}: not possible in #SBATCH; fix: use letters, digits and _.,:@/+=-")
    lines = [
        "#!/bin/bash",
        "# Submit with: sbatch FILE. Again when its time is over: the run goes on where it stopped.",
    ]
    lines += [f"#SBATCH --{name}={value}" for name, value in given.items()]
    lines += ["set -euo pipefail", 'cd "${SLURM_SUBMIT_DIR:-.}"  # paths in the recipe are relative to it']
    if job.setup is not None:
        lines += ["# Modules, virtual environments; srun passes the environment on to the other nodes."]
        lines += ["set +u", f"source {shlex.quote(str(job.setup))}", "set -u"]
    lines += [f"run=({job.command})", ""]
    return "\n".join(lines) + (_SLURM_RAY + _WAIT_FOR_HEAD + _SLURM_NODES if job.nodes > 1 else "") + _SLURM_RUN


# --- Kubernetes ---


def kuberay_manifest(
    job: ClusterJob, time: str, image: str, claim: str, mount: str, cpus: int = 16, memory: str = "128Gi"
) -> str:
    """A RayJob for KubeRay; the persistent volume ``claim``, mounted at ``mount``, has recipe, model and run folder.

    Raises `UserError`.
    """
    if not _MEMORY.fullmatch(memory):
        raise UserError(f"--memory {memory}: not an amount; fix: such as 128Gi")
    resources: dict[str, object] = {"cpu": str(cpus), "memory": memory}
    if job.gpus:
        resources["nvidia.com/gpu"] = str(job.gpus)

    def pod(name: str) -> dict[str, object]:
        container = {
            "name": name,
            "image": image,
            "workingDir": mount,
            "resources": {"limits": resources, "requests": resources},
            "volumeMounts": [{"name": "disk", "mountPath": mount}, {"name": "shm", "mountPath": "/dev/shm"}],
        }
        volumes = [
            {"name": "disk", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},  # for the object store and NCCL
        ]
        return {"spec": {"containers": [container], "volumes": volumes}}

    workers = job.nodes - 1
    worker = {
        "groupName": "workers",
        "replicas": workers,
        "minReplicas": workers,
        "maxReplicas": workers,
        "rayStartParams": {},
        "template": pod("ray-worker"),
    }
    setup = "" if job.setup is None else f"source {shlex.quote(str(job.setup))} && "
    script = f"cd {shlex.quote(mount)} && {setup}exec {job.command}"
    manifest = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": job.name},
        "spec": {
            "entrypoint": shlex.join(["bash", "-c", script]),
            "activeDeadlineSeconds": seconds_of(time),
            "backoffLimit": 3,
            "shutdownAfterJobFinishes": True,
            "rayClusterSpec": {
                "headGroupSpec": {"rayStartParams": {}, "template": pod("ray-head")},
                **({"workerGroupSpecs": [worker]} if workers else {}),
            },
        },
    }
    head = (
        "# Start with: kubectl apply -f FILE. The image has metareward[ray] and the same Ray as KubeRay is to start.\n"
        "# backoffLimit: a job that failed begins again on a new cluster, and the run goes on where it stopped.\n"
    )
    return head + yaml.safe_dump(manifest, sort_keys=False, width=100)


# --- SkyPilot ---

# SkyPilot has a Ray of its own, on another port; `ray stop` would end that one, too.
_SKY_RAY = """\
head=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)
export RAY_ADDRESS="$head:6399"
# A token would have to be the same on all nodes: sky launch --env RAY_AUTH_MODE=token --env RAY_AUTH_TOKEN=...
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-disabled}"
if [ "$SKYPILOT_NODE_RANK" = 0 ]; then
  ray start --head --node-ip-address="$head" --port=6399 --disable-usage-stats --block &
  ray_head=$!
  trap 'kill "$ray_head"' EXIT
fi
"""
_SKY_NODES = """\
if [ "$SKYPILOT_NODE_RANK" != 0 ]; then
  ray start --address="$RAY_ADDRESS" --block || true  # until the head ends
  exit 0
fi
"""


def sky_task(job: ClusterJob, accelerator: str, infra: str | None = None, image: str | None = None) -> str:
    """A SkyPilot task; ``accelerator`` is SkyPilot's name of the GPU. Paths are relative to the working directory."""
    resources: dict[str, object] = {"accelerators": {accelerator: job.gpus}} if job.gpus else {"cpus": "16+"}
    resources |= {key: value for key, value in (("infra", infra), ("image_id", image)) if value is not None}
    setup = "" if job.setup is None else f"source {shlex.quote(str(job.setup))}\n"
    run = f"set -e\n{setup}{_SKY_RAY + _WAIT_FOR_HEAD + _SKY_NODES if job.nodes > 1 else ''}{job.command}\n"
    task = {
        "name": job.name,
        "num_nodes": job.nodes,
        "workdir": ".",
        "resources": resources,
        "setup": f"pip install 'metareward{'[ray]' if job.nodes > 1 else ''}'\n",
        "run": run,
    }
    head = "# Start with: sky launch FILE. The working directory is copied; keep run folders on a mounted disk.\n"
    return head + yaml.safe_dump(task, sort_keys=False, width=100)
