from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from training_world import save_model
from transformers import AutoModelForCausalLM

from metareward.training.config import Sharding
from metareward.training.memory import MemorySpec, ModelSize, adapter_weights, host_bytes, model_size, training_bytes

# Llama-3-8B's published shape.
LARGE = ModelSize(weights=8_030_261_248, layers=32, hidden=4096, vocabulary=128_256)
NOTHING = MemorySpec(tokens=0, completion_tokens=0)
GIB = 2**30


def test_the_size_is_read_from_the_folder(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "M0")
    model = AutoModelForCausalLM.from_pretrained(folder)
    size = model_size(folder)
    assert size is not None
    assert (size.weights, size.layers, size.hidden) == (model.num_parameters(), 2, 32)
    assert model_size(tmp_path) is None


def test_weights_gradients_and_averages_are_sixteen_bytes() -> None:
    alone = replace(NOTHING, separate_reference=False)
    assert training_bytes(LARGE, alone) == 16 * LARGE.weights
    assert training_bytes(LARGE, NOTHING) == 20 * LARGE.weights  # and the reference, in float32


@pytest.mark.parametrize(("sharding", "bytes_each"), [("ddp", 20), ("zero2", 8 + 12 / 4), ("zero3", 5), ("fsdp2", 5)])
def test_what_is_shared_out_among_four(sharding: Sharding, bytes_each: float) -> None:
    shared = replace(NOTHING, num_processes=4, sharding=sharding)
    assert training_bytes(LARGE, shared) == pytest.approx(bytes_each * LARGE.weights)


def test_the_host_has_each_process_s_copies_unless_they_are_loaded_in_parts() -> None:
    eight = replace(NOTHING, num_processes=8)
    assert host_bytes(LARGE, eight) == 8 * 2 * 4 * LARGE.weights  # 514 GB: policy and reference, float32
    assert host_bytes(LARGE, replace(eight, sharding="fsdp2", loaded_in_parts=True)) == 4 * LARGE.weights
    assert host_bytes(LARGE, replace(NOTHING, lora_r=16, separate_reference=False)) == 8 * LARGE.weights  # merging


def test_adapters_need_little_more_than_the_base() -> None:
    lora = replace(NOTHING, lora_r=16, separate_reference=False)
    trained = adapter_weights(LARGE, 16)
    assert 0.004 < trained / LARGE.weights < 0.01  # PEFT's count for all linear layers of this model: 0.52 %
    assert training_bytes(LARGE, lora) == 2 * LARGE.weights + 16 * trained
    assert training_bytes(LARGE, replace(lora, four_bit=True)) < 6 * GIB


def test_computing_grows_with_tokens_and_shrinks_with_checkpoints() -> None:
    whole = MemorySpec(tokens=4096, completion_tokens=1024)
    plain = training_bytes(LARGE, whole) - training_bytes(LARGE, NOTHING)
    checked = training_bytes(LARGE, replace(whole, gradient_checkpointing=True)) - training_bytes(LARGE, NOTHING)
    assert plain == 4096 * 4096 * 32 * 34 + 1024 * 128_256 * 12
    assert checked < plain / 5
