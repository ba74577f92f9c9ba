"""Reading prompts into slots, where another slot may hold the beginning of a prompt already.

Judgments of one prompt share the rubric and the question, meta-judgments of one answer nearly everything. A whole
piece is known by a digest of all tokens up to its end. A piece that some slot holds is copied; one that is being
read for another slot is waited for; only the rest is read. What is stored of a piece follows from its digest, so
copying changes no result.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from metareward.engines.slots import Piece, Slots


@dataclass(slots=True)
class _Prompt:
    """A prompt on its way into a slot. ``have`` of its tokens are there; ``keys`` are its whole pieces' digests."""

    ids: Sequence[int]
    keys: list[bytes]
    have: int = 0


class Reader:
    """The prompts that are being read into the slots of one lane, oldest first."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._prompts: dict[int, _Prompt] = {}
        self._held: dict[int, list[bytes]] = {}
        # Of each piece the slots that hold it, the latest last: that one will stay longest.
        self._holders: dict[bytes, dict[int, None]] = {}

    def add(self, slot: int, ids: Sequence[int]) -> None:
        """Begin to fill a slot. Of what it held the pieces that this prompt begins with, too, stay."""
        # The last token is always read, for its logits, so a piece that ends with it needs no digest.
        keys = _digests(ids[:-1], self._slots.width)
        held = self._held.pop(slot, [])
        kept = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(held, keys, strict=False)))
        for key in held[kept:]:
            del self._holders[key][slot]
            if not self._holders[key]:
                del self._holders[key]
        self._held[slot] = held[:kept]
        self._prompts[slot] = _Prompt(ids, keys, kept * self._slots.width)

    def digest(self, slot: int, columns: int) -> bytes:
        """Of the first so many tokens of the prompt that was read into a slot: whole pieces, but not all of it."""
        return self._held[slot][columns // self._slots.width - 1]

    @property
    def pieces(self) -> int:
        """How many pieces are still to be read, at most."""
        return sum(-(-(len(prompt.ids) - prompt.have) // self._slots.width) for prompt in self._prompts.values())

    def read(self, batch: int, padded: bool) -> tuple[Tensor, dict[int, int]]:
        """Run one pass of up to ``batch`` pieces, or with ``padded`` of exactly that many.

        Returns the logits (pieces, V), and for each slot that now holds its whole prompt the row of its logits.
        """
        pieces = self._choose(batch)
        logits_BV = self._slots.read(pieces, batch if padded else len(pieces))
        complete: dict[int, int] = {}
        for row, piece in enumerate(pieces):
            prompt = self._prompts[piece.slot]
            self._hold(piece.slot, prompt.keys[piece.start // self._slots.width :][:1])
            if piece.end == len(prompt.ids):
                complete[piece.slot] = row
                del self._prompts[piece.slot]
        return logits_BV, complete

    def _choose(self, most: int) -> list[Piece]:
        pieces: list[Piece] = []
        awaited: set[bytes] = set()
        for slot, prompt in self._prompts.items():
            self._copy(slot, prompt)
            while prompt.have < len(prompt.ids) and len(pieces) < most:
                key = prompt.keys[prompt.have // self._slots.width :][:1]
                if not awaited.isdisjoint(key):
                    break
                awaited.update(key)
                end = min(prompt.have + self._slots.width, len(prompt.ids))
                pieces.append(Piece(slot, prompt.ids, prompt.have, end))
                prompt.have = end
        return pieces

    def _copy(self, slot: int, prompt: _Prompt) -> None:
        """Take over from another slot as many further pieces as one holds."""
        width = self._slots.width
        for count in range(len(prompt.keys), prompt.have // width, -1):
            if holders := self._holders.get(prompt.keys[count - 1]):
                self._slots.copy_prompt(next(reversed(holders)), slot, count * width)
                self._hold(slot, prompt.keys[prompt.have // width : count])
                prompt.have = count * width
                return

    def _hold(self, slot: int, keys: list[bytes]) -> None:
        """Note that the slot holds these pieces."""
        self._held.setdefault(slot, []).extend(keys)
        for key in keys:
            self._holders.setdefault(key, {})[slot] = None


def _digests(ids: Sequence[int], width: int) -> list[bytes]:
    """For every whole piece a digest of all ids up to its end."""
    tokens, digest, digests = np.asarray(ids, np.int64), hashlib.blake2b(digest_size=16), []
    for end in range(width, len(tokens) + 1, width):
        digest.update(tokens[end - width : end].tobytes())
        digests.append(digest.digest())
    return digests
