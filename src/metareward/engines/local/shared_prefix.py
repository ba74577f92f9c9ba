"""Decode-step attention in which samples share their prompt's KV, and prompts share the KV of common prefixes.

A KV slot holds one request: its prompt's keys and values once, and n suffixes. The queries of all n samples meet the
prompt's keys in one matrix product and each sample's own keys in another; both are merged into one softmax ("bifurcated
attention", arXiv 2403.08845). Prompts that are equal up to a split point form a prefix group: attention to the columns
before it reads the keys and values of the group's first slot only, because reading memory is what takes the time.
Judgments share the rubric; meta-judgments of one answer also the question, the answer and often the first judgment.

Letters: G slots, n samples, R = G * n rows, P prompt columns, T suffix columns, H key heads, g query heads to a key
head, D head width; m slots in a prefix group; B, M, X as in `attention`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metareward.engines.local.attention import PartialAttention, ScoreFunction, additive_mask, fully_masked, merge
from metareward.engines.local.kv_cache import BucketShape, KeyValue, KVCache, map_key_value

# Columns per part on a CPU: kernels sum longer rows in blocks whose bounds depend on the length, masked or not.
_PART_COLUMNS = 256
# Query rows are padded to a multiple of this: kernels sum left-over rows in another order, so that results would
# depend on the size of the group.
_ROW_MULTIPLE = 8

# A key per slot; slots with equal keys have equal prompts up to the split point.
PrefixKeys = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Slots whose prompts are equal up to a split point. ``source``: the slot whose keys and values serve all."""

    slots: Tensor
    source: int


def prefix_groups(keys: PrefixKeys, device: torch.device) -> tuple[PrefixGroup, ...]:
    """The slots grouped by their keys; a slot without a key is in no group."""
    found: dict[bytes, list[int]] = {}
    for slot, key in keys.items():
        found.setdefault(key, []).append(slot)
    return tuple(PrefixGroup(torch.tensor(slots, device=device), slots[0]) for slots in found.values())


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns ``begin`` to ``end``. ``mask`` is added to the scores; without a mask all columns are visible."""

    begin: int
    end: int
    mask: Tensor | None
    masked_out: Tensor | None

    @classmethod
    def masked(cls, mask: Tensor, begin: int, end: int) -> _Columns:
        """These columns of a mask (B, 1, 1, X)."""
        part = mask[..., begin:end]
        return cls(begin, end, part, fully_masked(part))

    def attend(self, query: Tensor, stored: KeyValue, scores: ScoreFunction) -> PartialAttention:
        """Attention of queries (B, H, M, D) over these columns of keys and values (B, H, X, D)."""
        return scores.partial(query, *self.select(stored), self.mask, self.masked_out)

    def select(self, stored: KeyValue) -> KeyValue:
        """These columns of keys and values."""
        return map_key_value(stored, lambda t: t[:, :, self.begin : self.end])


class DecodePass:
    """Attention of one new token per row, over the first ``used.slots`` slots and the columns in use.

    The keys are split into parts: the columns between split points, read once per prefix group; the rest of a slot's
    prompt, read once for its samples; and each row's own suffix.
    """

    def __init__(
        self,
        cache: KVCache,
        lengths_G: Tensor,
        steps_G: Tensor,
        used: BucketShape,
        groups: Sequence[Sequence[PrefixGroup]],
        rows: Tensor | None = None,
    ) -> None:
        """``groups``: for each split point in use, the prefix groups. ``rows``: those in the pass; all by default."""
        self._cache = cache
        self._rows = rows
        # Empty slots see a column, too: a softmax over no keys is NaN.
        self._lengths_G = lengths_G[: used.slots].clamp_min(max(used.split_points, default=0) + 1)
        self._steps_G = steps_G[: used.slots]
        self._used = used
        self.groups = groups
        self._columns: dict[int | None, tuple[list[_Columns], list[_Columns], list[_Columns]]] = {}
        self._write_indices: dict[int, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: ScoreFunction) -> Tensor:
        """Store the new keys and values, then attend to the prompt and to the row's own suffix."""
        used, heads, width = self._used, key.shape[1], query.shape[3]
        per_key_head = query.shape[1] // heads
        self._write(layer, key, value)
        if self._rows is not None:  # the others attend with a query of zeros, so that the arithmetic is the same
            query = query.new_zeros(used.rows, *query.shape[1:]).index_copy_(0, self._rows, query)
        shared, rest, suffix = self._parts(scores.window, query.dtype)
        prompts = map_key_value(self._cache.prompt(layer), lambda t: t[: used.slots])
        suffixes = map_key_value(self._cache.suffix(layer), lambda t: t[: used.rows])
        by_slot = query.reshape(used.slots, used.samples, heads, per_key_head, width).transpose(1, 2).flatten(2, 3)
        by_row = query.reshape(used.rows, heads, per_key_head, width)
        parts = [self._rows_to_slots(columns.attend(by_row, suffixes, scores)) for columns in suffix]
        for columns, groups in zip(shared, self.groups, strict=True):
            # Groups are mostly large up to the first split point, and small after it.
            stack = columns.begin == 0
            keys, values = columns.select(prompts)
            parts.append(group_attention(by_slot, keys, values, columns.mask, scores, groups, stack_queries=stack))
        parts += [columns.attend(by_slot, prompts, scores) for columns in rest]
        merged = merge(parts).view(used.slots, heads, used.samples, -1).transpose(1, 2)
        merged = merged.reshape(used.rows, 1, heads * per_key_head, -1)
        return merged if self._rows is None else merged[self._rows]

    def _rows_to_slots(self, part: PartialAttention) -> PartialAttention:
        """From (R, H, g, ...) to (G, H, n * g, ...)."""
        used = self._used
        out, logsumexp = (each.view(used.slots, used.samples, *each.shape[1:]).transpose(1, 2) for each in part)
        return out.flatten(2, 3), logsumexp.flatten(2, 3)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write the new token's keys and values into the suffixes."""
        heads = key.shape[1]
        if heads not in self._write_indices:
            # Indices into a suffix tensor viewed as (R * H * T, D).
            step_R = self._steps_G.repeat_interleave(self._used.samples)
            row_head = torch.arange(self._used.rows * heads, device=step_R.device)
            index = row_head * self._cache.shape.suffix + step_R.repeat_interleave(heads)
            self._write_indices[heads] = index if self._rows is None else index.view(-1, heads)[self._rows].flatten()
        for stored, new in zip(self._cache.suffix(layer), (key, value), strict=True):
            stored.view(-1, stored.shape[3]).index_copy_(0, self._write_indices[heads], new.flatten(0, 2))

    def _parts(self, window: int | None, dtype: torch.dtype) -> tuple[list[_Columns], list[_Columns], list[_Columns]]:
        """Columns of the shared prefixes, of the rest of the prompts, and of the suffixes."""
        if window not in self._columns:
            used, device = self._used, self._steps_G.device
            column = torch.arange(used.prompt, device=device)
            prompt_visible = column < self._lengths_G[:, None]
            suffix_visible = torch.arange(used.suffix, device=device) <= self._steps_G[:, None]
            if window is not None:
                prompt_visible &= (self._lengths_G + self._steps_G)[:, None] - column < window
                suffix_visible &= self._steps_G[:, None] - torch.arange(used.suffix, device=device) < window
            of_slots = additive_mask(prompt_visible, dtype)[:, None, None]
            of_rows = additive_mask(suffix_visible, dtype).repeat_interleave(used.samples, dim=0)[:, None, None]
            bounds = list(itertools.pairwise((0, *used.split_points)))
            self._columns[window] = (
                [
                    _Columns(*each, None, None) if window is None else _Columns.masked(of_slots, *each)
                    for each in bounds
                ],
                _in_parts(of_slots, max(used.split_points, default=0)),
                _in_parts(of_rows, 0),
            )
        return self._columns[window]


def _in_parts(mask: Tensor, begin: int) -> list[_Columns]:
    """The columns from ``begin`` on, in parts of fixed width on a CPU."""
    width = _PART_COLUMNS if mask.device.type == "cpu" else mask.shape[3]
    starts = range(begin, mask.shape[3], width)
    return [_Columns.masked(mask, start, min(start + width, mask.shape[3])) for start in starts]


def group_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scores: ScoreFunction,
    groups: Sequence[PrefixGroup],
    *,
    stack_queries: bool,
) -> PartialAttention:
    """Attention of queries (G, H, M, D) over keys and values (G, H, X, D), read once per group.

    ``mask``, if any, is (G, 1, 1, X). With ``stack_queries`` a group's queries form one matrix product, which is
    fastest for large groups; without, each slot's queries form one, as if nothing were shared. The output for slots in
    no group is meaningless but finite.
    """
    attend = _attend_stacked if stack_queries else _attend_per_slot
    if 2 * len(groups) > len(query):
        # Most slots are alone in their group: all slots in one call.
        return attend(query, keys, values, mask, scores)
    if len(groups[0].slots) == len(query):
        source = slice(groups[0].source, groups[0].source + 1)
        return attend(query, keys[source], values[source], mask, scores)
    out = query.new_zeros(*query.shape[:3], values.shape[3])
    logsumexp = torch.zeros(query.shape[:3], device=query.device)
    for group in groups:
        slots, source = group.slots, slice(group.source, group.source + 1)
        group_mask = None if mask is None else mask[slots]
        out[slots], logsumexp[slots] = attend(query[slots], keys[source], values[source], group_mask, scores)
    return out, logsumexp


def _attend_per_slot(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: ScoreFunction
) -> PartialAttention:
    """Attention of queries (m, H, M, D) over the keys and values of as many slots, or of one slot for all."""
    keys, values = (stored.expand(len(query), -1, -1, -1) for stored in (keys, values))
    return scores.partial(query, keys, values, mask, None if mask is None else fully_masked(mask))


def _attend_stacked(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: ScoreFunction
) -> PartialAttention:
    """`_attend_per_slot` with one matrix product for all queries that have the same keys and values."""
    slots, heads, samples, width = query.shape
    split = (len(keys), heads, slots // len(keys), samples)
    count = split[2] * samples
    rows = query.view(split[0], split[2], heads, samples, width).transpose(1, 2).reshape(*split[:2], count, width)
    rows = nn.functional.pad(rows, (0, 0, 0, -count % _ROW_MULTIPLE))
    row_mask = None
    if mask is not None:
        # A slot's line for each of its samples: (len(keys), 1, rows, X); padding rows see all columns.
        lines = mask.view(split[0], split[2], -1).repeat_interleave(samples, dim=1)
        row_mask = nn.functional.pad(lines, (0, 0, 0, rows.shape[2] - count))[:, None]
    out, logsumexp = scores.partial(rows, keys, values, row_mask, None if row_mask is None else fully_masked(row_mask))
    out = out[:, :, :count].reshape(*split, -1).transpose(1, 2).flatten(0, 1)
    return out, logsumexp[:, :, :count].reshape(split).transpose(1, 2).flatten(0, 1)
