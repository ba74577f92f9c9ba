"""Lanes: their sizes follow from the request, and memory bounds how many are open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metareward.engines.checkpoint import Checkpoint, load
from metareward.engines.decoder import Decoder
from metareward.engines.engine import EngineError
from metareward.types import Completion, Message, Messages, Sampling

Conversation = Callable[[int, int], Messages]


@pytest.fixture(scope="module")
def checkpoint(llama: Path) -> Checkpoint:
    return load(llama, "cpu", "float32")


class Outcomes:
    """Collects what becomes of requests, by their seed."""

    def __init__(self, decoder: Decoder) -> None:
        self.done: dict[int, tuple[Completion, ...]] = {}
        self.failed: dict[int, EngineError] = {}
        self._decoder = decoder

    def submit(self, messages: Messages, limit: int, n: int, seed: int) -> None:
        self._decoder.submit(
            messages,
            Sampling(1.0, 1.0, limit, seed),
            n,
            lambda completions: self.done.__setitem__(seed, completions),
            lambda error: self.failed.__setitem__(seed, error),
        )


@torch.inference_mode()
def finish(decoder: Decoder) -> None:
    while decoder.advance():
        pass


def test_little_memory_changes_no_shape_that_fits(checkpoint: Checkpoint, conversation: Conversation) -> None:
    outcomes = []
    # Eight lanes of up to 12 * (32 + 12) + 32 positions are asked for; room for four such, or for all.
    for memory in (4 * 12 * (32 + 12) * 384, 1 << 30):
        decoder = Decoder(checkpoint, rows=12, deterministic=True, memory=memory)
        outcome = Outcomes(decoder)
        with torch.inference_mode():
            for seed in range(24):
                outcome.submit(conversation(seed, 2), (4, 6, 8, 12)[seed % 4], (1, 3)[seed // 4 % 2], seed)
        finish(decoder)
        outcomes.append(outcome)
    assert len(outcomes[0].done) == 24 and not outcomes[0].failed
    assert outcomes[0].done == outcomes[1].done


def test_a_lane_larger_than_the_memory_still_serves(checkpoint: Checkpoint, conversation: Conversation) -> None:
    decoder = Decoder(checkpoint, rows=12, deterministic=False, memory=1)
    outcome = Outcomes(decoder)
    with torch.inference_mode():
        for seed in range(6):
            outcome.submit(conversation(seed, 4), 4 + seed, 2, seed)
    finish(decoder)
    assert len(outcome.done) == 6


@pytest.mark.parametrize(("limit", "n", "text"), [(0, 1, "red"), (4, 0, "red"), (4, 1, "half \ud800 a pair")])
def test_senseless_requests_fail_alone(checkpoint: Checkpoint, limit: int, n: int, text: str) -> None:
    decoder = Decoder(checkpoint, rows=4, deterministic=False, memory=1 << 30)
    outcome = Outcomes(decoder)
    outcome.submit((Message("user", text),), limit, n, 1)
    finish(decoder)
    assert "a request was refused" in str(outcome.failed[1])


def test_more_samples_than_rows(checkpoint: Checkpoint, conversation: Conversation) -> None:
    decoder = Decoder(checkpoint, rows=4, deterministic=True, memory=1 << 30)
    outcome = Outcomes(decoder)
    with torch.inference_mode():
        outcome.submit(conversation(1, 4), 6, 9, 1)
    finish(decoder)
    assert len(outcome.done[1]) == 9


def test_abandon_fails_everything_unfinished(checkpoint: Checkpoint, conversation: Conversation) -> None:
    decoder = Decoder(checkpoint, rows=7, deterministic=True, memory=1 << 30)
    outcome = Outcomes(decoder)
    with torch.inference_mode():
        for seed in range(5):
            outcome.submit(conversation(seed, 4), 40, 7, seed)
        for _ in range(3):
            decoder.advance()
        outcome.submit((Message("user", "late"),), 40, 7, 5)
    decoder.abandon(EngineError("over"))
    assert outcome.done.keys() | outcome.failed.keys() == set(range(6)) and outcome.failed.keys() >= {4, 5}
