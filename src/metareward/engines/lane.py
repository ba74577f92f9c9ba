"""One class of requests and its slots: as a request finishes, the next one takes its slot.

In deterministic mode every pass has the class's full shape, absent pieces and empty slots included, so a row's
arithmetic does not depend on its neighbours, and neither do its tokens. Only columns that nobody has come to are left
out, as a sum with zeros at its end stays the same. Otherwise a pass covers only what is in use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from metareward.engines.checkpoint import Checkpoint
from metareward.engines.engine import EngineError
from metareward.engines.reader import Reader
from metareward.engines.seats import Request, Seats
from metareward.engines.slot_memory import Ints, SlotShape
from metareward.engines.slots import Slots
from metareward.engines.trunk import Trunks

# A pass that reads only what there is still has a cost that doesn't depend on how much: about this part of a step.
_SMALL_PASS = 8


class Lane:
    """Requests of one class, waiting or in a slot. Prompts are read ``batch`` pieces of ``width`` tokens at a time."""

    def __init__(
        self, checkpoint: Checkpoint, shape: SlotShape, *, width: int, batch: int, deterministic: bool
    ) -> None:
        self.shape = shape
        self._slots = Slots(checkpoint, shape, width)
        self._reader = Reader(self._slots)
        self._seats = Seats(checkpoint, shape)
        self._batch = batch
        self._fixed = deterministic
        self._waiting: deque[Request] = deque()
        self._missed = 0

    def add(self, request: Request) -> None:
        """Let the request wait for a slot."""
        self._waiting.append(request)

    @property
    def fill(self) -> float:
        """Share of the slots that are taken or could be taken at once; 0 when there is nothing to do."""
        return min(1.0, (len(self._seats.requests) + len(self._waiting)) / self.shape.slots)

    def abandon(self, error: EngineError) -> None:
        """Fail every request that is not finished; the lane is of no use afterwards."""
        for request in (*self._seats.requests.values(), *self._waiting):
            request.fail(error)

    def advance(self) -> None:
        """Run one pass: read prompts if they fill a pass or have waited for long enough; else step."""
        for slot in self._seats.free[: len(self._waiting)]:
            request = self._waiting.popleft()
            self._seats.seat(slot, request)
            self._reader.add(slot, request.ids)
        pieces, running = self._reader.pieces, self._seats.running
        if pieces and (not len(running) or self._missed >= self._waste(pieces)):
            self._missed = 0
            self._read()
        else:
            # Where nobody else waits for a slot, those who are not read yet may prolong the lane by all their steps.
            late = len(self._seats.requests) - len(running) if self._waiting else self.shape.slots
            self._missed += late * self.shape.samples
            self._step(running)

    def _waste(self, pieces: int) -> int:
        """What a pass of so few pieces costs for nothing, in tokens; as many may be missed while more is waited for."""
        if pieces >= self._batch:
            return 0
        return (self._batch - pieces) * self._slots.width if self._fixed else self.shape.rows // _SMALL_PASS

    def _read(self) -> None:
        """Read pieces of prompts, and draw the first tokens of the prompts they complete."""
        logits_BV, complete = self._reader.read(self._batch, padded=self._fixed)
        if not complete:
            return
        slots, rows = np.array(list(complete)), np.array(list(complete.values()))
        if self._fixed:
            # Drawn again and again to keep the shape; what comes after the first round is dropped.
            slots, rows = np.resize(slots, self._batch), np.resize(rows, self._batch)
        logits_RV = logits_BV[rows].repeat_interleave(self.shape.samples, dim=0)
        tokens_R = self._seats.draw(logits_RV, slots)
        self._seats.record(slots[: len(complete)], tokens_R[: len(complete) * self.shape.samples])

    def _step(self, running: Ints) -> None:
        """Give every request whose prompt is read one more token per sample."""
        seats, steps_G = self._seats, np.maximum(self._seats.counts_G - 1, 0)
        slots, digest = running.tolist(), self._reader.digest
        used, trunks = self._in_use(running, [{slot: digest(slot, cut) for slot in slots} for cut in self.shape.cuts])
        logits_RV = self._slots.step(seats.tokens_R, seats.lengths_G, steps_G, used, trunks)
        tokens_R = seats.draw(logits_RV, np.arange(used.slots))
        seats.record(running, tokens_R.reshape(used.slots, -1)[running].ravel())

    def _in_use(self, running: Ints, trunks: Sequence[Trunks]) -> tuple[SlotShape, Sequence[Trunks]]:
        """What of the shape there is work for, and the trunks up to the cuts that stay."""
        lengths, counts = self._seats.lengths_G[running], self._seats.counts_G[running]
        used = self.shape.trimmed(int(lengths.max()), int(counts.max()))
        if self._fixed:
            return used, trunks
        # What hardly anybody shares is read sooner with the rest.
        shared = sum(2 * len(set(keys.values())) <= len(keys) for keys in trunks)
        return replace(used, slots=int(running[-1]) + 1, cuts=used.cuts[:shared]), trunks[:shared]
