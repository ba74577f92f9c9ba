from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from metareward.training.batches import LengthSortedBatches


@given(st.lists(st.integers(1, 99), min_size=1, max_size=50), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_is_every_pair_once_and_falls_in_length_inside_each_batch(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    order = LengthSortedBatches(lengths, batch_size, seed=1)
    order.set_epoch(epoch)
    numbers = list(order)
    assert sorted(numbers) == list(range(len(lengths)))
    for first in range(0, len(numbers), batch_size):
        batch = [lengths[number] for number in numbers[first : first + batch_size]]
        assert batch == sorted(batch, reverse=True)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    lengths = [5] * 40
    order = LengthSortedBatches(lengths, 8, seed=1)
    first = list(order)
    assert first == list(order) == list(LengthSortedBatches(lengths, 8, seed=1))
    assert first != list(LengthSortedBatches(lengths, 8, seed=2))
    order.set_epoch(1)
    assert first != list(order)
