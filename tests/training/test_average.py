from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from metareward.errors import UserError
from metareward.storage.custody import ModelRef, fingerprint_model
from metareward.training.average import RECORD, make_average, write_average


def folder(path: Path, value: float, **others: torch.Tensor) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"dtype": "bfloat16"}')
    weights = {"a": torch.full((2, 3), value, dtype=torch.bfloat16), **others}
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    return path


def model_ref(path: Path) -> ModelRef:
    return ModelRef(str(path), fingerprint_model(path))


def test_weight_by_weight_in_float32(tmp_path: Path) -> None:
    """0.9 * 1 + 0.1 * 3, in a process of its own."""
    earlier, newer = folder(tmp_path / "earlier", 1.0), folder(tmp_path / "newer", 3.0)
    place = make_average(earlier, newer, 0.9, tmp_path / "mean")
    weights = load_file(place / "model.safetensors")["a"]
    assert weights.dtype == torch.float32
    assert torch.allclose(weights, torch.full((2, 3), 1.2))
    before = (place / RECORD).stat().st_mtime_ns
    assert make_average(earlier, newer, 0.9, place) == place  # it is there
    assert (place / RECORD).stat().st_mtime_ns == before
    with pytest.raises(UserError, match="not the average of"):
        make_average(earlier, newer, 0.8, place)


def test_models_of_two_kinds(tmp_path: Path) -> None:
    earlier = folder(tmp_path / "earlier", 1.0)
    newer = folder(tmp_path / "newer", 3.0, b=torch.zeros(2))
    with pytest.raises(UserError, match=r"has b, which the earlier model lacks"):
        write_average(model_ref(earlier), model_ref(newer), 0.5, tmp_path / "mean")
    wider = folder(tmp_path / "wider", 1.0, b=torch.zeros(3))
    with pytest.raises(UserError, match=r"b has another shape"):
        write_average(model_ref(wider), model_ref(newer), 0.5, tmp_path / "mean")
    assert not list(tmp_path.glob("*mean*"))
