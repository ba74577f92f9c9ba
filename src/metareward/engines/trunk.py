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
    if all(len(family.slots) == 1 for family in among):
        return _apart(query, keys, values, mask, scores, among)
    if len(among) == 1 and len(among[0].slots) == len(query):
        return _family(query, keys, values, mask, scores, among[0].source)
    return _families(query, keys, values, mask, scores, among)


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


def _families(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: Scores, among: Sequence[Family]
) -> Part:
    """A call for every family."""
    out = query.new_zeros(*query.shape[:3], values.shape[3])
    logs = torch.full(query.shape[:3], -torch.inf, device=query.device)
    for family in among:
        seen = None if mask is None else mask[family.slots]
        found, found_logs = _family(query[family.slots], keys, values, seen, scores, family.source)
        out[family.slots], logs[family.slots] = found, found_logs
    return out, logs


def _family(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scores: Scores, source: int) -> Part:
    """All queries (m, H, M, D) of a family over the keys and values of the slot ``source``."""
    slots, heads, samples, depth = query.shape
    rows = _at_least(query.transpose(0, 1).reshape(1, heads, -1, depth), _FEWEST_ROWS)
    seen = None if mask is None else _by_row(mask, samples, rows.shape[2])
    out, logs = scores.part(rows, keys[source : source + 1], values[source : source + 1], seen)
    out, logs = out[0, :, : slots * samples], logs[0, :, : slots * samples]
    split = (heads, slots, samples)
    return out.view(*split, -1).transpose(0, 1), logs.view(split).transpose(0, 1)


def _at_least(rows: Tensor, count: int) -> Tensor:
    """(G, H, M, D) with rows of zeros where M is less than ``count``."""
    return nn.functional.pad(rows, (0, 0, 0, max(0, count - rows.shape[2])))


def _by_row(mask: Tensor, samples: int, rows: int) -> Tensor:
    """From (m, 1, 1, X) to (1, 1, rows, X): a slot's line for each of its samples, and padding that sees all."""
    lines = mask[:, 0, 0].repeat_interleave(samples, dim=0)
    return nn.functional.pad(lines, (0, 0, 0, rows - len(lines)))[None, None]
