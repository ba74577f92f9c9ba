from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from metareward.training.prefix_sharing.packing import PackedRow, pack

_TOKENS = st.integers(1, 3)  # few, so that rows begin alike
_ROWS = st.lists(st.lists(_TOKENS, min_size=1, max_size=9), min_size=1, max_size=7)


def packed(*rows: list[int]) -> PackedRow:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return pack(ids, torch.tensor([len(row) for row in rows]))


def seen(row: PackedRow, window: int | None = None) -> torch.Tensor:
    """(T, T): which column of the packed row each one sees, by the pieces' paths and masks."""
    starts = [sum(row.segments[:index]) for index in range(len(row.segments))]
    columns = [list(range(start, start + size)) for start, size in zip(starts, row.segments, strict=True)]
    total = torch.zeros(row.input_ids.shape[1], row.input_ids.shape[1], dtype=torch.bool)
    begun = 0
    for piece in row.chunks:
        path = torch.tensor([column for index in piece.path for column in columns[index]])
        mask = row.mask(piece, window)
        causal = torch.ones(piece.new, piece.length, dtype=torch.bool).tril() if mask is None else mask[0, 0]
        for token in range(piece.new):
            total[begun + token, path[causal[token]]] = True
        begun += piece.new
    return total


def test_a_pair_by_hand() -> None:
    row = packed([7, 8, 1, 2], [7, 8, 3])
    assert row.input_ids.tolist() == [[7, 8, 1, 2, 3]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert row.columns.tolist() == [[0, 1, 2, 3], [0, 1, 4, 0]]
    assert seen(row).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert seen(row, window=2).int().tolist()[2:] == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]


def test_the_first_of_a_family_needs_no_mask() -> None:
    row = packed([7, 8, 1], [7, 8, 3], [9, 1])
    assert [(piece.new, piece.length) for piece in row.chunks] == [(3, 3), (1, 3), (2, 2)]
    assert [row.mask(piece, None) is None for piece in row.chunks] == [True, False, True]


def test_prompts_that_begin_alike_share_that_too() -> None:
    row = packed([1, 1, 2, 5], [1, 1, 3, 6], [1, 1, 2, 7], [1, 1, 3, 8])
    assert row.input_ids.shape == (1, 8)


def test_a_row_twice_is_there_once() -> None:
    row = packed([4, 5], [4, 5])
    assert row.input_ids.tolist() == [[4, 5]]
    assert len(row.chunks) == 1
    assert row.columns.tolist() == [[0, 1], [0, 1]]


@given(_ROWS)
def test_every_token_sees_its_own_row_up_to_itself_and_nothing_else(rows: list[list[int]]) -> None:
    row = packed(*rows)
    assert sum(piece.new for piece in row.chunks) == sum(row.segments) == row.input_ids.shape[1]
    sees = seen(row)
    for number, tokens in enumerate(rows):
        places = row.columns[number, : len(tokens)]
        assert row.input_ids[0, places].tolist() == tokens
        assert row.position_ids[0, places].tolist() == list(range(len(tokens)))
        for at in range(len(tokens)):
            assert sees[places[at]].nonzero()[:, 0].tolist() == sorted(places[: at + 1].tolist())


@given(_ROWS)
def test_no_beginning_stands_twice(rows: list[list[int]]) -> None:
    beginnings = {tuple(tokens[: at + 1]) for tokens in rows for at in range(len(tokens))}
    assert packed(*rows).input_ids.shape[1] == len(beginnings)
