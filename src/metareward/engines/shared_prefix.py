"""Attention in which the n samples of a request share one stored copy of their prompt's keys and values.

A slot holds one request: its prompt's keys and values once, and n suffixes. The queries of all n samples meet
the prompt's keys in one matrix product and each sample's own keys in another, and both are merged into one softmax
("bifurcated attention", arXiv 2403.08845); where slots have a trunk, its columns are a third part (`trunk`). Every
slot has the same fixed size: prompts have P columns and suffixes T columns, and a mask says which columns exist. So
the arithmetic of a slot has the same shape whatever its neighbours are.

The model reaches this code through transformers' attention interface and is run without a cache: the pass
under way keeps the keys and values of each layer itself.

A prompt is read in pieces of C tokens that start at multiples of C, except that the last one ends with the prompt.
The keys and values of a whole piece follow from the prompt up to its end alone, bit for bit, so slots may copy
them from each other.

Letters: G slots, n samples, R = G * n rows, P prompt columns, T suffix columns, B pieces, C tokens to a piece,
H key heads, g query heads to a key head, D head width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from metareward.engines.attention import Scores, additive, merge
from metareward.engines.engine import EngineError
from metareward.engines.trunk import Family, trunk_part

Pair = tuple[Tensor, Tensor]
Ints = NDArray[np.int64]

_names = itertools.count()


class Pass(Protocol):
    """One run of the model over some tokens; it is called once for every layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Attention output (rows, tokens, heads, D) for query, key, value (rows, heads, tokens, D)."""
        ...


class AttentionDoor:
    """The attention function a model is loaded with, under ``name``; it hands each call to the pass under way."""

    def __init__(self) -> None:
        self.name = f"metareward_{next(_names)}"
        self.under_way: Pass | None = None
        AttentionInterface.register(self.name, self._attend)

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **__: Any,
    ) -> tuple[Tensor, None]:
        layer = module.layer_idx
        if self.under_way is None or s_aux is not None or not isinstance(layer, int):
            raise EngineError(f"{type(module).__name__} has a kind of attention that this engine does not know")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return self.under_way.attend(layer, query, key, value, Scores(scale, sliding_window, softcap)), None


@dataclass(frozen=True, slots=True)
class SlotShape:
    """The fixed size of a set of slots. ``trunk``: columns at the prompts' beginning that slots may have in common."""

    slots: int
    samples: int
    prompt: int
    suffix: int
    trunk: int = 0

    @property
    def rows(self) -> int:
        """Rows of a decoding step: one for every sample of every slot."""
        return self.slots * self.samples

    @property
    def positions(self) -> int:
        """Token positions there is room for: the slots', and one prompt's that nobody reads."""
        return (self.slots + 1) * self.prompt + self.rows * self.suffix


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
            # Zeros, because a masked column that held a NaN would still spoil the sum. What must not be kept is
            # written to one prompt more, which nobody reads.
            self._prompt[layer] = _pair(
                like, lambda t: t.new_zeros(shape.slots + 1, t.shape[1], shape.prompt, t.shape[3])
            )
            self._suffix[layer] = _pair(like, lambda t: t.new_zeros(shape.rows, t.shape[1], shape.suffix, t.shape[3]))

    def copy_prompt(self, source: int, target: int, columns: int) -> None:
        """Give slot ``target`` the first ``columns`` prompt columns of slot ``source``."""
        for pair in self._prompt.values():
            for stored in pair:
                stored[target, :, :columns] = stored[source, :, :columns]

    def prompt(self, layer: int) -> Pair:
        """Keys and values of the prompts: (G + 1, H, P, D)."""
        return self._prompt[layer]

    def suffix(self, layer: int) -> Pair:
        """Keys and values of the suffixes: (R, H, T, D)."""
        return self._suffix[layer]


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
            keys, values = _pair(stored, lambda t, slot=slot, end=end: t[slot : slot + 1, :, :end])
            found.append(scores.attention(query[piece : piece + 1], keys, values, mask[piece : piece + 1, ..., :end]))
        return torch.cat(found)

    def _together(self, query: Tensor, stored: Pair, mask: Tensor, scores: Scores) -> Tensor:
        """All pieces at once, each with a copy of its slot."""
        keys, values = _pair(stored, lambda t: t.index_select(0, self._slots_B))
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


class Step:
    """Attention of one new token per row, over the first ``used.slots`` slots and the columns that are in use.

    Queries see three parts: the trunk, once for every family of slots; the rest of the slot's prompt, once for its
    samples; and the row's own suffix.
    """

    def __init__(
        self, memory: SlotMemory, lengths_G: Tensor, steps_G: Tensor, used: SlotShape, families: Sequence[Family]
    ) -> None:
        self._memory = memory
        # A slot without a request sees some column, too, as a softmax over nothing is no number.
        self._lengths_G = lengths_G[: used.slots].clamp_min(used.trunk + 1)
        self._steps_G = steps_G[: used.slots]
        self._used = used
        self.families = families
        self._masks: dict[int | None, tuple[Tensor, Tensor]] = {}
        self._places: dict[int, Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: Scores) -> Tensor:
        """Store the new keys and values, then attend to the prompt and to the row's own suffix."""
        used, heads, width = self._used, key.shape[1], query.shape[3]
        groups = query.shape[1] // heads
        self._write(layer, key, value)
        on_prompt, on_suffix = self._mask(scores.window, query.dtype)
        keys, values = _pair(self._memory.prompt(layer), lambda t: t[: used.slots, :, : used.prompt])
        own_keys, own_values = _pair(self._memory.suffix(layer), lambda t: t[: used.rows, :, : used.suffix])
        by_slot = query.reshape(used.slots, used.samples, heads, groups, width).transpose(1, 2).flatten(2, 3)
        own, logs = scores.part(query.reshape(used.rows, heads, groups, width), own_keys, own_values, on_suffix)
        split = (used.slots, used.samples, heads, groups)
        parts = [(own.view(*split, -1).transpose(1, 2).flatten(2, 3), logs.view(split).transpose(1, 2).flatten(2, 3))]
        cut = used.trunk
        parts.append(scores.part(by_slot, keys[:, :, cut:], values[:, :, cut:], on_prompt[..., cut:]))
        if cut:
            seen = None if scores.window is None else on_prompt[..., :cut]
            parts.append(trunk_part(by_slot, keys[:, :, :cut], values[:, :, :cut], seen, scores, self.families))
        merged = merge(parts).view(used.slots, heads, used.samples, -1).transpose(1, 2)
        return merged.reshape(used.rows, 1, heads * groups, -1)

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

    def _mask(self, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Added to the scores: 0 where a token may look, -inf elsewhere; (G, 1, 1, P) and (R, 1, 1, T)."""
        if window not in self._masks:
            used, device = self._used, self._steps_G.device
            column = torch.arange(used.prompt, device=device)
            on_prompt = column < self._lengths_G[:, None]
            on_suffix = torch.arange(used.suffix, device=device) <= self._steps_G[:, None]
            if window is not None:
                on_prompt &= (self._lengths_G + self._steps_G)[:, None] - column < window
                on_suffix &= self._steps_G[:, None] - torch.arange(used.suffix, device=device) < window
            of_rows = additive(on_suffix, dtype).repeat_interleave(used.samples, dim=0)
            self._masks[window] = additive(on_prompt, dtype)[:, None, None], of_rows[:, None, None]
        return self._masks[window]


def _pair(tensors: Sequence[Tensor], change: Any) -> Pair:
    first, second = tensors
    return change(first), change(second)
