"""The child process behind a `WorkerPool`: one model; requests on stdin and results on stdout, as JSON lines.

Run as ``python -m metareward.engines.local.worker SETTINGS``. It ends when stdin closes, and on Linux also as soon as
the parent dies. Torch is imported in `main` only, so that a worker dies with its parent also while it is starting.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from metareward.engines.base import EngineError, PassError
from metareward.engines.process_group import collector_paused, die_with_parent
from metareward.errors import UserError
from metareward.types import Completion, Message, Sampling, Step, TopLogprob

if TYPE_CHECKING:
    from metareward.engines.local.engine import EngineCore, Inbox


def completion_to_json(completion: Completion) -> list[Any]:
    """``completion`` as JSON values."""
    steps = [[step.text, [[each.text, each.logprob] for each in step.top_logprobs]] for step in completion.steps]
    return [completion.text, completion.finish, completion.tokens, steps]


def completion_from_json(values: Sequence[Any]) -> Completion:
    """The inverse of `completion_to_json`."""
    text, finish, tokens, steps = values
    return Completion(
        text,
        finish,
        tokens,
        tuple(Step(token, tuple(TopLogprob(*each) for each in top_logprobs)) for token, top_logprobs in steps),
    )


class Replies:
    """The stream of replies to the parent: stdout, which from then on nothing else can print to."""

    def __init__(self) -> None:
        self._stream: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def send(self, **reply: Any) -> None:
        """Write one reply as one line."""
        self._stream.write(json.dumps(reply) + "\n")
        self._stream.flush()


class WarningForwarder(logging.Handler):
    """Sends warnings to the parent."""

    def __init__(self, replies: Replies) -> None:
        super().__init__(logging.WARNING)
        self._replies = replies

    def emit(self, record: logging.LogRecord) -> None:
        """Send one warning."""
        self._replies.send(warning=record.getMessage())


def main(settings: Mapping[str, Any]) -> None:
    """Load the model, report that it is ready, and serve until stdin closes."""
    die_with_parent(settings["parent"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, and the parent ends it
    replies = Replies()
    with collector_paused():
        import torch

        from metareward.engines.local.engine import open_core, serve

    torch.set_num_threads(settings["threads"])
    try:
        core = open_core(
            Path(settings["folder"]),
            device=settings["device"],
            dtype=settings["dtype"],
            max_num_seqs=settings["max_num_seqs"],
            deterministic=settings["deterministic"],
        )
    except UserError as error:
        replies.send(refused=str(error))
        return
    sys.excepthook = _exit_with_traceback
    replies.send(ready=True)
    # Only now: the parent expects exactly one reply before.
    logging.getLogger("metareward").addHandler(WarningForwarder(replies))
    inbox: Inbox = SimpleQueue()
    threading.Thread(target=_receive, args=(inbox, replies), daemon=True).start()
    serve(core, inbox)


def _exit_with_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exit at once: an ordinary exit fails on the thread that is still reading stdin."""
    sys.__excepthook__(kind, error, trace)
    sys.stderr.flush()
    os._exit(1)


def _receive(inbox: Inbox, replies: Replies) -> None:
    for line in sys.stdin.buffer:
        inbox.put(_submission(json.loads(line), replies))
    # The parent has closed the pipe or is dead: nobody waits for unfinished requests.
    os._exit(0)


def _submission(request: Mapping[str, Any], replies: Replies) -> Callable[[EngineCore], None]:
    if "cancel" in request:
        return lambda core: core.cancel(request["cancel"])
    messages = tuple(Message(role, content) for role, content in request["messages"])
    sampling = Sampling(*request["sampling"])
    sampling = replace(sampling, choices=tuple(sampling.choices))  # a list in JSON

    def deliver(completions: tuple[Completion, ...]) -> None:
        replies.send(id=request["id"], completions=[completion_to_json(each) for each in completions])

    def fail(error: EngineError) -> None:
        replies.send(id=request["id"], error=str(error), again=isinstance(error, PassError))

    return lambda core: core.submit(messages, sampling, request["n"], deliver, fail, request["id"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
