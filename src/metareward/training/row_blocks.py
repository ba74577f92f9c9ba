"""A packed row as FlexAttention's block mask, which skips whatever no token of a block of queries sees."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from metareward.training.packing import PackedRow


class RowBlocks(dict[int | None, BlockMask]):
    """The block masks of one packed row, by the window of the layer that asks; each made once."""

    def __init__(self, row: PackedRow) -> None:
        super().__init__()
        self._row = row

    def __missing__(self, window: int | None) -> BlockMask:
        self[window] = block_mask(self._row, window)
        return self[window]


def block_mask(row: PackedRow, window: int | None) -> BlockMask:
    """What each column of ``row`` sees: its own path up to itself, no further back than the ``window``."""
    width = row.input_ids.shape[1]
    piece, on_path = _paths(row)
    position = row.positions[0]
    back = width if window is None else window

    def sees(_: Tensor, __: Tensor, query: Tensor, key: Tensor) -> Tensor:
        away = position[query] - position[key]
        return on_path[piece[query], key] & (away >= 0) & (away < back)

    return create_block_mask(sees, None, None, width, width, device=row.input_ids.device)


def _paths(row: PackedRow) -> tuple[Tensor, Tensor]:
    """The piece that each column (T) belongs to, and which columns are on the path of each piece (pieces, T)."""
    device = row.input_ids.device
    starts = [0, *accumulate(row.segments)]
    on_path = torch.zeros(len(row.pieces), starts[-1], dtype=torch.bool)
    for number, piece in enumerate(row.pieces):
        for segment in piece.path:
            on_path[number, starts[segment] : starts[segment + 1]] = True
    sizes = torch.tensor([piece.new for piece in row.pieces])
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes).to(device), on_path.to(device)
