"""How often the models of a run of two iterations are read for their digests, in all its processes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from tiny_models import tiny_llama
from whole_runs import Workspace, write_inputs

# Every Python process of the run imports this at its start. What Rust opens (safetensors) is no event of Python's.
HOOK = """
import os, sys

def note(event, arguments):
    if event == "open" and str(arguments[0]).endswith("model.safetensors") and arguments[1] == "r":
        with open(os.environ["READS"], "a") as file:
            file.write(f"{os.path.realpath(arguments[0])}\\n")

sys.addaudithook(note)
"""


@pytest.mark.slow
def test_each_model_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_inputs(tmp_path)
    tiny_llama(tmp_path / "model", verdicts=True)
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("READS", str(tmp_path / "reads"))
    status, _, errors = Workspace(tmp_path).run("out")
    assert status == 0, errors
    folders = [str(Path(line).relative_to(tmp_path).parent) for line in (tmp_path / "reads").read_text().splitlines()]
    assert Counter(folders) == {"model": 1, "out/iter-1/model": 1, "out/iter-2/model": 1}
