"""A child process that never outlives its parent, however the parent dies.

Two lines, because neither is enough: Linux sends the signal even when this process is busy in C++ code, and the end
of the pipe on standard input (the parent holds the other end) works everywhere and also when the parent was gone
before the child asked for the signal.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1


def tie_to_parent() -> None:
    """From now on this process ends when the parent does. Its standard input must be a pipe from the parent."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    threading.Thread(target=_end_with_pipe, name="lifeline", daemon=True).start()


def _end_with_pipe() -> None:
    while os.read(0, 1024):
        pass
    os._exit(1)
