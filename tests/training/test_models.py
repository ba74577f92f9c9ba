"""Model folders that are loaded to be trained, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from training_world import changed, make_job, save_model

from metareward.errors import UserError
from metareward.training.models import load_model, load_tokenizer
from metareward.training.models import save_model as save_trained


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"torn: 1 weights are missing \(model.layers.1.mlp.up_proj.weight\)"):
        load_model(folder, 0.0)


def test_a_tokenizer_without_chat_template_is_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "mute")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="mute: the tokenizer has no chat template"):
        load_tokenizer(folder)


@pytest.mark.parametrize("save_dtype", ["start", "float32"])
def test_trained_in_float32_and_saved_as_set(tmp_path: Path, save_dtype: Any) -> None:
    start = save_model(tmp_path / "half", dtype=torch.bfloat16)
    model = load_model(start, 0.0)
    assert model.dtype == torch.float32
    (tmp_path / "out").mkdir()
    save_trained(
        model, changed(make_job(tmp_path, start, (tmp_path / "pairs",)), save_dtype=save_dtype), tmp_path / "out"
    )
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16 if save_dtype == "start" else torch.float32}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == ("bfloat16" if save_dtype == "start" else "float32")
