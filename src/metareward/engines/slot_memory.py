"""The keys and values of slots: each prompt's once, and its n samples' suffixes.

Every slot has the same fixed size, P columns for a prompt and T for a suffix, so that the arithmetic of a slot has the
same shape whatever its neighbours are; masks say which columns exist. Letters as in `shared_prefix`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Pair = tuple[Tensor, Tensor]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SlotShape:
    """The fixed size of a set of slots.

    ``cuts``: columns, in ascending order; what is before one of them slots may have in common. ``trim``: what the
    number of columns that a step looks at is a multiple of; 0 where it always looks at all.
    """

    slots: int
    samples: int
    prompt: int
    suffix: int
    cuts: tuple[int, ...] = ()
    trim: int = 0

    @property
    def rows(self) -> int:
        """Rows of a decoding step: one for every sample of every slot."""
        return self.slots * self.samples

    @property
    def positions(self) -> int:
        """Token positions there is room for: the slots', and one prompt's that nobody reads."""
        return (self.slots + 1) * self.prompt + self.rows * self.suffix

    def trimmed(self, prompt: int, suffix: int) -> SlotShape:
        """With columns for the longest prompt and the longest suffix there are."""
        if not self.trim:
            return self
        prompt, suffix = (-(-length // self.trim) * self.trim for length in (prompt, suffix))
        return replace(self, prompt=min(prompt, self.prompt), suffix=min(suffix, self.suffix))


class SlotMemory:
    """The stored keys and values of G slots, layer by layer; allocated when the first tokens are read."""

    def __init__(self, shape: SlotShape) -> None:
        self.shape = shape
        self._prompt: dict[int, Pair] = {}
        self._suffix: dict[int, Pair] = {}

    @property
    def bytes(self) -> int:
        """Size of what is allocated."""
        layers = itertools.chain(self._prompt.values(), self._suffix.values())
        return sum(tensor.nbytes for pair in layers for tensor in pair)

    def open(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Make room for a layer whose keys and values look like these."""
        if layer not in self._prompt:
            shape, like = self.shape, (key, value)
            # What must not be kept is written to one prompt more, which nobody reads.
            self._prompt[layer] = map_pair(like, lambda t: _zeros(t, shape.slots + 1, shape.prompt))
            self._suffix[layer] = map_pair(like, lambda t: _zeros(t, shape.rows, shape.suffix))

    def copy_prompt(self, source: int, target: int, columns: int) -> None:
        """Give slot ``target`` the first ``columns`` prompt columns of slot ``source``."""
        for pair in self._prompt.values():
            for stored in pair:
                stored[target, :, :columns] = stored[source, :, :columns]

    def fill(self, slot: int, seed: int) -> None:
        """Random keys and values for a slot, and its samples' suffixes."""
        rows = slice(slot * self.shape.samples, (slot + 1) * self.shape.samples)
        for layer, pair in self._prompt.items():
            for stored in (*(t[slot] for t in pair), *(t[rows] for t in self._suffix[layer])):
                generator = torch.Generator(stored.device).manual_seed(seed + layer)
                stored.copy_(torch.randn(stored.shape, generator=generator, device=stored.device))

    def prompt(self, layer: int) -> Pair:
        """Keys and values of the prompts: (G + 1, H, P, D)."""
        return self._prompt[layer]

    def suffix(self, layer: int) -> Pair:
        """Keys and values of the suffixes: (R, H, T, D)."""
        return self._suffix[layer]


def _zeros(like: Tensor, count: int, columns: int) -> Tensor:
    # Zeros, because a masked column that held a NaN would still spoil the sum.
    return like.new_zeros(count, like.shape[1], columns, like.shape[3])


def map_pair(pair: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> Pair:
    """The same done to keys and to values."""
    keys, values = pair
    return change(keys), change(values)
