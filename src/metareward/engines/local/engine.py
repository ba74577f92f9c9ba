"""Runs one model: `EngineCore` batches requests by shape, `LocalEngine` runs a core in a thread of this process.

Every request belongs to a shape bucket, which follows from the request and the engine's settings alone: the number of
samples, the token limit, and the prompt's length padded to a grid. So the shape of all arithmetic done for a request,
and with it every rounding, doesn't depend on the other requests.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from metareward.engines.base import EngineError, PassError, require_room
from metareward.engines.chat import ChatTemplateError
from metareward.engines.local.checkpoint import Checkpoint, load
from metareward.engines.local.kv_cache import BucketShape, kv_cache_memory
from metareward.engines.local.sampler import ChoiceTrie
from metareward.engines.local.scheduler import Request, ShapeBucket
from metareward.engines.local.selfcheck import bytes_per_position, check_batch_invariance, check_model
from metareward.text import one_line
from metareward.types import Completion, Message, Messages, ModelRole, Sampling

_LOG = logging.getLogger(__name__)

# Per device: tokens per chunk, and chunks per prefill pass.
_PREFILL_SIZES = {"cpu": (32, 24), "mps": (64, 32), "cuda": (64, 64)}
# A bucket may take so large a part of the memory that this many fit at once.
_CONCURRENT_BUCKETS = 2
# Columns: decode steps cover a multiple of it.
_TRIM = 32
# Tokens: shorter prompts have no split points.
_MIN_SPLIT_PROMPT = 256
# Columns: the prompts of requests for one token are padded to a multiple of it.
_ONE_TOKEN_GRID = 128
# Characters before a choice that may decide its tokens.
_CHOICE_CONTEXT = 32


class EngineCore:
    """Generates completions on one device, one pass at a time. Not thread-safe."""

    def __init__(self, checkpoint: Checkpoint, *, max_num_seqs: int, deterministic: bool, memory: int) -> None:
        """``max_num_seqs``: sequences decoded together, all samples counted; ``memory``: bytes for KV caches."""
        self._checkpoint = checkpoint
        self._max_num_seqs = max_num_seqs
        self._deterministic = deterministic
        self._buckets: dict[BucketShape, ShapeBucket] = {}
        self._checked: set[BucketShape] = set()
        self._batch_dependent: set[BucketShape] = set()
        self._refused: dict[BucketShape, str] = {}
        self._waiting: deque[Request] = deque()
        self._position_bytes = bytes_per_position(checkpoint)
        self._prefill_sizes = _PREFILL_SIZES[checkpoint.device.type]
        # Off the CPU the rounding of a sum may depend on the number of columns.
        self._trim = 0 if deterministic and checkpoint.device.type != "cpu" else _TRIM
        self._memory = memory

    def submit(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        deliver: Callable[[tuple[Completion, ...]], None],
        fail: Callable[[EngineError], None],
        key: int | None = None,
    ) -> None:
        """Accept a request; one of ``deliver`` and ``fail`` is called during this or a later call.

        ``key``: what `cancel` knows it by. Whatever goes wrong while it is encoded, such as a bug of the tokenizer,
        fails this request alone.
        """
        try:
            ids = tuple(self._checkpoint.encode(messages, continue_last=messages[-1].role == "assistant"))
            trie = self._trie(messages[-1], sampling.choices) if sampling.choices else None
            sampling = replace(sampling, max_tokens=trie.steps) if trie else sampling
            require_room(ids, sampling, n, self._checkpoint.context)
        except (EngineError, ChatTemplateError, UnicodeEncodeError) as error:
            fail(EngineError(f"{self._checkpoint.folder}: a request was refused: {error}"))
        except Exception as error:
            fail(EngineError(f"{self._checkpoint.folder}: a request can't be encoded: {_described(error)}"))
        else:
            self._waiting.append(Request(ids, sampling, n, deliver, fail, trie, key))

    def cancel(self, key: int) -> None:
        """Spend nothing more on the request of this ``key``; neither ``deliver`` nor ``fail`` is called any more."""
        self._waiting = deque(request for request in self._waiting if request.key != key)
        for bucket in self._buckets.values():
            bucket.cancel(key)

    def _trie(self, last: Message, choices: Sequence[str]) -> ChoiceTrie:
        """The choices after the open turn of the assistant, or at the beginning of a new one."""
        before = last.content[-_CHOICE_CONTEXT:] if last.role == "assistant" else ""
        texts = self._checkpoint.encode_choices(before, choices)
        try:
            return ChoiceTrie.build(texts, sorted(self._checkpoint.stop_ids))
        except ValueError as error:
            raise EngineError(str(error)) from error

    def run_pass(self) -> bool:
        """Run one pass of the bucket with the highest occupancy. False when there is nothing to do."""
        self._assign_buckets()
        bucket = max(self._buckets.values(), key=lambda bucket: bucket.occupancy, default=None)
        if bucket is None or not bucket.occupancy:
            return False
        # Moved to the end, so that buckets of equal occupancy take turns.
        self._buckets[bucket.shape] = self._buckets.pop(bucket.shape)
        try:
            bucket.run_pass()
        except Exception as error:
            # Mostly out of memory: dropping the bucket frees its memory for the others.
            del self._buckets[bucket.shape]
            bucket.fail_all(PassError(f"{self._checkpoint.folder}: {_described(error)}"))
        return True

    def fail_all(self, error: EngineError) -> None:
        """Fail every unfinished request."""
        for request in self._waiting:
            request.fail(error)
        for bucket in self._buckets.values():
            bucket.fail_all(error)

    def _assign_buckets(self) -> None:
        """Give waiting requests to their buckets, as far as memory allows."""
        for _ in range(len(self._waiting)):
            request = self._waiting.popleft()
            shape = self._shape(request)
            if shape not in self._buckets and not self._make_room(shape):
                self._waiting.append(request)
                continue
            try:
                self._bucket(shape).add(request)
            except EngineError as error:
                request.fail(error)
            except Exception as error:  # mostly out of memory
                request.fail(PassError(f"{self._checkpoint.folder}: {_described(error)}"))

    def _shape(self, request: Request) -> BucketShape:
        n, suffix = request.n, request.sampling.max_tokens
        prompt = _padded_length(len(request.ids))
        if suffix == 1 and self._checkpoint.device.type == "cpu":
            # Nothing is decoded, and prefill reads no column after a prompt's end: questions about one answer share
            # their prefix and fill their passes better in one bucket than in several.
            prompt = -(-prompt // _ONE_TOKEN_GRID) * _ONE_TOKEN_GRID
        slot_bytes = self._position_bytes * (prompt + n * suffix)
        slots = min(self._max_num_seqs // n, self._memory // _CONCURRENT_BUCKETS // slot_bytes)
        compact = self._checkpoint.device.type == "cpu"
        shape = BucketShape(max(1, slots), n, prompt, suffix, self._split_points(n, prompt), self._trim, compact)
        while shape in self._batch_dependent:
            shape = _simpler(shape)
        return shape

    def _split_points(self, n: int, prompt: int) -> tuple[int, ...]:
        """Half of a long prompt, because judge and meta-judge prompts begin alike; more points for single samples.

        Single samples are meta-judgments, some of which have the first judgment in common as well.
        """
        # On other devices launching kernels for every prefix group costs more than sharing saves.
        if prompt < _MIN_SPLIT_PROMPT or self._checkpoint.device.type != "cpu":
            return ()
        chunk_size, eighths = self._prefill_sizes[0], (4, 5, 6) if n == 1 else (4,)
        return tuple(prompt * eighth // 8 // chunk_size * chunk_size for eighth in eighths)

    def _make_room(self, shape: BucketShape) -> bool:
        """Whether memory suffices for a bucket of this shape, after closing idle ones; one bucket alone always fits."""
        needed = shape.positions * self._position_bytes
        for other in [bucket.shape for bucket in self._buckets.values() if not bucket.occupancy]:
            if needed + self._used_memory() > self._memory:
                del self._buckets[other]
        return not self._buckets or needed + self._used_memory() <= self._memory

    def _used_memory(self) -> int:
        return sum(shape.positions for shape in self._buckets) * self._position_bytes

    def _bucket(self, shape: BucketShape) -> ShapeBucket:
        if shape not in self._buckets:
            chunk_size, chunks = self._prefill_sizes
            batch = min(chunks, shape.slots * -(-shape.prompt // chunk_size))
            if self._deterministic and not self._is_batch_invariant(shape, chunk_size, batch):
                return self._bucket(_simpler(shape))
            self._buckets[shape] = ShapeBucket(
                self._checkpoint, shape, chunk_size=chunk_size, batch=batch, deterministic=self._deterministic
            )
        return self._buckets[shape]

    def _is_batch_invariant(self, shape: BucketShape, chunk_size: int, batch: int) -> bool:
        """Whether results don't depend on the rest of the batch. Raises `EngineError` if they do in all simpler shapes.

        That is found by two checks, before anything is warned of, and remembered.
        """
        if shape in self._checked:
            return True
        simplest = replace(shape, compact=False, split_points=(), trim=0)
        if simplest in self._refused:
            raise EngineError(self._refused[simplest])
        try:
            check_batch_invariance(self._checkpoint, shape, chunk_size, batch)
        except EngineError as error:
            if shape == simplest:
                self._refused[shape] = str(error)
                raise
            self._is_batch_invariant(simplest, chunk_size, batch)  # first: if it is refused, no other will do
            if not any(other.compact == shape.compact for other in self._batch_dependent):
                when, what = (
                    ("finished samples are left out of it", "they stay in it")
                    if shape.compact
                    else ("prompts share prefixes", "they do not share")
                )
                _LOG.warning(
                    "%s: on %s in %s results depend on the rest of the batch when %s, so %s, which is slower; fix: set "
                    "engine.deterministic to false, or use another engine.dtype",
                    *(self._checkpoint.folder, self._checkpoint.device, self._checkpoint.dtype, when, what),
                )
            self._batch_dependent.add(shape)
            return False
        self._checked.add(shape)
        return True


def _described(error: Exception) -> str:
    """The error in one line, with its type unless that is PyTorch's usual one."""
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    return f"{kind}{one_line(str(error))}"


def _simpler(shape: BucketShape) -> BucketShape:
    """What to try where a result depends on the batch: full passes, then no split points or trimming either."""
    return replace(shape, compact=False) if shape.compact else replace(shape, split_points=(), trim=0)


def _padded_length(length: int) -> int:
    """``length`` rounded up: to multiples of 32, above 128 of 64, above 512 to four sizes per power of two."""
    power = 1 << (length - 1).bit_length()
    step = max(32, min(64, power // 4), power // 8)
    return -(-length // step) * step


@torch.inference_mode()
def open_core(folder: Path, *, device: str, dtype: str, max_num_seqs: int, deterministic: bool) -> EngineCore:
    """Load and check a model folder. Raises `UserError` naming the folder and the fix."""
    checkpoint = load(folder, device, dtype)
    check_model(checkpoint)
    memory = kv_cache_memory(checkpoint.device)
    return EngineCore(checkpoint, max_num_seqs=max_num_seqs, deterministic=deterministic, memory=memory)


# Requests for a core, as calls of its `submit`, put in by any thread; None ends `serve`.
Inbox = queue.SimpleQueue[Callable[[EngineCore], None] | None]


@torch.inference_mode()
def serve(core: EngineCore, inbox: Inbox) -> None:
    """Submit the requests in ``inbox`` and run passes until None arrives; sleep while there is nothing to do."""
    busy = False
    while True:
        while not busy or not inbox.empty():
            submit = inbox.get()
            if submit is None:
                return
            submit(core)
            busy = True
        busy = core.run_pass()


class LocalEngine:
    """An `Engine` whose model runs in a thread of this process."""

    def __init__(self, core: EngineCore) -> None:
        self._inbox: Inbox = queue.SimpleQueue()
        self._keys = itertools.count()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(core,), name="metareward-engine", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, *, device: str, dtype: str, max_num_seqs: int, deterministic: bool) -> LocalEngine:
        """Load ``folder``, which blocks. Raises `UserError` naming the folder and the fix."""
        core = open_core(folder, device=device, dtype=dtype, max_num_seqs=max_num_seqs, deterministic=deterministic)
        return cls(core)

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002 - one model in all roles
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`. Nothing more is spent on a request whose caller is cancelled."""
        if self._closed.is_set():
            raise EngineError("the local engine is closed")
        loop, key = asyncio.get_running_loop(), next(self._keys)
        future: asyncio.Future[tuple[Completion, ...]] = loop.create_future()

        def settle(outcome: tuple[Completion, ...] | EngineError) -> None:
            if future.done():
                return
            if isinstance(outcome, EngineError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        def deliver(outcome: tuple[Completion, ...] | EngineError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, outcome)

        self._inbox.put(lambda core: core.submit(messages, sampling, n, deliver, deliver, key))
        try:
            return await future
        except asyncio.CancelledError:
            self._inbox.put(lambda core: core.cancel(key))
            raise

    async def aclose(self) -> None:
        """Stop the thread and release the model; unfinished requests fail with `EngineError`."""
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self, core: EngineCore) -> None:
        try:
            serve(core, self._inbox)
        finally:
            self._closed.set()
            core.fail_all(EngineError("the local engine was closed before this request was finished"))
