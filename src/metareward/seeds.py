"""Randomness is derived, never drawn: seed = f(run seed, what it is for).

A killed and resumed run asks for the same seeds again and so makes the same choices.
"""

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
    """One of ``options`` (not empty), by ``seed``: how ties are broken."""
    return options[seed % len(options)]
