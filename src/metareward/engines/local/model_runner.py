"""Runs the model over KV slots: a prefill pass stores chunks of prompts, a decode step adds one token to every row.

A prompt is prefilled in chunks of C tokens that start at multiples of C, except that the last one ends with the prompt.
The keys and values of a whole chunk depend on the prompt up to its end alone, bit for bit, so slots may copy them from
each other. Requests are unknown here: the inputs are token ids and slots; the only state is the KV cache.

Letters as in `shared_prefix`; B chunks, C tokens per chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metareward.engines.local.attention import ForwardContext, ScoreFunction, additive_mask
from metareward.engines.local.checkpoint import Checkpoint
from metareward.engines.local.kv_cache import BucketShape, Ints, KeyValue, KVCache, map_key_value
from metareward.engines.local.shared_prefix import DecodePass, PrefixGroup, PrefixKeys, prefix_groups

# Rows of a compact step are filled up to a multiple of it: left-over rows of products may be rounded in another way.
ROW_MULTIPLE = 8


def compact_widths(batch: int) -> tuple[int, ...]:
    """The numbers of chunks that compact prefill passes have: powers of two below ``batch``, and ``batch``."""
    return (*(1 << power for power in range((batch - 1).bit_length())), batch)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens ``start`` to ``end`` (at most C of them) of the prompt in ``slot``."""

    slot: int
    prompt: Sequence[int]
    start: int
    end: int


class ModelRunner:
    """The model with a KV cache of ``shape``; prompts are prefilled in chunks of ``chunk_size`` tokens."""

    def __init__(self, checkpoint: Checkpoint, shape: BucketShape, chunk_size: int) -> None:
        self.shape = shape
        self.chunk_size = chunk_size
        self._checkpoint = checkpoint
        self.cache = KVCache(shape)
        self._prefix_keys: Sequence[PrefixKeys] = ()
        self._groups: Sequence[Sequence[PrefixGroup]] = ()

    def prefill(self, chunks: Sequence[Chunk], batch: int) -> Tensor:
        """Prefill chunks in a pass padded to ``batch`` chunks; logits (batch, V) after the last token of each.

        The tokens before a chunk must be in its slot already, or be in earlier chunks of this pass.
        """
        size = self.chunk_size
        ids_BC = np.zeros((batch, size), np.int64)
        slots_B, starts_B, ends_B = np.zeros((3, batch), np.int64)
        starts_B[len(chunks) :] = ends_B[len(chunks) :] = size
        for row, chunk in enumerate(chunks):
            tokens = chunk.prompt[max(0, chunk.end - size) : chunk.end]
            ids_BC[row, size - len(tokens) :] = tokens
            slots_B[row], starts_B[row], ends_B[row] = chunk.slot, chunk.start, chunk.end
        positions_BC = np.maximum(ends_B[:, None] + np.arange(-size, 0), 0)
        context = PrefillPass(self.cache, slots_B, starts_B, ends_B, size, self._checkpoint.device)
        return self._forward(context, ids_BC, positions_BC)

    def decode(
        self,
        tokens_R: Ints,
        lengths_G: Ints,
        steps_G: Ints,
        used: BucketShape,
        prefix_keys: Sequence[PrefixKeys],
        rows: Ints,
    ) -> Tensor:
        """Append one token to each of ``rows`` of those in use; logits (rows, V).

        ``lengths_G``: prompt tokens of each slot; ``steps_G``: suffix tokens stored before this one. ``prefix_keys``:
        for each split point in use, the keys of all slots whose output matters.
        """
        positions_R = np.repeat((lengths_G + steps_G)[: used.slots], used.samples)
        if prefix_keys != self._prefix_keys:
            self._prefix_keys = prefix_keys
            self._groups = [prefix_groups(keys, self._checkpoint.device) for keys in prefix_keys]
        lengths, steps = self._to_device(lengths_G), self._to_device(steps_G)
        some = self._to_device(rows) if len(rows) < used.rows else None
        context = DecodePass(self.cache, lengths, steps, used, self._groups, some)
        return self._forward(context, tokens_R[rows, None], positions_R[rows, None])

    @property
    def head_inputs(self) -> Tensor | None:
        """What the last pass gave to the output embedding, for `VerdictHead`: (rows, D); None without one."""
        head = self._checkpoint.verdict_head
        return None if head is None else head.inputs

    def _forward(self, context: ForwardContext, ids: Ints, positions: Ints) -> Tensor:
        self._checkpoint.attention.forward_context = context
        outputs = self._checkpoint.model(
            input_ids=self._to_device(ids),
            position_ids=self._to_device(positions),
            use_cache=False,
            # An index instead of the count 1: a slice is not contiguous, and multiplying it is far slower on CPU.
            logits_to_keep=self._to_device(np.array([ids.shape[1] - 1])),
        )
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _to_device(self, array: Ints) -> Tensor:
        return torch.from_numpy(array).to(self._checkpoint.device)


class PrefillPass:
    """Attention of B chunks, C tokens each, over the prompt columns of their slots up to each token.

    Row b holds the C tokens before column ``ends_B[b]`` of slot ``slots_B[b]``; keys and values from column
    ``starts_B[b]`` on are stored. A chunk may follow another chunk of the same prompt in the same pass, because each
    layer stores all keys before any query attends.
    """

    def __init__(
        self, cache: KVCache, slots_B: Ints, starts_B: Ints, ends_B: Ints, chunk_size: int, device: torch.device
    ) -> None:
        self._cache = cache
        self._slots_and_ends = list(zip(slots_B.tolist(), ends_B.tolist(), strict=True))
        self._slots_B, starts, ends = (torch.from_numpy(array).to(device) for array in (slots_B, starts_B, ends_B))
        column_BC = ends[:, None] + torch.arange(-chunk_size, 0, device=device)
        self._position_BC = column_BC.clamp_min(0)
        stored_BC = column_BC >= starts[:, None]
        # Tokens that are stored already go to the spare slot.
        self._target_slot_BC = torch.where(stored_BC, self._slots_B[:, None], cache.shape.slots)
        self._target_column_BC = torch.where(stored_BC, column_BC, 0)
        self._masks: dict[tuple[int | None, int], Tensor] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scores: ScoreFunction) -> Tensor:
        """Store the new keys and values, then let every token attend to its prompt up to itself."""
        self._cache.allocate(layer, key, value)
        stored = self._cache.prompt(layer)
        for tensor, new in zip(stored, (key, value), strict=True):
            self._write(tensor, new)
        chunks, heads, size, width = query.shape
        per_key_head = heads // key.shape[1]
        # Query heads that share a key head are stacked as if they were more tokens.
        query = query.reshape(chunks, key.shape[1], per_key_head * size, width)
        mask = self._mask(scores.window, per_key_head, query.dtype)
        attend = self._attend_one_by_one if query.device.type == "cpu" else self._attend_all
        return attend(query, stored, mask, scores).reshape(chunks, heads, size, -1).transpose(1, 2)

    def _attend_one_by_one(self, query: Tensor, stored: KeyValue, mask: Tensor, scores: ScoreFunction) -> Tensor:
        """One call per chunk, without a copy and without the columns after its end: calls are cheap on a CPU."""
        outputs = []
        for row, (slot, end) in enumerate(self._slots_and_ends):
            keys, values = (each[slot : slot + 1, :, :end] for each in stored)
            outputs.append(scores.attention(query[row : row + 1], keys, values, mask[row : row + 1, ..., :end]))
        return torch.cat(outputs)

    def _attend_all(self, query: Tensor, stored: KeyValue, mask: Tensor, scores: ScoreFunction) -> Tensor:
        """All chunks in one call, each with a copy of its slot."""
        keys, values = map_key_value(stored, lambda t: t.index_select(0, self._slots_B))
        return scores.attention(query, keys, values, mask)

    def _write(self, stored: Tensor, new: Tensor) -> None:
        heads, columns = stored.shape[1:3]
        head_H1 = torch.arange(heads, device=new.device)[:, None]
        index_BHC = (self._target_slot_BC[:, None] * heads + head_H1) * columns + self._target_column_BC[:, None]
        stored.view(-1, stored.shape[3]).index_copy_(0, index_BHC.flatten(), new.flatten(0, 2))

    def _mask(self, window: int | None, per_key_head: int, dtype: torch.dtype) -> Tensor:
        """Additive causal mask (B, 1, per_key_head * C, P), within the sliding window if there is one."""
        if (window, per_key_head) not in self._masks:
            column = torch.arange(self._cache.shape.prompt, device=self._slots_B.device)
            distance = self._position_BC[:, :, None] - column
            visible = (distance >= 0) if window is None else (distance >= 0) & (distance < window)
            self._masks[window, per_key_head] = additive_mask(visible, dtype).repeat(1, per_key_head, 1)[:, None]
        return self._masks[window, per_key_head]
