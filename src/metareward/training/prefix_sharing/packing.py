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

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor

Span = tuple[int, int]  # columns of the packed row, the end excluded
Spans = tuple[Span, ...]


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
            self._masks[shape] = _causal_mask(chunk, window, self.input_ids.device)
        return self._masks[shape]


def pack(input_ids: Tensor, lengths: Tensor) -> PackedRow:
    """Pack (N, L) right-padded rows of ``lengths`` (N)."""
    rows = [row[:length] for row, length in zip(input_ids.tolist(), lengths.tolist(), strict=True)]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    packed, paths = _lay_out(rows, order)
    columns = [list(chain.from_iterable(range(*span) for span in paths[number])) for number in range(len(rows))]
    padded = [each + [0] * (input_ids.shape[1] - len(each)) for each in columns]
    edges = sorted({edge for path in paths.values() for span in path for edge in span})
    tokens, positions = zip(*packed, strict=True)
    return PackedRow(
        input_ids=torch.tensor([tokens], device=input_ids.device),
        position_ids=torch.tensor([positions], device=input_ids.device),
        columns=torch.tensor(padded, device=input_ids.device),
        chunks=_chunks([paths[number] for number in order], edges),
        segments=tuple(end - start for start, end in pairwise(edges)),
    )


def _lay_out(rows: Sequence[list[int]], order: Sequence[int]) -> tuple[list[tuple[int, int]], dict[int, Spans]]:
    """The packed row as (token, position), and the path of each row."""
    packed: list[tuple[int, int]] = []
    paths: dict[int, Spans] = {}
    before: int | None = None
    for number in order:
        row = rows[number]
        shared = 0 if before is None else _common_prefix(rows[before], row)
        prefix = () if before is None else _first_columns(paths[before], shared)
        added = (len(packed), len(packed) + len(row) - shared)
        paths[number] = _join((*prefix, added))
        packed += zip(row[shared:], range(shared, len(row)), strict=True)
        before = number
    return packed, paths


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two rows have in common at their beginning."""
    unequal = (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(unequal, min(len(one), len(other)))


def _first_columns(spans: Spans, count: int) -> Spans:
    """The first ``count`` columns of ``spans``."""
    first = []
    for start, end in spans:
        if count > 0:
            first.append((start, min(end, start + count)))
        count -= end - start
    return tuple(first)


def _join(spans: Spans) -> Spans:
    """``spans`` without empty ones, adjacent ones made one."""
    joined: list[Span] = []
    for start, end in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        elif start < end:
            joined.append((start, end))
    return tuple(joined)


def _chunks(paths: Sequence[Spans], edges: Sequence[int]) -> tuple[Chunk, ...]:
    """One chunk for each path that adds columns, in the order of the packed row."""
    segment = {start: index for index, start in enumerate(edges)}
    ends = [max((end for _, end in spans), default=0) for spans in paths]
    laid_out = [0, *accumulate(ends, max)]
    return tuple(
        Chunk(
            new=end - before,
            length=sum(stop - start for start, stop in spans),
            path=tuple(index for start, stop in spans for index in range(segment[start], segment[stop])),
        )
        for spans, end, before in zip(paths, ends, laid_out[:-1], strict=True)
        if end > before
    )


def _causal_mask(chunk: Chunk, window: int, device: torch.device) -> Tensor:
    """Causal, aligned at the end of the path, and no further back than the window."""
    visible = torch.ones(chunk.new, chunk.length, dtype=torch.bool, device=device)
    last = chunk.length - chunk.new
    return (visible.tril(last) & visible.triu(last - window + 1))[None, None]
