"""Running the model over slots: a read puts pieces of prompts into slots, a step gives every row its next logits.

No request is known here, only token ids and where they go; all state that changes is the slots' memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metareward.engines.attention_door import Pass
from metareward.engines.checkpoint import Checkpoint
from metareward.engines.read_pass import Read
from metareward.engines.shared_prefix import Step
from metareward.engines.slot_memory import Ints, SlotMemory, SlotShape
from metareward.engines.trunk import Family, Trunks, families


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens ``start`` to ``end`` (at most C of them) of the prompt in ``slot``."""

    slot: int
    prompt: Sequence[int]
    start: int
    end: int


class Slots:
    """Room for ``shape.slots`` requests of ``shape.samples`` samples, prompts read in pieces of ``width`` tokens."""

    def __init__(self, checkpoint: Checkpoint, shape: SlotShape, width: int) -> None:
        self.shape = shape
        self.width = width
        self._checkpoint = checkpoint
        self._memory = SlotMemory(shape)
        self._trunks: Sequence[Trunks] = ()
        self._families: Sequence[Sequence[Family]] = ()

    @property
    def bytes(self) -> int:
        """Size of the stored keys and values; 0 before the first read."""
        return self._memory.bytes

    def copy_prompt(self, source: int, target: int, columns: int) -> None:
        """Give slot ``target`` the first ``columns`` tokens that slot ``source`` holds."""
        self._memory.copy_prompt(source, target, columns)

    def fill(self, slot: int, seed: int) -> None:
        """Put random keys and values, the same for the same seed, into a slot. Only after a first read."""
        self._memory.fill(slot, seed)

    def read(self, pieces: Sequence[Piece], batch: int) -> Tensor:
        """Read pieces in a pass of ``batch`` pieces; logits (batch, V) after the last token of each.

        Whatever comes before a piece in its prompt must be in its slot or among the pieces ahead of it. Rows beyond
        the pieces are padding.
        """
        ids_BC = np.zeros((batch, self.width), np.int64)
        slots, starts, ends = np.zeros((3, batch), np.int64)
        starts[len(pieces) :] = ends[len(pieces) :] = self.width
        for row, piece in enumerate(pieces):
            tokens = piece.prompt[max(0, piece.end - self.width) : piece.end]
            ids_BC[row, self.width - len(tokens) :] = tokens
            slots[row], starts[row], ends[row] = piece.slot, piece.start, piece.end
        positions_BC = np.maximum(ends[:, None] + np.arange(-self.width, 0), 0)
        run = Read(self._memory, slots, starts, ends, self.width, self._checkpoint.device)
        return self._run(run, ids_BC, positions_BC)

    def step(
        self,
        tokens_R: Ints,
        lengths_G: Ints,
        steps_G: Ints,
        used: SlotShape,
        trunks: Sequence[Trunks],
    ) -> Tensor:
        """Append one token to every row in use; logits (used.rows, V).

        ``lengths_G`` counts the prompt tokens of each slot, ``steps_G`` the tokens appended to it before. ``trunks``
        has for each cut in use a key of every slot whose tokens matter.
        """
        positions = np.repeat((lengths_G + steps_G)[: used.slots], used.samples)
        if trunks != self._trunks:
            self._trunks, self._families = trunks, [families(keys, self._checkpoint.device) for keys in trunks]
        run = Step(self._memory, self._put(lengths_G), self._put(steps_G), used, self._families)
        return self._run(run, tokens_R[: used.rows, None], positions[:, None])

    def _run(self, run: Pass, ids: Ints, positions: Ints) -> Tensor:
        self._checkpoint.attention.under_way = run
        outputs = self._checkpoint.model(
            input_ids=self._put(ids),
            position_ids=self._put(positions),
            use_cache=False,
            # As an index, not as the count 1: a slice is not contiguous, and multiplying it costs far more on CPU.
            logits_to_keep=self._put(np.array([ids.shape[1] - 1])),
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _put(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self._checkpoint.device)
