"""Running the model over slots: a prefill puts prompts into slots, a step gives every row its next logits.

No request is known here, only token ids and where they go; all state that changes is the slots' memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metareward.engines.checkpoint import Checkpoint
from metareward.engines.shared_prefix import Pass, Prefill, SlotMemory, SlotShape, Step

Ints = NDArray[np.int64]


class Slots:
    """A checkpoint with room for ``shape.slots`` requests of ``shape.samples`` samples."""

    def __init__(self, checkpoint: Checkpoint, shape: SlotShape) -> None:
        self.shape = shape
        self._checkpoint = checkpoint
        self._memory = SlotMemory(shape)

    @property
    def bytes(self) -> int:
        """Size of the stored keys and values; 0 before the first prefill."""
        return self._memory.bytes

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int], columns: int, batch: int) -> Tensor:
        """Read ``prompts`` as a batch of shape (batch, columns), store them in ``slots``; logits (batch, V).

        Row b of the logits belongs to ``prompts[b]``; rows beyond the prompts are padding.
        """
        ids = np.zeros((batch, columns), np.int64)
        lengths = np.ones(batch, np.int64)
        for row, prompt in enumerate(prompts):
            ids[row, columns - len(prompt) :] = prompt
            lengths[row] = len(prompt)
        positions = np.maximum(np.arange(columns) - (columns - lengths)[:, None], 0)
        run = Prefill(self._put(lengths), columns)
        logits = self._run(run, ids, positions)
        self._memory.store(slots, run)
        return logits

    def step(self, tokens_R: Ints, lengths_G: Ints, steps_G: Ints, used: SlotShape) -> Tensor:
        """Append one token to every row in use; logits (used.rows, V).

        ``lengths_G`` counts the prompt tokens of each slot, ``steps_G`` the tokens appended to it before.
        """
        positions = np.repeat((lengths_G + steps_G)[: used.slots], used.samples)
        run = Step(self._memory, self._put(lengths_G[: used.slots]), self._put(steps_G[: used.slots]), used)
        return self._run(run, tokens_R[: used.rows, None], positions[:, None])

    def _run(self, run: Pass, ids: Ints, positions: Ints) -> Tensor:
        self._checkpoint.attention.under_way = run
        outputs = self._checkpoint.model(
            input_ids=self._put(ids), position_ids=self._put(positions), use_cache=False, logits_to_keep=1
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _put(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self._checkpoint.device)
