"""Shape buckets: their sizes follow from the request, and memory bounds how many are open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metareward.engines.base import EngineError
from metareward.engines.local.checkpoint import Checkpoint, load
from metareward.engines.local.engine import EngineCore
from metareward.types import Completion, Message, Messages, Sampling

Conversation = Callable[[int, int], Messages]


@pytest.fixture(scope="module")
def checkpoint(llama: Path) -> Checkpoint:
    return load(llama, "cpu", "float32")


class Outcomes:
    """Collects the outcomes of requests, by their seed."""

    def __init__(self, core: EngineCore) -> None:
        self.done: dict[int, tuple[Completion, ...]] = {}
        self.failed: dict[int, EngineError] = {}
        self._decoder = core

    def submit(self, messages: Messages, limit: int, n: int, seed: int) -> None:
        self._decoder.submit(
            messages,
            Sampling(1.0, 1.0, limit, seed),
            n,
            lambda completions: self.done.__setitem__(seed, completions),
            lambda error: self.failed.__setitem__(seed, error),
        )


@torch.inference_mode()
def finish(core: EngineCore) -> None:
    while core.run_pass():
        pass


def test_less_memory_changes_no_text(checkpoint: Checkpoint, conversation: Conversation) -> None:
    outcomes = []
    # Eight buckets of up to 12 * (32 + 12) + 32 positions are needed; memory for four such, or for all.
    for memory in (4 * 12 * (32 + 12) * 384, 1 << 30):
        core = EngineCore(checkpoint, max_num_seqs=12, deterministic=True, memory=memory)
        outcome = Outcomes(core)
        with torch.inference_mode():
            for seed in range(24):
                outcome.submit(conversation(seed, 2), (4, 6, 8, 12)[seed % 4], (1, 3)[seed // 4 % 2], seed)
        finish(core)
        outcomes.append(outcome)
    assert len(outcomes[0].done) == 24 and not outcomes[0].failed
    assert outcomes[0].done == outcomes[1].done


@pytest.mark.parametrize("deterministic", [True, False])
@torch.inference_mode()
def test_finished_samples_leave_the_batch(llama: Path, conversation: Conversation, deterministic: bool) -> None:
    checkpoint = load(llama, "cpu", "float32")
    size = checkpoint.model.get_input_embeddings().num_embeddings
    stops = replace(checkpoint, stop_ids=frozenset(range(0, size, 8)))
    rows = list[torch.Size]()
    checkpoint.model.model.norm.register_forward_hook(lambda _, __, hidden: rows.append(hidden.shape[:2]))
    core = EngineCore(stops, max_num_seqs=48, deterministic=deterministic, memory=1 << 30)
    alone, together = Outcomes(core), Outcomes(core)
    for seed in range(4):
        alone.submit(conversation(seed, 2), 24, 12, seed)
        finish(core)
    rows.clear()  # in deterministic mode they were checked until now, too
    for seed in range(4):
        together.submit(conversation(seed, 2), 24, 12, seed)
    finish(core)
    tokens = [completion.tokens for many in together.done.values() for completion in many]
    lengths = {completion.finish for many in together.done.values() for completion in many}
    assert lengths == {"stop", "length"}
    decoded = [count for count, width in rows if width == 1]
    assert set(decoded) >= {8, 16, 24, 32, 40} and all(count % 8 == 0 for count in decoded)
    # A text that stops has generated a stop token more; a step is filled up to a multiple of eight rows.
    assert sum(decoded) < sum(tokens) + len(tokens) + 8 * len(decoded)
    if deterministic:
        assert together.done == alone.done


@pytest.mark.parametrize("n", [1, 5, 11])
@torch.inference_mode()
def test_passes_have_numbers_of_rows_that_were_checked(llama: Path, conversation: Conversation, n: int) -> None:
    checkpoint, rows = load(llama, "cpu", "float32"), list[torch.Size]()
    core = EngineCore(checkpoint, max_num_seqs=44, deterministic=True, memory=1 << 30)
    checkpoint.model.model.norm.register_forward_hook(lambda _, __, hidden: rows.append(hidden.shape[:2]))
    outcome, full = Outcomes(core), 44 // n * n
    outcome.submit(conversation(0, 2), 5, n, 0)
    finish(core)
    checked = set(rows)
    assert {count for count, width in checked if width == 1} == {*range(8, full, 8), full}
    for count in (1, 2, 3, 4):
        rows.clear()
        for seed in range(count):
            outcome.submit(conversation(seed, 2), 5, n, seed)
        finish(core)
        assert set(rows) <= checked


def test_a_bucket_larger_than_the_memory_still_serves(checkpoint: Checkpoint, conversation: Conversation) -> None:
    core = EngineCore(checkpoint, max_num_seqs=12, deterministic=False, memory=1)
    outcome = Outcomes(core)
    with torch.inference_mode():
        for seed in range(6):
            outcome.submit(conversation(seed, 4), 4 + seed, 2, seed)
    finish(core)
    assert len(outcome.done) == 6


@pytest.mark.parametrize(("limit", "n", "text"), [(0, 1, "red"), (4, 0, "red"), (4, 1, "half \ud800 a pair")])
def test_invalid_requests_fail_alone(checkpoint: Checkpoint, limit: int, n: int, text: str) -> None:
    core = EngineCore(checkpoint, max_num_seqs=4, deterministic=False, memory=1 << 30)
    outcome = Outcomes(core)
    outcome.submit((Message("user", text),), limit, n, 1)
    finish(core)
    assert "a request was refused" in str(outcome.failed[1])


def test_more_samples_than_max_num_seqs(checkpoint: Checkpoint, conversation: Conversation) -> None:
    core = EngineCore(checkpoint, max_num_seqs=4, deterministic=True, memory=1 << 30)
    outcome = Outcomes(core)
    with torch.inference_mode():
        outcome.submit(conversation(1, 4), 6, 9, 1)
    finish(core)
    assert len(outcome.done[1]) == 9


def test_fail_all_fails_every_unfinished_request(checkpoint: Checkpoint, conversation: Conversation) -> None:
    core = EngineCore(checkpoint, max_num_seqs=7, deterministic=True, memory=1 << 30)
    outcome = Outcomes(core)
    with torch.inference_mode():
        for seed in range(5):
            outcome.submit(conversation(seed, 4), 40, 7, seed)
        for _ in range(3):
            core.run_pass()
        outcome.submit((Message("user", "late"),), 40, 7, 5)
    core.fail_all(EngineError("over"))
    assert outcome.done.keys() | outcome.failed.keys() == set(range(6)) and outcome.failed.keys() >= {4, 5}
