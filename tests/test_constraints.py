"""The files of versions: each pinned once, and those of vLLM's environment resolved by pip."""

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


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


def test_vllm_has_versions_of_its_own() -> None:
    ours, theirs = pinned("constraints.txt"), pinned("constraints-vllm.txt")
    assert theirs["vllm"] == "0.33.0" and "vllm" not in ours
    assert version(theirs["transformers"]) < (5, 21) <= version(ours["transformers"])
    assert theirs["trl"] == ours["trl"]  # what trains is the same


@pytest.mark.network
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("asked", ["vllm", f"{ROOT}[vllm]"], ids=["alone", "with this package"])
def test_pip_resolves_vllm(asked: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
    constraints = ["--constraint", str(ROOT / "constraints-vllm.txt")]
    command = [sys.executable, "-m", "pip", "install", *options, *constraints, asked]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    wanted = pinned("constraints-vllm.txt")
    for each in json.loads(report.read_text())["install"]:
        name = each["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
        if name != "metareward":
            assert each["metadata"]["version"].partition("+")[0] == wanted[name], name
