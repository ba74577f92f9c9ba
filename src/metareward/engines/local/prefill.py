"""Chunked prefill with prefix caching: chunks that another slot holds already are copied instead of computed.

Judgments of one prompt share the rubric and the question; meta-judgments of one answer share nearly everything. A whole
chunk is identified by a digest of all tokens up to its end. A chunk that some slot holds is copied, a chunk that is
being computed for another slot is waited for, and only the rest is computed. The KV of a chunk follows from its digest,
so copying changes no result.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from metareward.engines.local.model_runner import Chunk, ModelRunner


@dataclass(slots=True)
class _Prompt:
    """A prompt being prefilled. ``stored``: tokens already in the slot; ``digests``: those of its whole chunks."""

    ids: Sequence[int]
    digests: list[bytes]
    stored: int = 0


class Prefiller:
    """The prompts being prefilled into the slots of one bucket, oldest first."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._prompts: dict[int, _Prompt] = {}
        self._held: dict[int, list[bytes]] = {}
        # The slots that hold each chunk, the latest one last: its request will stay the longest.
        self._holders: dict[bytes, dict[int, None]] = {}

    def add(self, slot: int, ids: Sequence[int]) -> None:
        """Queue a prompt for a slot. Chunks that the slot holds already and that begin this prompt too are kept."""
        size = self._runner.chunk_size
        # The last token is always computed, for its logits, so a chunk that ends with it needs no digest.
        digests = _digests(ids[:-1], size)
        held = self._held.pop(slot, [])
        kept = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(held, digests, strict=False)))
        for digest in held[kept:]:
            del self._holders[digest][slot]
            if not self._holders[digest]:
                del self._holders[digest]
        self._held[slot] = held[:kept]
        self._prompts[slot] = _Prompt(ids, digests, kept * size)

    def prefix_digest(self, slot: int, columns: int) -> bytes:
        """Digest of the first ``columns`` tokens of the slot's prefilled prompt: whole chunks, less than the prompt."""
        return self._held[slot][columns // self._runner.chunk_size - 1]

    @property
    def remaining_chunks(self) -> int:
        """Upper bound of the chunks still to be computed."""
        return sum(
            -(-(len(prompt.ids) - prompt.stored) // self._runner.chunk_size) for prompt in self._prompts.values()
        )

    def run(self, batch: int, padded: bool) -> tuple[Tensor, dict[int, int]]:
        """Run one prefill pass of up to ``batch`` chunks, or with ``padded`` of exactly that many.

        Returns the logits (chunks, V), and for each slot whose prompt is now complete the row of its logits.
        """
        chunks = self._choose(batch)
        logits_BV = self._runner.prefill(chunks, batch if padded else len(chunks))
        complete: dict[int, int] = {}
        for row, chunk in enumerate(chunks):
            prompt = self._prompts[chunk.slot]
            self._hold(chunk.slot, prompt.digests[chunk.start // self._runner.chunk_size :][:1])
            if chunk.end == len(prompt.ids):
                complete[chunk.slot] = row
                del self._prompts[chunk.slot]
        return logits_BV, complete

    def _choose(self, limit: int) -> list[Chunk]:
        """The chunks of the next pass. A prompt waits where another one computes its next chunk in this pass."""
        size, chunks = self._runner.chunk_size, list[Chunk]()
        computing: set[bytes] = set()
        for slot, prompt in self._prompts.items():
            self._copy(slot, prompt)
            while prompt.stored < len(prompt.ids) and len(chunks) < limit:
                digest = prompt.digests[prompt.stored // size :][:1]
                if not computing.isdisjoint(digest):
                    break
                computing.update(digest)
                end = min(prompt.stored + size, len(prompt.ids))
                chunks.append(Chunk(slot, prompt.ids, prompt.stored, end))
                prompt.stored = end
        return chunks

    def _copy(self, slot: int, prompt: _Prompt) -> None:
        """Copy from another slot the longest sequence of further chunks that any slot holds."""
        size = self._runner.chunk_size
        for count in range(len(prompt.digests), prompt.stored // size, -1):
            if holders := self._holders.get(prompt.digests[count - 1]):
                self._runner.cache.copy_prompt(next(reversed(holders)), slot, count * size)
                self._hold(slot, prompt.digests[prompt.stored // size : count])
                prompt.stored = count * size
                return

    def _hold(self, slot: int, digests: list[bytes]) -> None:
        """Note that the slot holds the chunks with these digests."""
        self._held.setdefault(slot, []).extend(digests)
        for digest in digests:
            self._holders.setdefault(digest, {})[slot] = None


def _digests(ids: Sequence[int], size: int) -> list[bytes]:
    """For every whole chunk a digest of all ids up to its end."""
    tokens, digest, digests = np.asarray(ids, np.int64), hashlib.blake2b(digest_size=16), []
    for end in range(size, len(tokens) + 1, size):
        digest.update(tokens[end - size : end].tobytes())
        digests.append(digest.digest())
    return digests
