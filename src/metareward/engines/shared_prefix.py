"""Attention in which the n samples of a request share one stored copy of their prompt's keys and values.

A slot holds one request: its prompt's keys and values once, and n suffixes. The queries of all n samples meet
the prompt's keys in one matrix product and each sample's own keys in another, and both are merged into one softmax
("bifurcated attention", arXiv 2403.08845); columns before a cut, where prompts may be alike, are parts of their own
(`trunk`). Every slot has the same fixed size: prompts have P columns and suffixes T columns, and a mask says which
columns exist. So the arithmetic of a slot has the same shape whatever its neighbours are.

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
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AttentionInterface

from metareward.engines.attention import Part, Scores, additive, merge, sees_nothing
from metareward.engines.engine import EngineError
from metareward.engines.trunk import Family, trunk_part

Pair = tuple[Tensor, Tensor]
Ints = NDArray[np.int64]

_names = itertools.count()
# Columns to a part on a CPU: kernels sum more of them in blocks, which depend on how many there are, seen or not.
_PART = 256


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
        return _pair(stored, lambda t: t[:, :, self.begin : self.end])


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
        prompts = _pair(self._memory.prompt(layer), lambda t: t[: used.slots])
        suffixes = _pair(self._memory.suffix(layer), lambda t: t[: used.rows])
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


def _pair(tensors: Sequence[Tensor], change: Any) -> Pair:
    first, second = tensors
    return change(first), change(second)
