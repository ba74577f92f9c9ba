"""Prompts that begin alike are read once, and it can't be told from the result."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from metareward.engines.checkpoint import Checkpoint, load
from metareward.engines.reader import Reader
from metareward.engines.slot_memory import SlotShape
from metareward.engines.slots import Slots

WIDTH, BATCH = 8, 6
SHAPE = SlotShape(slots=5, samples=2, prompt=64, suffix=4)
HEAD = list(range(50, 80))


@pytest.fixture(scope="module")
def checkpoint(llama: Path) -> Checkpoint:
    return load(llama, "cpu", "float32")


def fresh(checkpoint: Checkpoint) -> Reader:
    return Reader(Slots(checkpoint, SHAPE, WIDTH))


@torch.inference_mode()
def read_all(reader: Reader) -> tuple[dict[int, Tensor], int]:
    """The logits of every slot once its prompt is read, and the number of passes."""
    logits: dict[int, Tensor] = {}
    passes = 0
    while reader.pieces:
        logits_BV, complete = reader.read(BATCH, padded=True)
        passes += 1
        logits.update({slot: logits_BV[row] for slot, row in complete.items()})
    return logits, passes


def alone(checkpoint: Checkpoint, prompt: list[int]) -> Tensor:
    reader = fresh(checkpoint)
    reader.add(3, prompt)
    return read_all(reader)[0][3]


def test_a_shared_beginning_is_read_once(checkpoint: Checkpoint) -> None:
    reader = fresh(checkpoint)
    prompts = [[*HEAD, 100 + slot, 7, 8] for slot in range(5)]
    for slot, prompt in enumerate(prompts):
        reader.add(slot, prompt)
    assert reader.pieces == 25
    logits, passes = read_all(reader)
    # The first prompt takes 5 pieces. The others wait for it, and need 2 each, of which the first is shared by none.
    assert passes == 3
    assert all(torch.equal(logits[slot], alone(checkpoint, prompt)) for slot, prompt in enumerate(prompts))


def test_the_same_prompt_again_needs_its_last_piece_only(checkpoint: Checkpoint) -> None:
    reader = fresh(checkpoint)
    prompt = HEAD[:24]
    reader.add(0, prompt)
    first, _ = read_all(reader)
    for slot in (1, 2, 3, 4):
        reader.add(slot, prompt)
    again, passes = read_all(reader)
    assert passes == 1
    assert all(torch.equal(again[slot], first[0]) for slot in again) and len(again) == 4


def test_what_a_refilled_slot_held_is_forgotten(checkpoint: Checkpoint) -> None:
    reader = fresh(checkpoint)
    reader.add(0, HEAD)
    read_all(reader)
    reader.add(0, list(range(120, 150)))
    read_all(reader)
    reader.add(1, HEAD)
    logits, _ = read_all(reader)
    assert torch.equal(logits[1], alone(checkpoint, HEAD))


def test_a_refilled_slot_keeps_the_beginning_it_shares_and_so_do_others_of_it(checkpoint: Checkpoint) -> None:
    reader = fresh(checkpoint)
    reader.add(0, [*HEAD, 100])
    read_all(reader)
    prompt = [*HEAD, 101, 102]
    reader.add(0, prompt)
    # 24 of its 32 tokens are whole pieces that the slot held already.
    assert reader.pieces == 1
    reader.add(1, prompt)
    logits, passes = read_all(reader)
    assert passes == 1
    assert all(torch.equal(each, alone(checkpoint, prompt)) for each in logits.values()) and len(logits) == 2


@pytest.mark.parametrize("seed", range(4))
def test_any_history_gives_the_bits_of_a_fresh_start(checkpoint: Checkpoint, seed: int) -> None:
    chance = random.Random(seed)
    reader = fresh(checkpoint)
    for _ in range(12):
        prompts = {
            slot: HEAD[: chance.randrange(0, 30)] + [chance.randrange(50, 54) for _ in range(chance.randrange(1, 34))]
            for slot in chance.sample(range(5), chance.randrange(1, 6))
        }
        for slot, prompt in prompts.items():
            reader.add(slot, prompt)
        logits, _ = read_all(reader)
        slot = chance.choice(list(prompts))
        assert torch.equal(logits[slot], alone(checkpoint, prompts[slot]))
