"""Rows of tokens that begin alike, laid out as one packed row in which no shared prefix is repeated.

The two rows of a preference pair begin with the same prompt, and the prompts of several pairs may begin with the same
rubric. Sorted by their tokens, rows with a common prefix are neighbours, and each adds to the packed row only what its
predecessor doesn't have:

    a a b c d          a a b c d | e f | x y          b stands for "rest of prompt", say
    a a b e f    ->    row 1     | 2   | 3
    a a x y

A token attends to the columns of its own row's tokens up to itself (its *path*), and its position counts along that
path. So every row is computed as if it were alone: a tree of rows, without padding.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from operator import eq

import torch
from torch import Tensor

Span = tuple[int, int]  # columns of the packed row, the end excluded


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one row adds to the packed one: ``new`` columns, the last ones of a path of ``length`` columns.

    ``path`` has the indices of the segments (see `PackedRow`) that the path consists of, in order.
    """

    new: int
    length: int
    path: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """N rows of up to L tokens as one row of T tokens.

    ``input_ids`` and ``position_ids`` are (1, T). ``columns`` is (N, L): the column of each row's tokens, 0 past its
    end. The packed row is the ``chunks`` one after the other. It is also the segments one after the other, whose sizes
    are ``segments``: the longest runs of columns that each path contains as a whole or not at all.
    """

    input_ids: Tensor
    position_ids: Tensor
    columns: Tensor
    chunks: tuple[Chunk, ...]
    segments: tuple[int, ...]
    _masks: dict[tuple[int, int, int], Tensor] = field(default_factory=dict, repr=False)

    def mask(self, chunk: Chunk, window: int | None) -> Tensor | None:
        """(1, 1, new, length), True where the chunk's token attends to the path's column; None: plain causal attention.

        With a sliding ``window`` a token attends to itself and the window - 1 columns of its path before it.
        """
        window = chunk.length if window is None else min(window, chunk.length)
        if chunk.new == chunk.length == window:
            return None
        shape = (chunk.new, chunk.length, window)
        if shape not in self._masks:
            # Causal, aligned at the end of the path, and no further back than the window.
            visible = torch.ones(chunk.new, chunk.length, dtype=torch.bool, device=self.input_ids.device)
            last = chunk.length - chunk.new
            self._masks[shape] = (visible.tril(last) & visible.triu(last - window + 1))[None, None]
        return self._masks[shape]


def pack(input_ids: Tensor, lengths: Tensor) -> PackedRow:
    """Pack (N, L) right-padded rows of ``lengths`` (N)."""
    rows = [row[:length] for row, length in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
    tokens: list[int] = []
    positions: list[int] = []
    columns: list[list[int]] = [[] for _ in rows]
    added: list[tuple[int, list[Span]]] = []  # of each row that adds columns: how many, and its path
    before: list[int] = []
    path: list[int] = []
    for number in sorted(range(len(rows)), key=rows.__getitem__):
        row = rows[number]
        shared = [*map(eq, before, row), False].index(False)  # tokens that both begin with
        path = [*path[:shared], *range(len(tokens), len(tokens) + len(row) - shared)]
        columns[number] = path + [0] * (input_ids.shape[1] - len(row))
        tokens += row[shared:]
        positions += range(shared, len(row))
        if shared < len(row):
            gaps = [place for place, (left, right) in enumerate(pairwise(path), 1) if right != left + 1]
            runs = pairwise([0, *gaps, len(path)])
            added.append((len(row) - shared, [(path[first], path[last - 1] + 1) for first, last in runs]))
        before = row
    edges = sorted({edge for _, spans in added for span in spans for edge in span})
    segment = {edge: index for index, edge in enumerate(edges)}
    chunks = (
        Chunk(
            new=new,
            length=sum(end - start for start, end in spans),
            path=tuple(index for start, end in spans for index in range(segment[start], segment[end])),
        )
        for new, spans in added
    )
    return PackedRow(
        input_ids=torch.tensor([tokens], device=input_ids.device),
        position_ids=torch.tensor([positions], device=input_ids.device),
        columns=torch.tensor(columns, device=input_ids.device),
        chunks=tuple(chunks),
        segments=tuple(end - start for start, end in pairwise(edges)),
    )
