"""Requests of every kind on one model: each goes to the lane of its class, and the fullest lane runs next.

A request's class, and so the shape of all arithmetic done for it, follows from the request and the engine's
settings alone: its samples, its token limit, and its prompt's length rounded up to a size on a grid.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jinja2 import TemplateError

from metareward.engines.checkpoint import Checkpoint
from metareward.engines.engine import EngineError
from metareward.engines.lane import Lane
from metareward.engines.seats import Request
from metareward.engines.selfcheck import bytes_per_position, check_rows
from metareward.engines.slot_memory import SlotShape
from metareward.types import Completion, Messages, Sampling

_LOG = logging.getLogger(__name__)

# Tokens to a piece of a prompt, and pieces read in one pass.
_READ_SIZE = {"cpu": (32, 24), "mps": (64, 32), "cuda": (64, 64)}
_LANES_AT_ONCE = 2
# In columns: those a step looks at are a multiple of it.
_TRIM = 32
# In tokens: prompts in classes below it have no cuts.
_LEAST_WITH_CUTS = 256


class Decoder:
    """Draws completions on one device, one pass at a time. Not for several threads at once."""

    def __init__(self, checkpoint: Checkpoint, *, rows: int, deterministic: bool, memory: int) -> None:
        """``rows`` sequences advance together, all samples counted; ``memory``: bytes for keys and values."""
        self._checkpoint = checkpoint
        self._rows = rows
        self._deterministic = deterministic
        self._lanes: dict[SlotShape, Lane] = {}
        self._checked: set[SlotShape] = set()
        self._uneven: set[SlotShape] = set()
        self._parked: deque[Request] = deque()
        self._bytes = bytes_per_position(checkpoint)
        self._read_size = _READ_SIZE[checkpoint.device.type]
        # On other devices how a sum is rounded may depend on how many columns there are.
        self._trim = 0 if deterministic and checkpoint.device.type != "cpu" else _TRIM
        self._budget = memory

    def submit(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        deliver: Callable[[tuple[Completion, ...]], None],
        fail: Callable[[EngineError], None],
    ) -> None:
        """Take on a request; one of ``deliver`` and ``fail`` is called during this or a later call."""
        try:
            ids = tuple(self._checkpoint.encode(messages))
            require_room(ids, sampling, n, self._checkpoint.context)
        except (EngineError, TemplateError, UnicodeEncodeError) as error:
            fail(EngineError(f"{self._checkpoint.folder}: a request was refused: {error}"))
        else:
            self._parked.append(Request(ids, sampling, n, deliver, fail))

    def advance(self) -> bool:
        """Run one pass of the lane with the fewest empty slots. False when there is nothing to do."""
        self._place_parked()
        lane = max(self._lanes.values(), key=lambda lane: lane.fill, default=None)
        if lane is None or not lane.fill:
            return False
        # The lane goes to the end, so that lanes that are equally full take turns.
        self._lanes[lane.shape] = self._lanes.pop(lane.shape)
        try:
            lane.advance()
        except RuntimeError as error:
            # Out of memory, mostly: this lane is lost, and giving it up frees its memory for the others.
            del self._lanes[lane.shape]
            lane.abandon(EngineError(f"{self._checkpoint.folder}: {' '.join(str(error).split())[:300]}"))
        return True

    def abandon(self, error: EngineError) -> None:
        """Fail every request that is not finished."""
        for request in self._parked:
            request.fail(error)
        for lane in self._lanes.values():
            lane.abandon(error)

    def _place_parked(self) -> None:
        for _ in range(len(self._parked)):
            request = self._parked.popleft()
            shape = self._shape(request)
            if shape not in self._lanes and not self._room(shape):
                self._parked.append(request)
                continue
            try:
                self._lane(shape).add(request)
            except EngineError as error:
                request.fail(error)

    def _shape(self, request: Request) -> SlotShape:
        n, prompt, suffix = request.n, _grid(len(request.ids)), request.sampling.max_tokens
        slot_bytes = self._bytes * (prompt + n * suffix)
        slots = min(self._rows // n, self._budget // _LANES_AT_ONCE // slot_bytes)
        shape = SlotShape(max(1, slots), n, prompt, suffix, self._cuts(n, prompt), self._trim)
        return _simple(shape) if shape in self._uneven else shape

    def _cuts(self, n: int, prompt: int) -> tuple[int, ...]:
        """Half a prompt, as long ones are judges' and meta-judges', which begin alike; of lone samples more.

        Lone samples are meta-judgments, of which some have the first judgment in common as well.
        """
        # Elsewhere launching products for every family costs more than it saves.
        if prompt < _LEAST_WITH_CUTS or self._checkpoint.device.type != "cpu":
            return ()
        piece, eighths = self._read_size[0], (4, 5, 6) if n == 1 else (4,)
        return tuple(prompt * eighth // 8 // piece * piece for eighth in eighths)

    def _room(self, shape: SlotShape) -> bool:
        """Make room for a lane of this shape, by closing idle ones if need be; alone, a lane always has room."""
        needed = shape.positions * self._bytes
        for other in [lane.shape for lane in self._lanes.values() if not lane.fill]:
            if needed + self._held() > self._budget:
                del self._lanes[other]
        return not self._lanes or needed + self._held() <= self._budget

    def _lane(self, shape: SlotShape) -> Lane:
        if shape not in self._lanes:
            width, most = self._read_size
            batch = min(most, shape.slots * -(-shape.prompt // width))
            if self._deterministic and shape not in self._checked and not self._even(shape, width, batch):
                return self._lane(_simple(shape))
            self._lanes[shape] = Lane(
                self._checkpoint, shape, width=width, batch=batch, deterministic=self._deterministic
            )
        return self._lanes[shape]

    def _even(self, shape: SlotShape, width: int, batch: int) -> bool:
        """Whether results don't depend on the company. Raises `EngineError` if they do though the shape is simple."""
        try:
            check_rows(self._checkpoint, shape, width, batch)
        except EngineError:
            if shape == _simple(shape):
                raise
            if not self._uneven:
                _LOG.warning(
                    "%s: on %s in %s texts would depend on what else is in the batch if prompts shared what they have "
                    "in common, so they don't, which is slower; engine.deterministic false or another dtype lets them",
                    *(self._checkpoint.folder, self._checkpoint.device, self._checkpoint.dtype),
                )
            self._uneven.add(shape)
            return False
        self._checked.add(shape)
        return True

    def _held(self) -> int:
        return sum(shape.positions for shape in self._lanes) * self._bytes


def _simple(shape: SlotShape) -> SlotShape:
    """Without what makes arithmetic depend on the company where kernels are not as even as they mostly are."""
    return replace(shape, cuts=(), trim=0)


def _grid(length: int) -> int:
    """``length`` rounded up: to a multiple of 32, above 128 of 64, above 512 to one of four sizes to a power of two."""
    power = 1 << (length - 1).bit_length()
    step = max(32, min(64, power // 4), power // 8)
    return -(-length // step) * step


def slot_memory(device: torch.device) -> int:
    """Bytes that keys and values may take: a share of what the device has, free or not, as shapes follow from it."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return max(total // 8, int(total * 0.8) - torch.cuda.memory_allocated(device))
    cores = os.cpu_count() or 1
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (4 * cores)


def require_room(ids: Sequence[int], sampling: Sampling, n: int, context: int) -> None:
    """Raise `EngineError` for a request that makes no sense or exceeds ``context`` tokens."""
    if not ids or n < 1 or sampling.max_tokens < 1:
        raise EngineError(f"{len(ids)} prompt tokens, n {n}, max_tokens {sampling.max_tokens}: each must be at least 1")
    if len(ids) + sampling.max_tokens > context:
        raise EngineError(
            f"its prompt of {len(ids)} tokens and max_tokens {sampling.max_tokens} exceed the model's context of "
            f"{context} tokens; shorten the prompt or lower max_tokens"
        )
