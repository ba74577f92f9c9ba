from __future__ import annotations

import hashlib

import builders  # noqa: F401  (sets hypothesis up)
from hypothesis import given
from hypothesis import strategies as st

from metareward.seeds import derive, pick

_PARTS = st.lists(st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=6)), max_size=3)


def test_seeds_stay_what_they_are() -> None:
    """Records on disk and resumed runs depend on these numbers."""
    assert derive(0) == 5238861445096578620
    assert derive(7, "answers", 3) == 5669650666778456918
    message = b"\0\0\0\x06int:-1" + b"\0\0\0\x06str:\xc3\xbc"
    assert derive(-1, "ü") == int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "big") // 2


@given(st.integers(0, 2**63), _PARTS, _PARTS)
def test_other_purposes_give_other_seeds(seed: int, one: list[str | int], other: list[str | int]) -> None:
    assert 0 <= derive(seed, *one) < 2**63
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (derive(seed, *one) == derive(seed, *other)) == same


def test_parts_are_kept_apart() -> None:
    purposes: list[tuple[str | int, ...]] = [("ab", "c"), ("a", "bc"), ("abc",), (1, "1"), ("1", 1), ("1", "1"), ()]
    assert len({derive(5, *purpose) for purpose in purposes}) == len(purposes)


def test_a_pick_goes_round_the_options() -> None:
    assert [pick("abc", seed) for seed in (0, 1, 2, 3, 3 * 10**17 + 1)] == ["a", "b", "c", "a", "b"]
