"""SECURITY.md, tried: a run needs no network and writes to its folder only; a model folder's code is never run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from tiny_models import tiny_llama
from whole_runs import Workspace, run_results

from metareward.engines.local import checkpoint
from metareward.errors import UserError
from metareward.pipeline.preflight import check_model
from metareward.storage.run_dir import RunDir
from metareward.training.models import load_model, load_tokenizer

_START = "from metareward.cli.main import main; main()"


def alone(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """``metareward`` without a network, on a file system of which only ``folder`` can be written; skips without rights.

    Not even a home or a folder for temporary files can be written.
    """
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    closed = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && cd "$0" && exec "$@"'
    start = ["unshare", "-rnm", "sh", "-c", closed, str(folder)]
    if subprocess.run([*start, "true"], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*start, sys.executable, "-c", _START, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=1500)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_needs_no_network_and_writes_to_its_folder_only(workspace: Workspace, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "prompts.jsonl", "questions.jsonl"):
        shutil.copy(workspace.folder / name, tmp_path)
    shutil.copytree(workspace.folder / "model", tmp_path / "model")
    before = {path.name for path in tmp_path.iterdir()}
    done = alone(tmp_path, "run", "recipe.yaml", "--out", "run")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == before | {"run"}
    assert run_results(RunDir(tmp_path / "run")) == run_results(workspace.reference())


_CODE = """\
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({canary!r}).touch()
class Config(LlamaConfig):
    model_type = {kind!r}
class Model(LlamaForCausalLM):
    config_class = Config
"""


@pytest.mark.parametrize("kind", ["llama", "planted"])
def test_code_in_a_model_folder_is_never_run(tmp_path: Path, kind: str) -> None:
    folder, canary = tmp_path / "model", tmp_path / "canary"
    tiny_llama(folder, verdicts=False)
    (folder / "planted.py").write_text(_CODE.format(canary=str(canary), kind=kind))
    (folder / "setup.py").write_text(f"open({str(canary)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    names = {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind, "auto_map": names}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": ["planted.Tokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    refused = pytest.raises((UserError, ValueError)) if kind == "planted" else nullcontext()
    with refused:
        checkpoint.load(folder, "cpu", "float32")
    with refused:
        load_model(folder, 0.0)
    load_tokenizer(folder)
    assert not canary.exists()


def test_weights_outside_of_a_model_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_llama(folder, verdicts=False)
    shutil.copy(folder / "model.safetensors", tmp_path / "elsewhere.safetensors")
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="isn't a file of this folder"):
        check_model(folder, "model")
