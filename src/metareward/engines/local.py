"""A model folder as an `Engine` inside this process: one thread runs the model, ``complete`` waits for it."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from metareward.engines.checkpoint import load
from metareward.engines.decoder import Decoder, slot_memory
from metareward.engines.engine import EngineError
from metareward.engines.selfcheck import check_model
from metareward.types import Completion, Messages, ModelRole, Sampling

Submit = Callable[[Decoder], None]


@torch.inference_mode()
def open_decoder(folder: Path, *, device: str, dtype: str, rows: int, deterministic: bool) -> Decoder:
    """Load and check a model folder. Raises `UserError` naming the folder and the fix."""
    checkpoint = load(folder, device, dtype)
    check_model(checkpoint)
    return Decoder(checkpoint, rows=rows, deterministic=deterministic, memory=slot_memory(checkpoint.device))


class Inbox:
    """Work for a decoder: put in by any thread, done by the one thread that calls `serve`."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Submit | None] = queue.SimpleQueue()

    def put(self, submit: Submit) -> None:
        """Have the serving thread call ``submit`` with the decoder."""
        self._work.put(submit)

    def close(self) -> None:
        """Have `serve` return when the pass under way is over."""
        self._work.put(None)

    @torch.inference_mode()
    def serve(self, decoder: Decoder) -> None:
        """Run the decoder until `close`; sleep while there is nothing to do."""
        busy = False
        while True:
            while not busy or not self._work.empty():
                submit = self._work.get()
                if submit is None:
                    return
                submit(decoder)
                busy = True
            busy = decoder.advance()


class LocalEngine:
    """Completions from a Hugging Face folder, drawn by a thread of this process."""

    def __init__(self, decoder: Decoder) -> None:
        self._inbox = Inbox()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(decoder,), name="metareward-decoder", daemon=True)
        self._thread.start()

    @classmethod
    def open(cls, folder: Path, *, device: str, dtype: str, rows: int, deterministic: bool) -> LocalEngine:
        """Load ``folder``; blocks meanwhile. Raises `UserError` naming the folder and the fix."""
        return cls(open_decoder(folder, device=device, dtype=dtype, rows=rows, deterministic=deterministic))

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002 - one model in all roles
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`."""
        if self._over.is_set():
            raise EngineError("the local engine is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Completion, ...]] = loop.create_future()

        def settle(outcome: tuple[Completion, ...] | EngineError) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_settle, future, outcome)

        self._inbox.put(lambda decoder: decoder.submit(messages, sampling, n, settle, settle))
        return await future

    async def aclose(self) -> None:
        """Stop the thread and let go of the model; requests under way fail with `EngineError`."""
        self._inbox.close()
        await asyncio.to_thread(self._thread.join)

    def _run(self, decoder: Decoder) -> None:
        try:
            self._inbox.serve(decoder)
        finally:
            self._over.set()
            decoder.abandon(EngineError("the local engine was closed before this request was finished"))


def _settle(future: asyncio.Future[tuple[Completion, ...]], outcome: tuple[Completion, ...] | EngineError) -> None:
    if future.done():
        return
    if isinstance(outcome, EngineError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
