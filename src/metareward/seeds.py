"""Seeds derived by hashing the run's seed and a purpose, so that a resumed run makes the same random choices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every part of ``purpose``, in order."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (seed, *purpose):
        token = f"{type(part).__name__}:{part}".encode()
        digest.update(len(token).to_bytes(4, "big") + token)
    return int.from_bytes(digest.digest(), "big") >> 1


def pick(options: Sequence[T], seed: int) -> T:
    """One of ``options`` (not empty) by ``seed``, to break ties."""
    return options[seed % len(options)]
