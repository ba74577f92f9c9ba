"""Continuous batching in one shape bucket: when a request finishes, the next one takes over its KV slot.

A shape bucket serves requests of one shape: the same number of samples, token limit and padded prompt length. A
pass covers what is in use: finished samples, empty slots and absent chunks are left out of it. In deterministic mode
that holds where `selfcheck` has found that a row's arithmetic doesn't depend on how many others there are (a shape that
is ``compact``); elsewhere every pass has the bucket's full shape. Columns that no slot uses are left out in any case,
because sums with zeros at the end stay the same.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from metareward.engines.base import EngineError
from metareward.engines.local.checkpoint import Checkpoint
from metareward.engines.local.kv_cache import BucketShape, Ints
from metareward.engines.local.model_runner import ROW_MULTIPLE, Chunk, ModelRunner, compact_widths
from metareward.engines.local.sampler import (
    MAX_TOP_LOGPROBS,
    ChoiceTrie,
    RandomCounters,
    TopLogprobsBuffer,
    mask_rows,
    pad_tokens,
    sample,
)
from metareward.engines.local.shared_prefix import PrefixKeys
from metareward.types import Completion, Sampling

OpenPaths = dict[int, tuple[ChoiceTrie, tuple[int, ...]]]
# An unpadded prefill pass has a fixed cost: about this fraction of a decode step.
_SMALL_PASS = 8


@dataclass(frozen=True, slots=True)
class Request:
    """``n`` completions of a tokenised prompt; exactly one of ``deliver`` and ``fail`` will be called.

    ``trie``: the choices that the completions are among, if ``sampling`` has any. ``key``: what the request is
    cancelled by; neither is called then.
    """

    ids: tuple[int, ...]
    sampling: Sampling
    n: int
    deliver: Callable[[tuple[Completion, ...]], None]
    fail: Callable[[EngineError], None]
    trie: ChoiceTrie | None = None
    key: int | None = None


class BatchState:
    """Per-slot decoding state, on the host: sampling parameters, generated tokens, stop positions.

    Rows ``slot * n`` to ``slot * n + n - 1`` are a slot's samples.
    """

    def __init__(self, checkpoint: Checkpoint, shape: BucketShape) -> None:
        self.requests: dict[int, Request] = {}
        self.lengths_G = np.zeros(shape.slots, np.int64)
        self.counts_G = np.zeros(shape.slots, np.int64)
        self.tokens_R = np.zeros(shape.rows, np.int64)
        self._checkpoint = checkpoint
        self._shape = shape
        self._stop_ids = np.array(sorted(checkpoint.stop_ids), np.int64)
        self._temperature_R = np.ones(shape.rows, np.float32)
        self._top_p_R = np.ones(shape.rows, np.float32)
        self._seeds_R = np.zeros(shape.rows, np.uint64)
        self._samples_R = np.tile(np.arange(shape.samples, dtype=np.uint64), shape.slots)
        self._generated_RT = np.zeros((shape.rows, shape.suffix), np.int64)
        self._stops_R = np.full(shape.rows, -1, np.int64)
        self._top_logprobs_G = np.zeros(shape.slots, np.int64)
        self._top_logprobs_buffer: TopLogprobsBuffer | None = None
        self._tries: dict[int, ChoiceTrie] = {}
        self._cancelled = set[int]()

    @property
    def free_slots(self) -> list[int]:
        """Slots without a request, lowest first."""
        return [slot for slot in range(self._shape.slots) if slot not in self.requests]

    @property
    def decoding_slots(self) -> Ints:
        """Slots whose request has its first tokens, lowest first."""
        return self.counts_G.nonzero()[0]

    def assign(self, slot: int, request: Request) -> None:
        """Give a free slot to a request."""
        rows, sampling = self.rows_of(np.array([slot])), request.sampling
        self.requests[slot] = request
        self.lengths_G[slot], self.counts_G[slot] = len(request.ids), 0
        self._temperature_R[rows] = sampling.temperature
        self._top_p_R[rows] = sampling.top_p
        self._seeds_R[rows] = np.uint64(sampling.seed & (2**64 - 1))
        self._stops_R[rows] = -1
        self._top_logprobs_G[slot] = sampling.top_logprobs
        if request.trie is not None:
            self._tries[slot] = request.trie
        if sampling.top_logprobs and self._top_logprobs_buffer is None:
            self._top_logprobs_buffer = TopLogprobsBuffer(self._shape.rows, self._shape.suffix, MAX_TOP_LOGPROBS)

    def cancel(self, slot: int) -> None:
        """Free a slot, one that is being prefilled when that has ended; nothing is delivered."""
        self._cancelled.add(slot)
        if self.counts_G[slot]:
            self._finish(slot)
        else:
            self._stops_R[self.rows_of(np.array([slot]))] = 0

    def rows_of(self, slots_B: Ints) -> Ints:
        """All rows of these slots."""
        rows: Ints = (slots_B[:, None] * self._shape.samples + np.arange(self._shape.samples)).ravel()
        return rows

    def unfinished_rows(self, slots_B: Ints) -> Ints:
        """The rows of these slots whose sample goes on, and others up to a multiple of `ROW_MULTIPLE` or all rows."""
        going, rows = np.zeros(self._shape.rows, bool), self.rows_of(slots_B)
        going[rows] = self._stops_R[rows] < 0
        going[(~going).nonzero()[0][: -int(going.sum()) % ROW_MULTIPLE]] = True
        found: Ints = going.nonzero()[0]
        return found

    def sample(self, logits_RV: Tensor, rows: Ints, inputs_RD: Tensor | None = None) -> Ints:
        """Sample the next token of each of these rows from its logits.

        Where a request has choices, the logits of tokens that continue none of them become -inf. With the output
        embedding's ``inputs_RD`` choices and the probabilities that a request wants are by the logits of `VerdictHead`.
        """
        slots_R = rows // self._shape.samples
        open_paths = self._open_paths(rows) if self._tries else {}
        exact_RV = logits_RV
        if inputs_RD is not None and (open_paths or self._top_logprobs_G.any()):
            exact_RV = self._exact_logits(logits_RV, inputs_RD, slots_R, open_paths)
        if open_paths:
            mask_rows(exact_RV, {place: trie.next_tokens[path] for place, (trie, path) in open_paths.items()})
        steps = self.counts_G[slots_R].astype(np.uint64)
        if self._top_logprobs_buffer is not None:
            wanted = self._top_logprobs_G[slots_R] > 0
            chosen = exact_RV[torch.from_numpy(wanted)]
            self._top_logprobs_buffer.store(chosen, rows[wanted], steps[wanted].astype(np.int64))
        if exact_RV is not logits_RV:  # a text is the same whether its probabilities are wanted or not
            places = torch.tensor(list(open_paths), dtype=torch.int64, device=logits_RV.device)
            logits_RV = logits_RV.float().index_copy(0, places, exact_RV[places])
        counters = RandomCounters(self._seeds_R[rows], self._samples_R[rows], steps)
        tokens: Ints = sample(logits_RV, self._temperature_R[rows], self._top_p_R[rows], counters).cpu().numpy()
        return tokens

    def _exact_logits(self, logits_RV: Tensor, inputs_RD: Tensor, slots_R: Ints, open_paths: OpenPaths) -> Tensor:
        """The logits in float32, in rows that want them with those of `VerdictHead`; a row doesn't change others."""
        head = self._checkpoint.verdict_head
        assert head is not None, "without one there are no inputs"
        wanted = self._top_logprobs_G[slots_R] > 0
        wanted[list(open_paths)] = True
        top_RA = logits_RV.topk(min(head.WIDTH, logits_RV.shape[1]), dim=-1).indices.cpu().numpy()
        tokens: list[Ints] = [*top_RA]
        for row, (trie, path) in open_paths.items():
            tokens[row] = trie.next_tokens[path]
        tokens_RA = torch.from_numpy(pad_tokens(tokens, head.WIDTH)).to(logits_RV.device)
        chosen, exact_RV = torch.from_numpy(wanted).to(logits_RV.device), logits_RV.float()
        exact_RV[chosen] = exact_RV[chosen].scatter(1, tokens_RA[chosen], head.logits(inputs_RD, tokens_RA)[chosen])
        return exact_RV

    def append(self, slots_B: Ints, tokens_R: Ints) -> None:
        """Append a token to each row of these slots; deliver finished requests and free their slots."""
        rows, step_R = self.rows_of(slots_B), np.repeat(self.counts_G[slots_B], self._shape.samples)
        self.tokens_R[rows] = tokens_R
        self._generated_RT[rows, step_R] = tokens_R
        stops = np.isin(tokens_R, self._stop_ids) & (self._stops_R[rows] < 0)
        self._stops_R[rows[stops]] = step_R[stops]
        self.counts_G[slots_B] += 1
        for place, (trie, path) in (self._open_paths(rows) if self._tries else {}).items():
            if path not in trie.next_tokens:  # a whole choice
                self._stops_R[rows[place]] = len(path)
        stopped = (self._stops_R[rows] >= 0).reshape(-1, self._shape.samples).all(axis=1)
        for slot in slots_B[stopped | (self.counts_G[slots_B] >= self._shape.suffix)]:
            self._finish(int(slot))

    def _finish(self, slot: int) -> None:
        request = self.requests.pop(slot)
        self._tries.pop(slot, None)
        self.lengths_G[slot] = self.counts_G[slot] = self._top_logprobs_G[slot] = 0
        if slot in self._cancelled:
            self._cancelled.remove(slot)
            return
        request.deliver(tuple(self._completion(int(row), request) for row in self.rows_of(np.array([slot]))))

    def _completion(self, row: int, request: Request) -> Completion:
        stop, decode, buffer = int(self._stops_R[row]), self._checkpoint.decode, self._top_logprobs_buffer
        ids, count = self._generated_RT[row, : stop if stop >= 0 else None].tolist(), request.sampling.top_logprobs
        steps = buffer.steps(row, ids, count, decode) if buffer and count else ()
        text = decode(ids) if request.trie is None else request.trie.texts[tuple(ids)]
        return Completion(text, "stop" if stop >= 0 else "length", len(ids), steps)

    def _open_paths(self, rows: Ints) -> OpenPaths:
        """By place in ``rows``: the trie and the tokens so far of each row with choices that isn't complete."""
        found = {}
        for place, row in enumerate(rows.tolist()):
            slot = row // self._shape.samples
            trie = self._tries.get(slot)
            if trie is not None and self._stops_R[row] < 0:
                found[place] = trie, tuple(self._generated_RT[row, : self.counts_G[slot]].tolist())
        return found


@dataclass(slots=True)
class _Prompt:
    """A prompt being prefilled. ``stored``: tokens already in the slot; ``digests``: those of its whole chunks."""

    ids: Sequence[int]
    digests: list[bytes]
    stored: int = 0


class Prefiller:
    """The prompts being prefilled into the slots of one bucket, oldest first.

    Chunks that another slot holds already are copied instead of computed (prefix caching): judgments of one prompt
    share the rubric and the question, meta-judgments of one answer nearly everything. A whole chunk is identified by a
    digest of all tokens up to its end. A chunk that some slot holds is copied, a chunk that is being computed for
    another slot is waited for, and only the rest is computed. The KV of a chunk follows from its digest, so copying
    changes no result.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._prompts: dict[int, _Prompt] = {}
        self._held: dict[int, list[bytes]] = {}
        # The slots that hold each chunk, the latest one last: its request will stay the longest.
        self._holders: dict[bytes, dict[int, None]] = {}

    def add(self, slot: int, ids: Sequence[int]) -> None:
        """Queue a prompt for a slot. Chunks that the slot holds already and that begin this prompt too are kept."""
        size = self._runner.chunk_size
        # For every whole chunk a digest of all ids up to its end. The last token is always computed, for its logits, so
        # a chunk that ends with it needs no digest.
        tokens, digest, digests = np.asarray(ids[:-1], np.int64), hashlib.blake2b(digest_size=16), list[bytes]()
        for end in range(size, len(tokens) + 1, size):
            digest.update(tokens[end - size : end].tobytes())
            digests.append(digest.digest())
        held = self._held.pop(slot, [])
        kept = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(held, digests, strict=False)))
        for dropped in held[kept:]:
            del self._holders[dropped][slot]
            if not self._holders[dropped]:
                del self._holders[dropped]
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

    def run(self, widths: Sequence[int]) -> tuple[Tensor, dict[int, int]]:
        """Run one prefill pass of as many chunks as one of ``widths`` (ascending), absent ones included.

        Returns the logits (chunks, V), and for each slot whose prompt is now complete the row of its logits.
        """
        chunks = self._choose(widths[-1])
        logits_BV = self._runner.prefill(chunks, next(width for width in widths if width >= len(chunks)))
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


class ShapeBucket:
    """Requests of one shape, waiting or in a slot. A prefill pass has ``batch`` chunks of ``chunk_size`` tokens."""

    def __init__(
        self, checkpoint: Checkpoint, shape: BucketShape, *, chunk_size: int, batch: int, deterministic: bool
    ) -> None:
        self.shape = shape
        self._runner = ModelRunner(checkpoint, shape, chunk_size)
        self._prefiller = Prefiller(self._runner)
        self._state = BatchState(checkpoint, shape)
        self._batch = batch
        self._deterministic = deterministic
        self._padded = deterministic and not shape.compact
        narrow = compact_widths(batch) if deterministic else range(1, batch + 1)
        self._widths: Sequence[int] = (batch,) if self._padded else narrow
        self._waiting: deque[Request] = deque()
        self._delayed_tokens = 0

    def add(self, request: Request) -> None:
        """Queue the request for a slot."""
        self._waiting.append(request)

    def cancel(self, key: int) -> None:
        """Forget the requests of this ``key``."""
        self._waiting = deque(request for request in self._waiting if request.key != key)
        for slot, request in tuple(self._state.requests.items()):
            if request.key == key:
                self._state.cancel(slot)

    @property
    def occupancy(self) -> float:
        """Fraction of the slots that are taken or could be taken at once; 0 when there is nothing to do."""
        return min(1.0, (len(self._state.requests) + len(self._waiting)) / self.shape.slots)

    def fail_all(self, error: EngineError) -> None:
        """Fail every unfinished request; the bucket can't be used afterwards."""
        for request in (*self._state.requests.values(), *self._waiting):
            request.fail(error)

    def run_pass(self) -> None:
        """Run one pass: a prefill pass if it is full or has been delayed for long enough, else a decode step."""
        state = self._state
        for slot in state.free_slots[: len(self._waiting)]:
            request = self._waiting.popleft()
            state.assign(slot, request)
            self._prefiller.add(slot, request.ids)
        chunks, decoding = self._prefiller.remaining_chunks, state.decoding_slots
        if chunks and (not len(decoding) or self._delayed_tokens >= self._wasted_tokens(chunks)):
            self._delayed_tokens = 0
            self._prefill()
        else:
            # A step delays the requests that aren't prefilled yet. If no others wait for a slot, these requests may
            # prolong the bucket's work by all their steps, so the delay counts as if it concerned all slots.
            delayed = len(state.requests) - len(decoding) if self._waiting else self.shape.slots
            self._delayed_tokens += delayed * self.shape.samples
            self._decode(decoding)

    def _wasted_tokens(self, chunks: int) -> int:
        """What a prefill pass of so few chunks wastes, in tokens: it is delayed until waiting has cost as much."""
        if chunks >= self._batch:
            return 0
        if self._padded:
            return (self._batch - chunks) * self._runner.chunk_size
        return self.shape.rows // _SMALL_PASS

    def _prefill(self) -> None:
        """Run a prefill pass, and sample the first tokens of the prompts that it completes."""
        logits_BV, complete = self._prefiller.run(self._widths)
        if not complete:
            return
        slots, rows = np.array(list(complete)), np.array(list(complete.values()))
        if self._padded:
            # Repeated to a fixed shape; samples after the first repetition are dropped.
            slots, rows = np.resize(slots, self._batch), np.resize(rows, self._batch)
        logits_RV, inputs_RD = (
            None if each is None else each[rows].repeat_interleave(self.shape.samples, dim=0)
            for each in (logits_BV, self._runner.head_inputs)
        )
        assert logits_RV is not None
        tokens_R = self._state.sample(logits_RV, self._state.rows_of(slots), inputs_RD)
        self._state.append(slots[: len(complete)], tokens_R[: len(complete) * self.shape.samples])

    def _decode(self, decoding: Ints) -> None:
        """Add one token to each unfinished sample of every prefilled request."""
        state, steps_G = self._state, np.maximum(self._state.counts_G - 1, 0)
        slots, digest = decoding.tolist(), self._prefiller.prefix_digest
        keys: list[PrefixKeys] = [{slot: digest(slot, point) for slot in slots} for point in self.shape.split_points]
        rows = state.unfinished_rows(decoding) if self.shape.compact else None
        used, keys = self._in_use(decoding, keys, int(decoding[-1] if rows is None else rows[-1] // self.shape.samples))
        rows = np.arange(used.rows) if rows is None else rows
        logits_RV = self._runner.decode(state.tokens_R, state.lengths_G, steps_G, used, keys, rows)
        tokens_R = state.tokens_R.copy()
        tokens_R[rows] = state.sample(logits_RV, rows, self._runner.head_inputs)
        state.append(decoding, tokens_R[state.rows_of(decoding)])

    def _in_use(self, decoding: Ints, keys: list[PrefixKeys], last: int) -> tuple[BucketShape, list[PrefixKeys]]:
        """The part of the shape that a decode step needs, up to slot ``last``, and the prefix keys that it uses."""
        lengths, counts = self._state.lengths_G[decoding], self._state.counts_G[decoding]
        used = self.shape.trimmed(int(lengths.max()), int(counts.max()))
        if not self._padded:
            used = replace(used, slots=last + 1)
        if self._deterministic:
            return used, keys
        # A prefix that most slots don't share is cheaper to read with the rest of the prompt.
        shared = sum(2 * len(set(each.values())) <= len(each) for each in keys)
        return replace(used, split_points=used.split_points[:shared]), keys[:shared]
