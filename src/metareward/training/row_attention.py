"""Attention in a packed row: each piece of it looks at its own path and at nothing else.

PyTorch's attention takes the pieces one by one, so that no time goes into what a mask would hide: the first of a
family of rows is plain causal attention, every further one asks with its few new tokens only. FlexAttention does all
pieces at once, where there is a GPU for it (it has no backward pass on a CPU) and no dropout.

transformers reaches this through its attention interface, under `NAME`; without a packed row it is PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from metareward.training.packing import PackedRow
from metareward.training.row_blocks import RowBlocks

NAME = "metareward_rows"


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_row: PackedRow | None = None,
    row_blocks: RowBlocks | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention output (1, T, heads, D) for query, key, value (1, heads, T, D) of a packed row.

    With ``row_blocks`` it is computed by FlexAttention.
    """
    if packed_row is None:
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return plain
    if row_blocks is not None and not options.get("dropout"):
        flexible, _ = flex_attention_forward(module, query, key, value, row_blocks[sliding_window], **options)
        return flexible, None
    keys, values = (torch.split(each, list(packed_row.segments), dim=2) for each in (key, value))
    asked = torch.split(query, [piece.new for piece in packed_row.pieces], dim=2)
    seen = []
    for piece, part in zip(packed_row.pieces, asked, strict=True):
        mask = packed_row.mask(piece, sliding_window)
        key, value = (torch.cat([each[index] for index in piece.path], dim=2) for each in (keys, values))
        seen.append(sdpa_attention_forward(module, part, key, value, mask, **options)[0])
    return torch.cat(seen, dim=1), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
