"""The checks made before serving find what they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metareward.engines.checkpoint import Checkpoint, load
from metareward.engines.engine import EngineError
from metareward.engines.selfcheck import bytes_per_position, check_model, check_rows
from metareward.engines.slot_memory import SlotShape
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
    for shape in (SlotShape(9, 7, 64, 20), SlotShape(64, 1, 96, 5), SlotShape(1, 3, 32, 1)):
        check_rows(checkpoint, shape, width=32, batch=4)


@torch.inference_mode()
def test_a_row_that_depends_on_its_place_is_found(checkpoint: Checkpoint) -> None:
    def nudge(_: Any, __: Any, hidden: Tensor) -> Tensor:
        return hidden * (1 + 1e-6 * torch.arange(len(hidden))[:, None, None])

    checkpoint.model.model.norm.register_forward_hook(nudge)
    with pytest.raises(EngineError, match="depends on its place"):
        check_rows(checkpoint, SlotShape(4, 3, 32, 8), 16, 3)


@torch.inference_mode()
def test_a_row_that_depends_on_its_neighbours_is_found(checkpoint: Checkpoint) -> None:
    def leak(_: Any, __: Any, hidden: Tensor) -> Tensor:
        return hidden + 1e-5 * hidden.mean(dim=0, keepdim=True)

    checkpoint.model.model.norm.register_forward_hook(leak)
    with pytest.raises(EngineError, match="depends on its place"):
        check_rows(checkpoint, SlotShape(4, 3, 32, 8), 16, 3)


@torch.inference_mode()
def test_a_model_that_computes_something_else_in_a_cache_is_found(checkpoint: Checkpoint) -> None:
    def forget_position(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "position_ids": torch.zeros_like(kwargs["position_ids"])}

    checkpoint.model.model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: forget_position(module, args, kwargs) if args[0].shape[1] == 1 else None,
        with_kwargs=True,
    )
    with pytest.raises(UserError, match="logits come out"):
        check_model(checkpoint)


@torch.inference_mode()
def test_bytes_per_position(checkpoint: Checkpoint) -> None:
    layers, keys_and_values, heads, width, float32 = 2, 2, 2, 12, 4
    assert bytes_per_position(checkpoint) == layers * keys_and_values * heads * width * float32
