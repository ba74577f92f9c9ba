"""The KV cache of a shape bucket: each prompt's keys and values once, and those of its n samples' suffixes.

Every KV slot has the same fixed size, P columns for the prompt and T for each suffix, so that the arithmetic for a
slot has the same shape whatever the others hold; masks say which columns are filled. Letters as in `shared_prefix`.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KeyValue = tuple[Tensor, Tensor]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BucketShape:
    """The fixed size of a bucket: ``slots`` requests of ``samples`` samples, with ``prompt`` and ``suffix`` columns.

    ``split_points``: ascending prompt columns; prompts that are equal up to a split point share attention up to there.
    ``trim``: decode steps cover the columns in use, rounded up to a multiple of this; 0 means that they cover all.
    ``compact``: whether passes leave out finished samples, empty slots and absent chunks.
    """

    slots: int
    samples: int
    prompt: int
    suffix: int
    split_points: tuple[int, ...] = ()
    trim: int = 0
    compact: bool = False

    @property
    def rows(self) -> int:
        """Rows of a decode step: one for each sample of each slot."""
        return self.slots * self.samples

    @property
    def positions(self) -> int:
        """Token positions that the cache stores: those of the slots, and one spare prompt (see `KVCache`)."""
        return (self.slots + 1) * self.prompt + self.rows * self.suffix

    def trimmed(self, prompt: int, suffix: int) -> BucketShape:
        """The shape with columns for a longest prompt of ``prompt`` and a longest suffix of ``suffix`` tokens only."""
        if not self.trim:
            return self
        prompt, suffix = (-(-length // self.trim) * self.trim for length in (prompt, suffix))
        return replace(self, prompt=min(prompt, self.prompt), suffix=min(suffix, self.suffix))


class KVCache:
    """Keys and values of G slots, layer by layer; a layer is allocated when it stores its first tokens."""

    def __init__(self, shape: BucketShape) -> None:
        self.shape = shape
        self._prompt: dict[int, KeyValue] = {}
        self._suffix: dict[int, KeyValue] = {}

    @property
    def bytes(self) -> int:
        """Allocated bytes."""
        layers = itertools.chain(self._prompt.values(), self._suffix.values())
        return sum(tensor.nbytes for pair in layers for tensor in pair)

    def allocate(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Allocate a layer, if it isn't yet, for keys and values with the heads, width and dtype of these."""
        if layer not in self._prompt:
            shape, like = self.shape, (key, value)
            # One spare slot: writes that must be discarded go there.
            self._prompt[layer] = map_key_value(like, lambda t: _zeros(t, shape.slots + 1, shape.prompt))
            self._suffix[layer] = map_key_value(like, lambda t: _zeros(t, shape.rows, shape.suffix))

    def copy_prompt(self, source: int, target: int, columns: int) -> None:
        """Copy the first ``columns`` prompt columns of slot ``source`` to slot ``target``."""
        for pair in self._prompt.values():
            for stored in pair:
                stored[target, :, :columns] = stored[source, :, :columns]

    def fill_random(self, slot: int, seed: int) -> None:
        """Fill a slot's prompt and suffixes with random keys and values that depend on ``seed`` alone."""
        rows = slice(slot * self.shape.samples, (slot + 1) * self.shape.samples)
        for layer, pair in self._prompt.items():
            for stored in (*(t[slot] for t in pair), *(t[rows] for t in self._suffix[layer])):
                generator = torch.Generator(stored.device).manual_seed(seed + layer)
                stored.copy_(torch.randn(stored.shape, generator=generator, device=stored.device))

    def prompt(self, layer: int) -> KeyValue:
        """Keys and values of the prompts: (G + 1, H, P, D)."""
        return self._prompt[layer]

    def suffix(self, layer: int) -> KeyValue:
        """Keys and values of the suffixes: (R, H, T, D)."""
        return self._suffix[layer]


def _zeros(like: Tensor, count: int, columns: int) -> Tensor:
    # Zeros, because a masked column that holds a NaN would still spoil the sum.
    return like.new_zeros(count, like.shape[1], columns, like.shape[3])


def map_key_value(pair: Sequence[Tensor], change: Callable[[Tensor], Tensor]) -> KeyValue:
    """``change`` applied to the keys and to the values."""
    keys, values = pair
    return change(keys), change(values)


def kv_cache_memory(device: torch.device) -> int:
    """Bytes for KV caches: a share of the device's total memory, free or not, because bucket shapes follow from it."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        return max(total // 8, int(total * 0.8) - torch.cuda.memory_allocated(device))
    cores = os.cpu_count() or 1
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (4 * cores)
