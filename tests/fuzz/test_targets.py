"""A slice of what `make fuzz` tries: changed seeds of every target; nothing but what a user is told may come out."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from fuzz_targets import TARGETS, Target, change_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

_PIECES = (
    b'0 -1 1e308 NaN Infinity null true [] {} "" {{ }} {% %} : , \n \r \x00 \x1b[31m \xff \xed\xa0\x80 \xe2\x80\xae '
    b"\xef\xbb\xbf &a *a << !!python/object:os.system ../ 99999999999999999999 [[[[ \\ud800 Score: Judgment"
).split(b" ")


def changed(data: bytes, number: int, others: Sequence[bytes]) -> bytes:
    """``data`` with a few bytes flipped, pieces put in, taken out, doubled, or crossed with another seed."""
    rng = random.Random(number)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randint(0, len(data)), rng.randint(0, len(data))))
        how = rng.randrange(5)
        if how == 0 and data:
            place = rng.randrange(len(data))
            data = data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        elif how == 1:
            data = data[:at] + rng.choice(_PIECES) + data[at:]
        elif how == 2:
            data = data[:at] + data[to:]
        elif how == 3:
            data = data[:to] + data[at : at + 200] + data[to:]
        else:
            data = data[:at] + rng.choice(others)[-200:] + data[to:]
    return data[:8192]


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_changed_inputs_are_read_or_refused(target: Target) -> None:
    seeds = list(target.seeds())
    for number in range(60):
        seed = seeds[number % len(seeds)]
        target.run(changed(seed, number, seeds))
        target.run(change_json(seed, random.Random(number)) or seed)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_deep_nesting_is_refused(target: Target) -> None:
    seed = next(iter(target.seeds()))
    for opening in (b"[", b'{"a":', b"- ", b"{{ ("):
        target.run(opening * 1200)
        target.run(seed[: len(seed) // 2] + opening * 1200 + seed[len(seed) // 2 :])


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(target: Target, data: bytes) -> None:
    target.run(data)
