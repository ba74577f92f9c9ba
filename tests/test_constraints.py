"""The files of versions: each pinned once, and those of vLLM's and the trackers' environments resolved by pip."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pinned(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found = dict(line.split("==") for line in lines)
    assert len(found) == len(lines)
    return found


def normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def test_vllm_has_versions_of_its_own() -> None:
    ours, theirs = pinned("constraints.txt"), pinned("constraints-vllm.txt")
    assert theirs["vllm"] == "0.33.0" and "vllm" not in ours
    assert version(theirs["transformers"]) < (5, 21) <= version(ours["transformers"])
    assert theirs["trl"] == ours["trl"]  # what trains is the same


def test_trackers_change_as_little_as_they_can() -> None:
    ours, theirs = pinned("constraints.txt"), pinned("constraints-trackers.txt")
    assert {"wandb", "mlflow", "trackio"} <= theirs.keys() - ours.keys()
    assert {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]} == {"pillow", "pyarrow"}


@pytest.mark.network
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("asked", "constraints"),
    [("vllm", "vllm"), (f"{ROOT}[vllm]", "vllm"), (f"{ROOT}[trackers]", "trackers")],
    ids=["vllm alone", "vllm with this package", "trackers"],
)
def test_pip_resolves_these_versions(asked: str, constraints: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
    versions = ROOT / f"constraints-{constraints}.txt"
    command = [sys.executable, "-m", "pip", "install", *options, "--constraint", str(versions), asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = {normal(name): pin for name, pin in pinned(versions.name).items()}
    for each in json.loads(report.read_text())["install"]:
        name = normal(each["metadata"]["name"])
        if name != "metareward":
            assert each["metadata"]["version"].partition("+")[0] == wanted[name], name
