"""Who sits in which slot: the sampling, the tokens written so far and the end of every row, on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metareward.engines.alternatives import MAX_TOP_LOGPROBS, Notes
from metareward.engines.checkpoint import Checkpoint
from metareward.engines.engine import EngineError
from metareward.engines.sampler import Draws, sample
from metareward.engines.slot_memory import Ints, SlotShape
from metareward.types import Completion, Sampling


@dataclass(frozen=True, slots=True)
class Request:
    """Draw ``n`` completions of a tokenised prompt; exactly one of ``deliver`` and ``fail`` will be called."""

    ids: tuple[int, ...]
    sampling: Sampling
    n: int
    deliver: Callable[[tuple[Completion, ...]], None]
    fail: Callable[[EngineError], None]


class Seats:
    """The requests in the slots of one lane. Rows ``slot * n`` to ``slot * n + n - 1`` are a slot's samples."""

    def __init__(self, checkpoint: Checkpoint, shape: SlotShape) -> None:
        self.requests: dict[int, Request] = {}
        self.lengths_G = np.zeros(shape.slots, np.int64)
        self.counts_G = np.zeros(shape.slots, np.int64)
        self.tokens_R = np.zeros(shape.rows, np.int64)
        self._checkpoint = checkpoint
        self._shape = shape
        self._stop_ids = np.array(sorted(checkpoint.stop_ids), np.int64)
        self._temperature_R = np.ones(shape.rows, np.float32)
        self._top_p_R = np.ones(shape.rows, np.float32)
        self._seeds_R = np.zeros(shape.rows, np.uint64)
        self._samples_R = np.tile(np.arange(shape.samples, dtype=np.uint64), shape.slots)
        self._written_RT = np.zeros((shape.rows, shape.suffix), np.int64)
        self._ends_R = np.full(shape.rows, -1, np.int64)
        self._wanted_G = np.zeros(shape.slots, np.int64)
        self._notes: Notes | None = None

    @property
    def free(self) -> list[int]:
        """Slots with no request, lowest first."""
        return [slot for slot in range(self._shape.slots) if slot not in self.requests]

    @property
    def running(self) -> Ints:
        """Slots whose request has drawn its first tokens, lowest first."""
        return self.counts_G.nonzero()[0]

    def seat(self, slot: int, request: Request) -> None:
        """Give a free slot to a request."""
        rows = self._rows(np.array([slot]))
        self.requests[slot] = request
        self.lengths_G[slot], self.counts_G[slot] = len(request.ids), 0
        self._temperature_R[rows] = request.sampling.temperature
        self._top_p_R[rows] = request.sampling.top_p
        self._seeds_R[rows] = np.uint64(request.sampling.seed & (2**64 - 1))
        self._ends_R[rows] = -1
        self._wanted_G[slot] = request.sampling.top_logprobs
        if request.sampling.top_logprobs and self._notes is None:
            self._notes = Notes(self._shape.rows, self._shape.suffix, MAX_TOP_LOGPROBS)

    def draw(self, logits_RV: Tensor, slots_B: Ints) -> Ints:
        """Draw the next token of every row of these slots, with a request or without, from its logits."""
        rows = self._rows(slots_B)
        steps = np.repeat(self.counts_G[slots_B], self._shape.samples).astype(np.uint64)
        if self._notes is not None:
            asked = np.repeat(self._wanted_G[slots_B] > 0, self._shape.samples)
            self._notes.take(logits_RV[torch.from_numpy(asked)], rows[asked], steps[asked].astype(np.int64))
        draws = Draws(self._seeds_R[rows], self._samples_R[rows], steps)
        tokens: Ints = sample(logits_RV, self._temperature_R[rows], self._top_p_R[rows], draws).cpu().numpy()
        return tokens

    def record(self, slots_B: Ints, tokens_R: Ints) -> None:
        """Append the drawn tokens to the rows of these taken slots; deliver and free the slots that are done."""
        rows, place = self._rows(slots_B), np.repeat(self.counts_G[slots_B], self._shape.samples)
        self.tokens_R[rows] = tokens_R
        self._written_RT[rows, place] = tokens_R
        stops = np.isin(tokens_R, self._stop_ids) & (self._ends_R[rows] < 0)
        self._ends_R[rows[stops]] = place[stops]
        self.counts_G[slots_B] += 1
        stopped = (self._ends_R[rows] >= 0).reshape(-1, self._shape.samples).all(axis=1)
        for slot in slots_B[stopped | (self.counts_G[slots_B] >= self._shape.suffix)]:
            self._finish(int(slot))

    def _finish(self, slot: int) -> None:
        request = self.requests.pop(slot)
        self.lengths_G[slot] = self.counts_G[slot] = self._wanted_G[slot] = 0
        most = request.sampling.top_logprobs
        request.deliver(tuple(self._completion(int(row), most) for row in self._rows(np.array([slot]))))

    def _completion(self, row: int, top_logprobs: int) -> Completion:
        end, decode = int(self._ends_R[row]), self._checkpoint.decode
        ids = self._written_RT[row, : end if end >= 0 else None].tolist()
        steps = self._notes.steps(row, ids, top_logprobs, decode) if self._notes and top_logprobs else ()
        return Completion(decode(ids), "stop" if end >= 0 else "length", len(ids), steps)

    def _rows(self, slots_B: Ints) -> Ints:
        rows: Ints = (slots_B[:, None] * self._shape.samples + np.arange(self._shape.samples)).ravel()
        return rows
