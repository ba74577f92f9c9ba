"""Rows of tokens that begin alike, laid out as one row in which nothing that is shared stands twice.

The two rows of a preference pair begin with the same prompt, and the prompts of several pairs may begin with the same
rubric. Sorted by their tokens, rows with a common beginning stand together, and each adds to the packed row only
what the one before it doesn't have:

    a a b c d          a a b c d | e f | x y          b stands for "rest of prompt", say
    a a b e f    ->    row 1     | 2   | 3
    a a x y

A token sees the columns of its own row's tokens up to itself (its *path*), and counts its position along that path. So
every row is computed as if it stood alone: a tree of rows, and no padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

Run = tuple[int, int]  # columns of the packed row, the end excluded
Runs = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """What one row adds to the packed one: ``new`` columns, the last ones of a path of ``length`` columns.

    ``path`` names the segments (see `PackedRow`) the path goes through, in order.
    """

    new: int
    length: int
    path: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """N rows of up to L tokens as one row of T tokens.

    ``input_ids`` and ``positions`` are (1, T). ``places`` is (N, L): the column of each row's tokens, 0 past its end.
    ``pieces`` stand one after the other in the row; ``segments`` are the sizes of the stretches that paths share or
    don't, one after the other too.
    """

    input_ids: Tensor
    positions: Tensor
    places: Tensor
    pieces: tuple[Piece, ...]
    segments: tuple[int, ...]
    _masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, repr=False)

    def mask(self, piece: Piece, window: int | None) -> Tensor | None:
        """(1, 1, new, length), True where the piece's token sees the path's column; None: plain causal attention.

        With a ``window`` a token sees itself and the window - 1 columns of its path before it.
        """
        window = piece.length if window is None else min(window, piece.length)
        if piece.new == piece.length == window:
            return None
        shape = (piece.new, piece.length, window)
        if shape not in self._masks:
            self._masks[shape] = _band(piece, window, self.input_ids.device)
        return self._masks[shape]


def pack(input_ids: Tensor, lengths: Tensor) -> PackedRow:
    """Lay out (N, L) right-padded rows of ``lengths`` (N)."""
    rows = [row[:length] for row, length in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    columns, runs = _columns(rows, order)
    places = [list(chain.from_iterable(range(*run) for run in runs[number])) for number in range(len(rows))]
    padded = [each + [0] * (input_ids.shape[1] - len(each)) for each in places]
    cuts = sorted({edge for each in runs.values() for run in each for edge in run})
    tokens, positions = zip(*columns, strict=True)
    return PackedRow(
        input_ids=torch.tensor([tokens], device=input_ids.device),
        positions=torch.tensor([positions], device=input_ids.device),
        places=torch.tensor(padded, device=input_ids.device),
        pieces=_pieces([runs[number] for number in order], cuts),
        segments=tuple(end - start for start, end in pairwise(cuts)),
    )


def _columns(rows: Sequence[list[int]], order: Sequence[int]) -> tuple[list[tuple[int, int]], dict[int, Runs]]:
    """The packed row as (token, position), and through which columns each row goes."""
    columns: list[tuple[int, int]] = []
    runs: dict[int, Runs] = {}
    before: int | None = None
    for number in order:
        row = rows[number]
        shared = 0 if before is None else _common(rows[before], row)
        old = () if before is None else _beginning(runs[before], shared)
        added = (len(columns), len(columns) + len(row) - shared)
        runs[number] = _joined((*old, added))
        columns += zip(row[shared:], range(shared, len(row)), strict=True)
        before = number
    return columns, runs


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    unequal = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unequal, min(len(one), len(other)))


def _beginning(runs: Runs, columns: int) -> Runs:
    """The first ``columns`` columns of ``runs``."""
    kept = []
    for start, end in runs:
        if columns > 0:
            kept.append((start, min(end, start + columns)))
        columns -= end - start
    return tuple(kept)


def _joined(runs: Runs) -> Runs:
    """``runs`` without empty ones, those that touch made one."""
    joined: list[Run] = []
    for start, end in runs:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return tuple(joined)


def _pieces(paths: Sequence[Runs], cuts: Sequence[int]) -> tuple[Piece, ...]:
    """One piece for each path that adds columns, in the order of the packed row."""
    number = {start: index for index, start in enumerate(cuts)}
    ends = [max((end for _, end in runs), default=0) for runs in paths]
    known = [0, *accumulate(ends, max)]
    return tuple(
        Piece(
            new=end - before,
            length=sum(stop - start for start, stop in runs),
            path=tuple(index for start, stop in runs for index in range(number[start], number[stop])),
        )
        for runs, end, before in zip(paths, ends, known[:-1], strict=True)
        if end > before
    )


def _band(piece: Piece, window: int, device: torch.device) -> Tensor:
    """Causal, aligned at the end of the path, and no further back than the window."""
    seen = torch.ones(piece.new, piece.length, dtype=torch.bool, device=device)
    last = piece.length - piece.new
    return (seen.tril(last) & seen.triu(last - window + 1))[None, None]
