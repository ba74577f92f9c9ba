"""Which pairs go together: every batch a plain random draw, its micro-batches of like length.

Micro-batches are padded to their longest row. Sorting the whole epoch by length would save that padding but put all
judge pairs (long) in some steps and all actor pairs (short) in others; sorting only inside each batch saves most of
it and leaves what each optimiser step sees as it would be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from metareward.seeds import derive


class LengthSortedBatches(Sampler[int]):
    """Pair numbers in the order of training: shuffled by (seed, epoch), longest first inside each batch."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Called by the training loop before each epoch."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derive(self._seed, "order", self._epoch))
        order = torch.randperm(len(self._lengths), generator=generator).tolist()
        for first in range(0, len(order), self._batch_size):
            yield from sorted(order[first : first + self._batch_size], key=lambda pair: -self._lengths[pair])
