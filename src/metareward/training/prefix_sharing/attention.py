"""Attention in a packed row: each chunk attends to its own path and to nothing else.

PyTorch's attention takes the chunks one by one, so that no time goes into what a mask would hide: the first of a group
of rows is plain causal attention, every further one queries with its few new tokens only. FlexAttention does all chunks
at once with a block mask, where there is a GPU for it (it has no backward pass on a CPU) and no dropout.

transformers reaches this through its attention interface, as `ATTENTION`; without a packed row it is PyTorch's own.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from metareward.training.prefix_sharing.packing import PackedRow

ATTENTION = "metareward_packed_rows"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_row: PackedRow | None = None,
    block_masks: BlockMasks | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention output (1, T, heads, D) for query, key, value (1, heads, T, D) of a packed row.

    With ``block_masks`` it is computed by FlexAttention.
    """
    if packed_row is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    if block_masks is not None and not options.get("dropout"):
        flexible, _ = flex_attention_forward(module, query, key, value, block_masks[sliding_window], **options)
        return flexible, None
    keys, values = (torch.split(each, list(packed_row.segments), dim=2) for each in (key, value))
    queries = torch.split(query, [chunk.new for chunk in packed_row.chunks], dim=2)
    outputs = []
    for chunk, part in zip(packed_row.chunks, queries, strict=True):
        mask = packed_row.mask(chunk, sliding_window)
        key, value = (torch.cat([each[index] for index in chunk.path], dim=2) for each in (keys, values))
        outputs.append(sdpa_attention_forward(module, part, key, value, mask, **options)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class BlockMasks(dict[int | None, BlockMask]):
    """FlexAttention's block masks of one packed row, by the layer's sliding window; each made once."""

    def __init__(self, row: PackedRow) -> None:
        super().__init__()
        self._row = row

    def __missing__(self, window: int | None) -> BlockMask:
        self[window] = _block_mask(self._row, window)
        return self[window]


def _block_mask(row: PackedRow, window: int | None) -> BlockMask:
    """Each column of ``row`` attends to its own path up to itself, no further back than the ``window``."""
    width = row.input_ids.shape[1]
    chunk, on_path = _paths(row)
    position = row.position_ids[0]
    back = width if window is None else window

    def visible(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = position[query] - position[key]
        return on_path[chunk[query], key] & (distance >= 0) & (distance < back)

    return create_block_mask(visible, None, None, width, width, device=row.input_ids.device)


def _paths(row: PackedRow) -> tuple[Tensor, Tensor]:
    """The chunk that each column (T) belongs to, and which columns are on each chunk's path (chunks, T)."""
    device = row.input_ids.device
    starts = [0, *accumulate(row.segments)]
    on_path = torch.zeros(len(row.chunks), starts[-1], dtype=torch.bool)
    for number, chunk in enumerate(row.chunks):
        for segment in chunk.path:
            on_path[number, starts[segment] : starts[segment + 1]] = True
    sizes = torch.tensor([chunk.new for chunk in row.chunks])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device), on_path.to(device)
