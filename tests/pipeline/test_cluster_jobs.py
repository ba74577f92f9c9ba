"""Job files: what they start, in which order, with every argument as it was given."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from whole_runs import invoke

from metareward.errors import UserError
from metareward.pipeline.cluster_jobs import ClusterJob, kuberay_manifest, seconds_of, sky_task, slurm_script

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash")
ODD = ('it\'s a "recipe" $(touch pwned); x.yaml', "--set", "name=a b`c`\\", "--out", "runs/ü & 'x'\n")
JOB = ClusterJob("mine", ODD, nodes=3)
RAY = "engine={kind: ray, engine: {kind: local, dtype: float32}}"
# Writes its name, its arguments and RAY_ADDRESS as a line of JSON; `ray start --block` stays until it is ended. The run
# waits until as many nodes have started as STARTS says.
TELLS = f"""\
#!{sys.executable}
import json, os, pathlib, sys, time
name = pathlib.Path(sys.argv[0]).name
line = json.dumps([name, sys.argv[1:], os.environ.get("RAY_ADDRESS", ""), os.environ.get("LOADED", "")])
with open(os.environ["TOLD"], "a") as file:
    file.write(line + "\\n")
if "--block" in sys.argv:
    time.sleep(float(os.environ.get("BLOCKS", "60")))
    sys.exit(1)
if name == "metareward":
    while pathlib.Path(os.environ["TOLD"]).read_text().count("--block") < int(os.environ.get("STARTS", "0")):
        time.sleep(0.02)
    time.sleep(float(os.environ.get("TAKES", "0")))
    sys.exit(int(os.environ.get("ENDS", "0")))
"""
# Slurm's commands, each node being this machine.
SRUN = '#!/bin/bash\nwhile [[ "$1" == --* ]]; do shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/bash\n[ "$1 $2" = "show hostnames" ] && printf "%s\\n" ${3//,/ }\n'


def fake_cluster(folder: Path) -> dict[str, str]:
    """The environment of a job on three nodes whose commands only tell that they were called."""
    for name, text in {"metareward": TELLS, "ray": TELLS, "srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "20007", "SLURM_JOB_NODELIST": "n1,n2,n3", "SLURM_SUBMIT_DIR": str(folder)}
    return {**os.environ, **slurm, "PATH": path, "TOLD": str(folder / "told"), "RAY_POLL_SECONDS": "0.05"}


def told(folder: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (folder / "told").read_text().splitlines()]


def sbatch(folder: Path, text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script as Slurm's ``sbatch`` would."""
    (folder / "job.sh").write_text(text)
    given = fake_cluster(folder) | environment
    return subprocess.run(["bash", "job.sh"], cwd=folder, env=given, capture_output=True, text=True, timeout=60)


def test_slurm_on_one_node_runs_the_command_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "my env.sh").write_text("export LOADED=yes\n")
    job = ClusterJob("mine", ODD, setup=Path("my env.sh"))
    text = slurm_script(job, "1-02:03:04", {"partition": "gpu", "mem": "200G"})
    assert sbatch(tmp_path, text).returncode == 0
    assert told(tmp_path) == [["metareward", ["run", *ODD], "", "yes"]]
    assert not (tmp_path / "pwned").exists()
    assert sbatch(tmp_path, text, ENDS="3").returncode == 3
    wanted = {"job-name=mine", "nodes=1", "gpus-per-node=8", "time=1-02:03:04", "partition=gpu", "mem=200G"}
    assert {f"#SBATCH --{each}" for each in wanted} <= set(text.splitlines())
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-e", "SC1091", str(tmp_path / "job.sh")], check=True)


def test_slurm_on_three_nodes_starts_ray_on_each_and_the_run_beside_the_head(tmp_path: Path) -> None:
    done = sbatch(tmp_path, slurm_script(JOB, "24:00:00", {}), STARTS="3")
    assert done.returncode == 0, done.stderr
    calls, address = told(tmp_path), f"n1:{20000 + 20007 % 20000}"
    starts = [words for name, words, *_ in calls if name == "ray" and words[0] == "start"]
    assert ["start", "--head", "--node-ip-address=n1", "--port=20007", "--block"] in starts
    assert starts.count(["start", f"--address={address}", "--block"]) == 2
    assert [call for call in calls if call[0] == "metareward"] == [["metareward", ["run", *ODD], address, ""]]


def test_slurm_s_warning_ends_the_run(tmp_path: Path) -> None:
    (tmp_path / "job.sh").write_text(slurm_script(ClusterJob("mine", ("x.yaml",)), "00:10:00", {}))
    given = fake_cluster(tmp_path) | {"TAKES": "50"}
    job = subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=given)
    while not (tmp_path / "told").exists():
        assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=30) == 128 + signal.SIGTERM


@pytest.mark.parametrize(
    ("options", "time", "line"),
    [
        ({"partition": "gpu\n#SBATCH --x"}, "1:00:00", "not possible in #SBATCH"),
        ({"account": "a b"}, "1:00:00", "--account 'a b'"),
        ({}, "tomorrow", "--time tomorrow: not HH:MM:SS"),
    ],
)
def test_what_slurm_would_misread_is_refused(options: dict[str, str], time: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        slurm_script(JOB, time, options)


def test_times() -> None:
    assert [seconds_of(each) for each in ("00:00:01", "24:00:00", "2-01:00:00")] == [1, 86400, 2 * 86400 + 3600]


def test_a_rayjob_of_three_nodes() -> None:
    text = kuberay_manifest(JOB, "02:00:00", "me/mine:1", "disk", "/mnt/my disk")
    made = yaml.safe_load(text)
    spec = made["spec"]
    assert (made["kind"], made["metadata"]["name"], spec["activeDeadlineSeconds"]) == ("RayJob", "mine", 7200)
    shell = shlex.split(spec["entrypoint"])
    assert shell[:2] == ["bash", "-c"]
    assert shlex.split(shell[2]) == ["cd", "/mnt/my disk", "&&", "exec", "metareward", "run", *ODD]
    head, (workers,) = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 2
    for group in (head, workers):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "8" and container["image"] == "me/mine:1"
        mounted = {each["name"] for each in container["volumeMounts"]}
        assert mounted == {each["name"] for each in group["template"]["spec"]["volumes"]}
    alone = yaml.safe_load(kuberay_manifest(ClusterJob("one", ("x",)), "02:00:00", "i", "c", "/mnt"))
    assert "workerGroupSpecs" not in alone["spec"]["rayClusterSpec"]
    with pytest.raises(UserError, match="--memory much"):
        kuberay_manifest(JOB, "02:00:00", "i", "c", "/mnt", memory="much")


def test_a_sky_task_of_three_nodes(tmp_path: Path) -> None:
    made = yaml.safe_load(sky_task(JOB, "H200", "aws/us-east-1", "docker:me/mine"))
    assert (made["num_nodes"], made["resources"]["accelerators"]) == (3, {"H200": 8})
    # The fields of a task that SkyPilot knows (sky/utils/schemas.py allows no others).
    assert made.keys() <= {"name", "num_nodes", "workdir", "resources", "setup", "run", "envs", "file_mounts"}
    assert made["resources"].keys() <= {"accelerators", "infra", "image_id", "cpus", "use_spot", "disk_size"}
    given = fake_cluster(tmp_path) | {"SKYPILOT_NODE_IPS": "n1\nn2\nn3", "SKYPILOT_NODE_RANK": "0", "STARTS": "1"}
    subprocess.run(["bash", "-c", made["run"]], cwd=tmp_path, env=given, check=True, timeout=30)
    assert [name for name, *_ in told(tmp_path) if name != "ray"] == ["metareward"]
    assert ["metareward", ["run", *ODD], "n1:6399", ""] in told(tmp_path)
    assert "stop" not in [words[0] for _, words, *_ in told(tmp_path)], "it would end SkyPilot's own Ray"
    failed = subprocess.run(["bash", "-c", made["run"]], cwd=tmp_path, env=given | {"ENDS": "3"}, timeout=30)
    assert failed.returncode == 3


def test_another_node_of_a_sky_task_ends_with_the_head(tmp_path: Path) -> None:
    made = yaml.safe_load(sky_task(JOB, "H200"))
    given = fake_cluster(tmp_path) | {"SKYPILOT_NODE_IPS": "n1\nn2\nn3", "SKYPILOT_NODE_RANK": "1", "BLOCKS": "0"}
    subprocess.run(["bash", "-c", made["run"]], cwd=tmp_path, env=given, check=True, timeout=30)
    assert [words[0] for name, words, *_ in told(tmp_path) if name == "ray"] == ["status", "start"]
    assert not [name for name, *_ in told(tmp_path) if name == "metareward"]


def written(*words: str) -> str:
    result = invoke(["launch", *words])
    return f"{result.output}{result.exception or ''}"


def test_the_command_writes_the_file(tmp_path: Path) -> None:
    target = tmp_path / "job.sh"
    assert written("slurm", "pocket", "--nodes", "2", "--set", RAY, "--gpus", "0", "--out", str(target)).startswith(
        "written: "
    )
    text = target.read_text()
    assert f"run=(metareward run pocket --set {shlex.quote(RAY)})" in text and "gpus-per-node" not in text
    assert "ray start --head" in text
    two = ("slurm", "pocket", "--nodes", "2")
    assert "engine.kind is local and training.launcher local, which use one machine; fix: make one" in written(*two)
    assert "ray start --head" in written(*two, "--set", "training.launcher=ray")
    assert "kind: RayJob" in written("kuberay", "pocket", "--image", "i", "--claim", "c", "--run", "runs/a")
    assert "num_nodes: 1" in written("skypilot", "pocket")
