"""Common prefixes of prompts are prefilled once, which changes no result."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metareward.engines.local.checkpoint import Checkpoint, load
from metareward.engines.local.kv_cache import BucketShape
from metareward.engines.local.model_runner import ModelRunner
from metareward.engines.local.scheduler import Prefiller

CHUNK_SIZE, BATCH = 8, 6
SHAPE = BucketShape(slots=5, samples=2, prompt=64, suffix=4)
HEAD = list(range(50, 80))


@pytest.fixture(scope="module")
def checkpoint(llama: Path) -> Checkpoint:
    return load(llama, "cpu", "float32")


def fresh(checkpoint: Checkpoint) -> Prefiller:
    return Prefiller(ModelRunner(checkpoint, SHAPE, CHUNK_SIZE))


@torch.inference_mode()
def prefill_all(prefiller: Prefiller) -> tuple[dict[int, Tensor], int]:
    """The logits of every slot once its prompt is prefilled, and the number of passes."""
    logits: dict[int, Tensor] = {}
    passes = 0
    while prefiller.remaining_chunks:
        logits_BV, complete = prefiller.run((BATCH,))
        passes += 1
        logits.update({slot: logits_BV[row] for slot, row in complete.items()})
    return logits, passes


def alone(checkpoint: Checkpoint, prompt: list[int]) -> Tensor:
    prefiller = fresh(checkpoint)
    prefiller.add(3, prompt)
    return prefill_all(prefiller)[0][3]


def test_a_common_prefix_is_prefilled_once(checkpoint: Checkpoint) -> None:
    prefiller = fresh(checkpoint)
    prompts = [[*HEAD, 100 + slot, 7, 8] for slot in range(5)]
    for slot, prompt in enumerate(prompts):
        prefiller.add(slot, prompt)
    assert prefiller.remaining_chunks == 25
    logits, passes = prefill_all(prefiller)
    # The first prompt takes 5 chunks. The others wait for it and need 2 each, the first of which no two share.
    assert passes == 3
    assert all(torch.equal(logits[slot], alone(checkpoint, prompt)) for slot, prompt in enumerate(prompts))


def test_the_same_prompt_again_needs_only_its_last_chunk(checkpoint: Checkpoint) -> None:
    prefiller = fresh(checkpoint)
    prompt = HEAD[:24]
    prefiller.add(0, prompt)
    first, _ = prefill_all(prefiller)
    for slot in (1, 2, 3, 4):
        prefiller.add(slot, prompt)
    again, passes = prefill_all(prefiller)
    assert passes == 1
    assert all(torch.equal(again[slot], first[0]) for slot in again) and len(again) == 4


def test_a_refilled_slot_no_longer_serves_its_old_prompt(checkpoint: Checkpoint) -> None:
    prefiller = fresh(checkpoint)
    prefiller.add(0, HEAD)
    prefill_all(prefiller)
    prefiller.add(0, list(range(120, 150)))
    prefill_all(prefiller)
    prefiller.add(1, HEAD)
    logits, _ = prefill_all(prefiller)
    assert torch.equal(logits[1], alone(checkpoint, HEAD))


def test_a_refilled_slot_keeps_the_common_prefix_and_serves_it_to_others(checkpoint: Checkpoint) -> None:
    prefiller = fresh(checkpoint)
    prefiller.add(0, [*HEAD, 100])
    prefill_all(prefiller)
    prompt = [*HEAD, 101, 102]
    prefiller.add(0, prompt)
    # 24 of its 32 tokens are whole chunks that the slot held already.
    assert prefiller.remaining_chunks == 1
    prefiller.add(1, prompt)
    logits, passes = prefill_all(prefiller)
    assert passes == 1
    assert all(torch.equal(each, alone(checkpoint, prompt)) for each in logits.values()) and len(logits) == 2


@pytest.mark.parametrize("seed", range(4))
def test_any_history_gives_the_same_bits_as_a_new_prefiller(checkpoint: Checkpoint, seed: int) -> None:
    chance = random.Random(seed)
    prefiller = fresh(checkpoint)
    for _ in range(12):
        prompts = {
            slot: HEAD[: chance.randrange(0, 30)] + [chance.randrange(50, 54) for _ in range(chance.randrange(1, 34))]
            for slot in chance.sample(range(5), chance.randrange(1, 6))
        }
        for slot, prompt in prompts.items():
            prefiller.add(slot, prompt)
        logits, _ = prefill_all(prefiller)
        slot = chance.choice(list(prompts))
        assert torch.equal(logits[slot], alone(checkpoint, prompts[slot]))
