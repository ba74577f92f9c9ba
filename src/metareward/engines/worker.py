"""The child process behind a `WorkerPool`: one decoder, requests in on stdin and results out on stdout, as JSON lines.

Run as ``python -m metareward.engines.worker SETTINGS``. It ends when stdin closes, and on Linux also when the
parent dies, however it dies.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch

from metareward.engines.decoder import Decoder
from metareward.engines.engine import EngineError
from metareward.engines.local import Inbox, open_decoder
from metareward.engines.wire import pack
from metareward.errors import UserError
from metareward.types import Completion, Message, Sampling

_PR_SET_PDEATHSIG = 1


class Replies:
    """The way back to the parent. Taken from stdout before anything else can print there."""

    def __init__(self) -> None:
        self._stream: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **reply: Any) -> None:
        """Write one reply as one line."""
        self._stream.write(json.dumps(reply) + "\n")
        self._stream.flush()


class Teller(logging.Handler):
    """Sends warnings to the parent."""

    def __init__(self, replies: Replies) -> None:
        super().__init__(logging.WARNING)
        self._replies = replies

    def emit(self, record: logging.LogRecord) -> None:
        """Send one."""
        self._replies.send(warning=record.getMessage())


def main(settings: Mapping[str, Any]) -> None:
    """Open the model, say so, and serve until stdin closes."""
    replies = Replies()
    _die_with(settings["parent"])
    torch.set_num_threads(settings["threads"])
    try:
        decoder = open_decoder(
            Path(settings["folder"]),
            device=settings["device"],
            dtype=settings["dtype"],
            rows=settings["rows"],
            deterministic=settings["deterministic"],
        )
    except UserError as error:
        replies.send(refused=str(error))
        return
    sys.excepthook = _report_and_end
    replies.send(ready=True)
    # Not before: the parent waits for just one reply until then.
    logging.getLogger("metareward").addHandler(Teller(replies))
    inbox = Inbox()
    threading.Thread(target=_read, args=(inbox, replies), daemon=True).start()
    inbox.serve(decoder)


def _report_and_end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For an error nobody foresaw. An ordinary exit would stumble over the thread that still reads stdin."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(1)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _read(inbox: Inbox, replies: Replies) -> None:
    for line in sys.stdin.buffer:
        inbox.put(_submission(json.loads(line), replies))
    # The parent has closed the pipe or is gone: nobody waits for what is under way.
    os._exit(0)


def _submission(request: Mapping[str, Any], replies: Replies) -> Any:
    messages = tuple(Message(role, content) for role, content in request["messages"])
    sampling = Sampling(*request["sampling"])

    def deliver(completions: tuple[Completion, ...]) -> None:
        replies.send(id=request["id"], completions=[pack(each) for each in completions])

    def fail(error: EngineError) -> None:
        replies.send(id=request["id"], error=str(error))

    def submit(decoder: Decoder) -> None:
        decoder.submit(messages, sampling, request["n"], deliver, fail)

    return submit


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
