"""One class of requests and its slots: as a request finishes, the next one takes its slot.

In deterministic mode every pass has the class's full shape, absent prompts and empty slots included, so a
row's arithmetic does not depend on its neighbours, and neither do its tokens. Otherwise a pass covers only what
is in use.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np

from metareward.engines.checkpoint import Checkpoint
from metareward.engines.engine import EngineError
from metareward.engines.seats import Request, Seats
from metareward.engines.shared_prefix import SlotShape
from metareward.engines.slots import Slots

_TRIM = 16


class Lane:
    """Requests of one class, waiting or in a slot. ``prefill_tokens`` bounds the size of a prefill."""

    def __init__(self, checkpoint: Checkpoint, shape: SlotShape, prefill_tokens: int, deterministic: bool) -> None:
        self.shape = shape
        self._slots = Slots(checkpoint, shape)
        self._seats = Seats(checkpoint, shape)
        self._prefill_tokens = prefill_tokens
        self._fixed = deterministic
        self._waiting: dict[int, deque[Request]] = {}

    def add(self, request: Request, columns: int) -> None:
        """Let the request wait for a slot; its prompt will be read at a width of ``columns``."""
        self._waiting.setdefault(columns, deque()).append(request)

    @property
    def fill(self) -> float:
        """Share of the slots that are taken or could be taken at once; 0 when there is nothing to do."""
        waiting = sum(map(len, self._waiting.values()))
        return min(1.0, (len(self._seats.requests) + waiting) / self.shape.slots)

    def abandon(self, error: EngineError) -> None:
        """Fail every request that is not finished; the lane is of no use afterwards."""
        for request in (*self._seats.requests.values(), *(each for queue in self._waiting.values() for each in queue)):
            request.fail(error)

    def advance(self) -> None:
        """Run one pass: a prefill if enough requests wait for it or half the slots are free, else a step."""
        free = self.shape.slots - len(self._seats.requests)
        columns = max(self._waiting, key=lambda width: len(self._waiting[width]), default=0)
        ready = min(free, len(self._waiting[columns])) if columns else 0
        if ready and (ready >= self._batch(columns) or 2 * free >= self.shape.slots):
            self._prefill(columns)
        else:
            self._step()

    def _batch(self, columns: int) -> int:
        return prefill_batch(self.shape, columns, self._prefill_tokens)

    def _prefill(self, columns: int) -> None:
        """Seat waiting requests and draw their first tokens."""
        queue, batch = self._waiting[columns], self._batch(columns)
        slots = self._seats.free[: min(batch, len(queue))]
        for slot in slots:
            self._seats.seat(slot, queue.popleft())
        if not queue:
            del self._waiting[columns]
        prompts = [self._seats.requests[slot].ids for slot in slots]
        logits_BV = self._slots.prefill(prompts, slots, columns, batch if self._fixed else len(slots))
        # Padding rows draw too, to keep the shape; whose settings they take does not matter.
        padded = np.array(slots + slots[:1] * (len(logits_BV) - len(slots)))
        tokens_R = self._seats.draw(logits_BV.repeat_interleave(self.shape.samples, dim=0), padded)
        self._seats.record(padded[: len(slots)], tokens_R[: len(slots) * self.shape.samples])

    def _step(self) -> None:
        """Give every request in a slot one more token per sample."""
        seats, used = self._seats, self.shape if self._fixed else self._in_use()
        logits_RV = self._slots.step(seats.tokens_R, seats.lengths_G, np.maximum(seats.counts_G - 1, 0), used)
        tokens_R = seats.draw(logits_RV, np.arange(used.slots))
        taken = seats.taken
        seats.record(taken, tokens_R.reshape(used.slots, -1)[taken].ravel())

    def _in_use(self) -> SlotShape:
        taken = self._seats.taken
        prompt = _trimmed(int(self._seats.lengths_G[taken].max()), self.shape.prompt)
        suffix = _trimmed(int(self._seats.counts_G[taken].max()), self.shape.suffix)
        return replace(self.shape, slots=int(taken[-1]) + 1, prompt=prompt, suffix=suffix)


def prefill_batch(shape: SlotShape, columns: int, prefill_tokens: int) -> int:
    """Prompts in a prefill of this width: about ``prefill_tokens`` tokens, and no more prompts than slots."""
    return max(1, min(prefill_tokens // columns, shape.slots))


def _trimmed(length: int, limit: int) -> int:
    return min(limit, -(-length // _TRIM) * _TRIM)
