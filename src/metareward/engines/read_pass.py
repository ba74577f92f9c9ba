"""Attention of pieces of prompts while they are read into slots.

A prompt is read in pieces of C tokens that start at multiples of C, except that the last one ends with the prompt.
The keys and values of a whole piece follow from the prompt up to its end alone, bit for bit, so slots may copy
them from each other. Letters as in `shared_prefix`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metareward.engines.attention import Scores, additive
from metareward.engines.slot_memory import Ints, Pair, SlotMemory, map_pair


class Read:
    """Attention of B pieces of prompts, C tokens each, over what their slots hold and over themselves.

    Piece b ends before column ``ends_B[b]`` of slot ``slots_B[b]``; of its keys and values those from column
    ``starts_B[b]`` on are stored. A piece may follow another of the same prompt in the same pass, as in every layer
    all keys are stored before any query looks.
    """

    def __init__(
        self, memory: SlotMemory, slots_B: Ints, starts_B: Ints, ends_B: Ints, width: int, device: Any
    ) -> None:
        self._memory = memory
        self._places = list(zip(slots_B.tolist(), ends_B.tolist(), strict=True))
        self._slots_B, starts, ends = (torch.from_numpy(array).to(device) for array in (slots_B, starts_B, ends_B))
        column_BC = ends[:, None] + torch.arange(-width, 0, device=device)
        self._position_BC = column_BC.clamp_min(0)
        kept_BC = column_BC >= starts[:, None]
        self._target_slot_BC = torch.where(kept_BC, self._slots_B[:, None], memory.shape.slots)
        self._target_column_BC = torch.where(kept_BC, column_BC, 0)
        self._masks: dict[tuple[int | None, int], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Store the new keys and values, then let every token attend to its prompt up to itself."""
        self._memory.open(layer, key, value)
        stored = self._memory.prompt(layer)
        for kept, new in zip(stored, (key, value), strict=True):
            self._write(kept, new)
        pieces, heads, width, depth = query.shape
        groups = heads // key.shape[1]
        # The heads that share keys stand below each other, as if they were more tokens.
        query = query.reshape(pieces, key.shape[1], groups * width, depth)
        mask = self._mask(scores.window, groups, query.dtype)
        look = self._each if query.device.type == "cpu" else self._together
        return look(query, stored, mask, scores).reshape(pieces, heads, width, -1).transpose(1, 2)

    def _each(self, query: Tensor, stored: Pair, mask: Tensor, scores: Scores) -> Tensor:
        """One piece after the other, in place and with no column after its last: calls cost little on a CPU."""
        found = []
        for piece, (slot, end) in enumerate(self._places):
            keys, values = (each[slot : slot + 1, :, :end] for each in stored)
            found.append(scores.attention(query[piece : piece + 1], keys, values, mask[piece : piece + 1, ..., :end]))
        return torch.cat(found)

    def _together(self, query: Tensor, stored: Pair, mask: Tensor, scores: Scores) -> Tensor:
        """All pieces at once, each with a copy of its slot."""
        keys, values = map_pair(stored, lambda t: t.index_select(0, self._slots_B))
        return scores.attention(query, keys, values, mask)

    def _write(self, stored: Tensor, new: Tensor) -> None:
        heads, columns = stored.shape[1:3]
        head_H1 = torch.arange(heads, device=new.device)[:, None]
        place_BHC = (self._target_slot_BC[:, None] * heads + head_H1) * columns + self._target_column_BC[:, None]
        stored.view(-1, stored.shape[3]).index_copy_(0, place_BHC.flatten(), new.flatten(0, 2))

    def _mask(self, window: int | None, groups: int, dtype: torch.dtype) -> Tensor:
        """Added to the scores: 0 where a token may look, -inf elsewhere; (B, 1, groups * C, P)."""
        if (window, groups) not in self._masks:
            column = torch.arange(self._memory.shape.prompt, device=self._slots_B.device)
            back = self._position_BC[:, :, None] - column
            seen = (back >= 0) if window is None else (back >= 0) & (back < window)
            self._masks[window, groups] = additive(seen, dtype).repeat(1, groups, 1)[:, None]
        return self._masks[window, groups]
