"""Attention to the beginning that several slots have in common, for all of them at once.

Judgments share the rubric; meta-judgments of one answer also the question, the answer and often the first judgment.
Each slot holds that trunk, but its keys and values are read once for a whole family of slots, from one of them. A
family's queries make one matrix product, never of fewer than 8 rows: below that kernels sum in another order, so that a
result would depend on how large the family is.

Letters as in `attention` and `shared_prefix`; m slots in a family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metareward.engines.attention import Part, Scores

_FEWEST_ROWS = 8


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
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: Scores, among: Sequence[Family]
) -> Part:
    """The part of queries (G, H, M, D) over their slots' trunks (G, H, X, D); ``mask``, if any, is (G, 1, 1, X).

    Slots in no family get a part that weighs nothing.
    """
    look = _apart if all(len(family.slots) == 1 for family in among) else _together
    return look(query, keys, values, mask, scores, among)


def _apart(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: Scores, among: Sequence[Family]
) -> Part:
    """Where each slot has a trunk of its own: all slots in one call."""
    samples = query.shape[2]
    out, found = scores.part(_at_least(query, _FEWEST_ROWS), keys, values, mask)
    logs = torch.full_like(found[:, :, :samples], -torch.inf)
    slots = [family.source for family in among]
    logs[slots] = found[slots, :, :samples]
    return out[:, :, :samples], logs


def _together(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: Scores, among: Sequence[Family]
) -> Part:
    """A call for every family."""
    slots, heads, samples, depth = query.shape
    out = query.new_zeros(slots, heads, samples, values.shape[3])
    logs = torch.full((slots, heads, samples), -torch.inf, device=query.device)
    for family in among:
        rows = query[family.slots].transpose(0, 1).reshape(1, heads, -1, depth)
        count, source = rows.shape[2], slice(family.source, family.source + 1)
        rows = _at_least(rows, _FEWEST_ROWS)
        seen = None if mask is None else _by_row(mask[family.slots], samples, rows.shape[2])
        found, found_logs = scores.part(rows, keys[source], values[source], seen)
        out[family.slots] = found[0, :, :count].reshape(heads, -1, samples, out.shape[3]).transpose(0, 1)
        logs[family.slots] = found_logs[0, :, :count].reshape(heads, -1, samples).transpose(0, 1)
    return out, logs


def _at_least(rows: Tensor, count: int) -> Tensor:
    """(G, H, M, D) with rows of zeros where M is less than ``count``."""
    return nn.functional.pad(rows, (0, 0, 0, max(0, count - rows.shape[2])))


def _by_row(mask: Tensor, samples: int, rows: int) -> Tensor:
    """From (m, 1, 1, X) to (1, 1, rows, X): a slot's line for each of its samples, and padding that sees all."""
    lines = mask[:, 0, 0].repeat_interleave(samples, dim=0)
    return nn.functional.pad(lines, (0, 0, 0, rows - len(lines)))[None, None]
