"""Attention in which the n samples of a request share one stored copy of their prompt's keys and values.

A slot holds one request: its prompt's keys and values once, and n suffixes. The queries of all n samples meet
the prompt's keys in one matrix product and each sample's own keys in another, and both are merged into one softmax
("bifurcated attention", arXiv 2403.08845); columns before a cut, where prompts may be alike, are parts of their own
(`trunk`). Every slot has the same fixed size: prompts have P columns and suffixes T columns, and a mask says which
columns exist. So the arithmetic of a slot has the same shape whatever its neighbours are.

The model reaches this code through transformers' attention interface (`attention_door`) and is run without a cache:
the pass under way keeps the keys and values of each layer itself. Prompts get into their slots by `read_pass`.

Letters: G slots, n samples, R = G * n rows, P prompt columns, T suffix columns, B pieces, C tokens to a piece,
H key heads, g query heads to a key head, D head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metareward.engines.attention import Part, Scores, additive, merge, sees_nothing
from metareward.engines.slot_memory import Pair, SlotMemory, SlotShape, map_pair
from metareward.engines.trunk import Family, trunk_part

# Columns to a part on a CPU: kernels sum more of them in blocks, which depend on how many there are, seen or not.
_PART = 256


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns ``begin`` to ``end``; ``mask`` is added to the scores, and ``blind`` are those whom it hides all from.

    Without a mask all is seen.
    """

    begin: int
    end: int
    mask: Tensor | None
    blind: Tensor | None

    @classmethod
    def of(cls, mask: Tensor, begin: int, end: int) -> Columns:
        """With these columns of the mask (B, 1, 1, X)."""
        here = mask[..., begin:end]
        return cls(begin, end, here, sees_nothing(here))

    def look(self, query: Tensor, stored: Pair, scores: Scores) -> Part:
        """The part of queries (B, H, M, D) over these columns of keys and values (B, H, X, D)."""
        return scores.part(query, *self.cut(stored), self.mask, self.blind)

    def cut(self, stored: Pair) -> Pair:
        """These columns of keys and values."""
        return map_pair(stored, lambda t: t[:, :, self.begin : self.end])


class Step:
    """Attention of one new token per row, over the first ``used.slots`` slots and the columns that are in use.

    Queries see these parts: what is before each cut, and after the one before it, once for every family of slots; the
    rest of the slot's prompt, once for its samples; and the row's own suffix.
    """

    def __init__(
        self,
        memory: SlotMemory,
        lengths_G: Tensor,
        steps_G: Tensor,
        used: SlotShape,
        families: Sequence[Sequence[Family]],
    ) -> None:
        """``families``: for each cut in use the slots by what is before it."""
        self._memory = memory
        # A slot without a request sees some column, too, as a softmax over nothing is no number.
        self._lengths_G = lengths_G[: used.slots].clamp_min(max(used.cuts, default=0) + 1)
        self._steps_G = steps_G[: used.slots]
        self._used = used
        self.families = families
        self._columns: dict[int | None, tuple[list[Columns], list[Columns], list[Columns]]] = {}
        self._places: dict[int, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Store the new keys and values, then attend to the prompt and to the row's own suffix."""
        used, heads, width = self._used, key.shape[1], query.shape[3]
        groups = query.shape[1] // heads
        self._write(layer, key, value)
        on_trunks, on_rest, on_suffix = self._seen(scores.window, query.dtype)
        prompts = map_pair(self._memory.prompt(layer), lambda t: t[: used.slots])
        suffixes = map_pair(self._memory.suffix(layer), lambda t: t[: used.rows])
        by_slot = query.reshape(used.slots, used.samples, heads, groups, width).transpose(1, 2).flatten(2, 3)
        by_row = query.reshape(used.rows, heads, groups, width)
        parts = [self._by_slot(columns.look(by_row, suffixes, scores)) for columns in on_suffix]
        for columns, alike in zip(on_trunks, self.families, strict=True):
            # All that are asked for at once mostly begin alike; fewer do for longer.
            together = columns.begin == 0
            parts.append(trunk_part(by_slot, *columns.cut(prompts), columns.mask, scores, alike, together=together))
        parts += [columns.look(by_slot, prompts, scores) for columns in on_rest]
        merged = merge(parts).view(used.slots, heads, used.samples, -1).transpose(1, 2)
        return merged.reshape(used.rows, 1, heads * groups, -1)

    def _by_slot(self, part: Part) -> Part:
        """From (R, H, g, ...) to (G, H, n * g, ...)."""
        out, logs = (each.view(self._used.slots, self._used.samples, *each.shape[1:]).transpose(1, 2) for each in part)
        return out.flatten(2, 3), logs.flatten(2, 3)

    def _write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Write the new token's keys and values into the suffixes."""
        for kept, new in zip(self._memory.suffix(layer), (key, value), strict=True):
            kept.view(-1, kept.shape[3]).index_copy_(0, self._place(key.shape[1]), new.flatten(0, 2))

    def _place(self, heads: int) -> Tensor:
        """Where in a suffix store seen as (R * H * T, D) the new token of every row and head goes."""
        if heads not in self._places:
            step_R = self._steps_G.repeat_interleave(self._used.samples)
            row_head = torch.arange(self._used.rows * heads, device=step_R.device)
            self._places[heads] = row_head * self._memory.shape.suffix + step_R.repeat_interleave(heads)
        return self._places[heads]

    def _seen(self, window: int | None, dtype: torch.dtype) -> tuple[list[Columns], list[Columns], list[Columns]]:
        """Columns of the trunks, of the rest of the prompts and of the suffixes."""
        if window not in self._columns:
            used, device = self._used, self._steps_G.device
            column = torch.arange(used.prompt, device=device)
            on_prompt = column < self._lengths_G[:, None]
            on_suffix = torch.arange(used.suffix, device=device) <= self._steps_G[:, None]
            if window is not None:
                on_prompt &= (self._lengths_G + self._steps_G)[:, None] - column < window
                on_suffix &= self._steps_G[:, None] - torch.arange(used.suffix, device=device) < window
            of_slots = additive(on_prompt, dtype)[:, None, None]
            of_rows = additive(on_suffix, dtype).repeat_interleave(used.samples, dim=0)[:, None, None]
            bounds = list(itertools.pairwise((0, *used.cuts)))
            self._columns[window] = (
                [Columns(*both, None, None) if window is None else Columns.of(of_slots, *both) for both in bounds],
                _in_parts(of_slots, max(used.cuts, default=0)),
                _in_parts(of_rows, 0),
            )
        return self._columns[window]


def _in_parts(mask: Tensor, begin: int) -> list[Columns]:
    """The columns from ``begin`` on."""
    width = _PART if mask.device.type == "cpu" else mask.shape[3]
    starts = range(begin, mask.shape[3], width)
    return [Columns.of(mask, start, min(start + width, mask.shape[3])) for start in starts]
