"""The checks before serving accept sound models and find faults."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from metareward.engines.base import EngineError
from metareward.engines.local.checkpoint import Checkpoint, load
from metareward.engines.local.kv_cache import BucketShape
from metareward.engines.local.selfcheck import bytes_per_position, check_batch_invariance, check_model
from metareward.errors import UserError


@pytest.fixture
def checkpoint(llama: Path) -> Checkpoint:
    return load(llama, "cpu", "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gemma2", "gemma3"])
@torch.inference_mode()
def test_sound_models_pass(kind: str, dtype: str, folders: dict[str, Path]) -> None:
    checkpoint = load(folders[kind], "cpu", dtype)
    check_model(checkpoint)
    for shape in (BucketShape(9, 7, 64, 20), BucketShape(64, 1, 96, 5), BucketShape(1, 3, 32, 1)):
        for compact in (False, True):
            check_batch_invariance(checkpoint, replace(shape, compact=compact), chunk_size=32, batch=4)


@torch.inference_mode()
def test_weights_that_are_no_numbers_are_named(llama: Path, tmp_path: Path, checkpoint: Checkpoint) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "nan"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][3, 2] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError, match=r"model\.safetensors: the weight model\.layers\.1\.mlp\.down_proj\.weight holds"
    ):
        check_model(load(folder, "cpu", "float32"))
    checkpoint.model.model.norm.weight[3] = torch.inf
    with pytest.raises(UserError, match="logits in float32 are NaN or infinite; fix: try"):
        check_model(checkpoint)


@torch.inference_mode()
def test_a_row_that_depends_on_its_slot_is_found(checkpoint: Checkpoint) -> None:
    def nudge(_: Any, __: Any, hidden: Tensor) -> Tensor:
        return hidden * (1 + 1e-6 * torch.arange(len(hidden))[:, None, None])

    checkpoint.model.model.norm.register_forward_hook(nudge)
    with pytest.raises(EngineError, match="depends on its slot"):
        check_batch_invariance(checkpoint, BucketShape(4, 3, 32, 8), 16, 3)


@torch.inference_mode()
def test_a_row_that_depends_on_other_rows_is_found(checkpoint: Checkpoint) -> None:
    def leak(_: Any, __: Any, hidden: Tensor) -> Tensor:
        return hidden + 1e-5 * hidden.mean(dim=0, keepdim=True)

    checkpoint.model.model.norm.register_forward_hook(leak)
    with pytest.raises(EngineError, match="depends on its slot"):
        check_batch_invariance(checkpoint, BucketShape(4, 3, 32, 8), 16, 3)


@pytest.mark.parametrize("count", [8, 16, 24, 32, 40])
@torch.inference_mode()
def test_a_row_that_depends_on_how_many_others_there_are_is_found(checkpoint: Checkpoint, count: int) -> None:
    def nudge(_: Any, __: Any, hidden: Tensor) -> Tensor:
        return hidden * (1 + 1e-6 * (len(hidden) == count))

    shape = BucketShape(14, 3, 32, 8)
    handle = checkpoint.model.model.norm.register_forward_hook(nudge)
    try:
        check_batch_invariance(checkpoint, shape, 16, 3)
        with pytest.raises(EngineError, match="depends on its slot"):
            check_batch_invariance(checkpoint, replace(shape, compact=True), 16, 3)
    finally:
        handle.remove()


@pytest.mark.parametrize("count", [1, 2, 4])
@torch.inference_mode()
def test_a_chunk_that_depends_on_how_many_others_there_are_is_found(checkpoint: Checkpoint, count: int) -> None:
    def nudge(_: Any, __: Any, hidden: Tensor) -> Tensor:
        return hidden * (1 + 1e-6 * (hidden.shape[:2] == (count, 16)))

    checkpoint.model.model.norm.register_forward_hook(nudge)
    check_batch_invariance(checkpoint, BucketShape(14, 3, 32, 8), 16, 6)
    with pytest.raises(EngineError, match="depends on its slot"):
        check_batch_invariance(checkpoint, BucketShape(14, 3, 32, 8, compact=True), 16, 6)


@torch.inference_mode()
def test_a_model_that_computes_something_else_while_decoding_is_found(checkpoint: Checkpoint) -> None:
    def forget_position(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "position_ids": torch.zeros_like(kwargs["position_ids"])}

    checkpoint.model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: forget_position(module, args, kwargs) if args[0].shape[1] == 1 else None,
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="logits differ"):
        check_model(checkpoint)


@torch.inference_mode()
def test_bytes_per_position(checkpoint: Checkpoint) -> None:
    layers, keys_and_values, heads, width, float32 = 2, 2, 2, 12, 4
    assert bytes_per_position(checkpoint) == layers * keys_and_values * heads * width * float32
