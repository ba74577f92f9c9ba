"""Attention to the beginnings that several slots have in common.

Judgments share the rubric; meta-judgments of one answer also the question and the answer, and those with the same first
judgment that, too. Each slot holds all of its prompt, but the keys and values of such a trunk are read from one slot
for a whole family of them, as reading memory is what takes the time.

Letters as in `attention` and `shared_prefix`; m slots in a family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metareward.engines.attention import Part, Scores, sees_nothing

# Kernels sum the last few rows of a product in another order, so that a result would depend on how large a family is.
_ROW_STEP = 8

# Of each slot a key that is the same for slots whose trunks are the same.
Trunks = Mapping[int, bytes]


@dataclass(frozen=True, slots=True)
class Family:
    """Slots whose prompts begin alike; the first one's keys and values serve all."""

    slots: Tensor
    source: int


def families(keys: Trunks, device: torch.device) -> tuple[Family, ...]:
    """Slots by the key of their trunk; a slot without one is in no family."""
    found: dict[bytes, list[int]] = {}
    for slot, key in keys.items():
        found.setdefault(key, []).append(slot)
    return tuple(Family(torch.tensor(slots, device=device), slots[0]) for slots in found.values())


def trunk_part(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor | None,
    scores: Scores,
    among: Sequence[Family],
    *,
    together: bool,
) -> Part:
    """The part of queries (G, H, M, D) over their slots' trunks (G, H, X, D); ``mask``, if any, is (G, 1, 1, X).

    With ``together`` a family's queries make one matrix product: best for many. Without, each slot's make one, which is
    the product that they make if nobody shares. What slots in no family get means nothing.
    """
    look = _together if together else _each
    if 2 * len(among) > len(query):
        # Most have a trunk of their own: all in one call.
        return look(query, keys, values, mask, scores)
    if len(among[0].slots) == len(query):
        first = slice(among[0].source, among[0].source + 1)
        return look(query, keys[first], values[first], mask, scores)
    out = query.new_zeros(*query.shape[:3], values.shape[3])
    logs = torch.zeros(query.shape[:3], device=query.device)
    for family in among:
        slots, first = family.slots, slice(family.source, family.source + 1)
        seen = None if mask is None else mask[slots]
        out[slots], logs[slots] = look(query[slots], keys[first], values[first], seen, scores)
    return out, logs


def _each(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: Scores) -> Part:
    """Queries (m, H, M, D) over keys and values of as many slots, or of one for all."""
    keys, values = (stored.expand(len(query), -1, -1, -1) for stored in (keys, values))
    return scores.part(query, keys, values, mask, None if mask is None else sees_nothing(mask))


def _together(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: Scores) -> Part:
    """`_each` with one product for all that have the same keys and values."""
    slots, heads, samples, depth = query.shape
    split = (len(keys), heads, slots // len(keys), samples)
    count = split[2] * samples
    rows = query.view(split[0], split[2], heads, samples, depth).transpose(1, 2).reshape(*split[:2], count, depth)
    rows = nn.functional.pad(rows, (0, 0, 0, -count % _ROW_STEP))
    seen = None if mask is None else _by_row(mask.view(split[0], split[2], -1), samples, rows.shape[2])
    out, logs = scores.part(rows, keys, values, seen, None if seen is None else sees_nothing(seen))
    out = out[:, :, :count].reshape(*split, -1).transpose(1, 2).flatten(0, 1)
    return out, logs[:, :, :count].reshape(split).transpose(1, 2).flatten(0, 1)


def _by_row(mask: Tensor, samples: int, rows: int) -> Tensor:
    """From (F, m, X) to (F, 1, rows, X): a slot's line for each of its samples, and padding that sees all."""
    lines = mask.repeat_interleave(samples, dim=1)
    return nn.functional.pad(lines, (0, 0, 0, rows - lines.shape[1]))[:, None]
