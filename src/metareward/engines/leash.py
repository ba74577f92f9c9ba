"""Children of other people's code that must not outlive this process, however it dies.

vLLM starts processes of its own that go on for ever when the process that started them is killed. A small watching
process notes all descendants that its owner gets while the leash is loose, and all of theirs; once the owner is dead
or lets go, it kills what it noted. It reads /proc, so it works on Linux; elsewhere there is nothing to watch with.

Run as ``python -m metareward.engines.leash OWNER``; a line on stdin tightens the leash, a second one lets go.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Set
from pathlib import Path

_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 5.0

# A process: its id and when it started, so that a later one with the same id is not taken for it.
Process = tuple[int, int]


class Leash:
    """Holds what its owner starts between the making of the leash and `tighten`."""

    def __init__(self) -> None:
        self._watcher: subprocess.Popen[bytes] | None = None
        if sys.platform == "linux":
            self._watcher = subprocess.Popen(
                [sys.executable, "-P", "-m", "metareward.engines.leash", str(os.getpid())],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def tighten(self) -> None:
        """What the owner starts from now on is not on the leash."""
        self._say(b"tighten\n")

    def let_go(self) -> None:
        """Kill what is on the leash and still there; returns when it is gone."""
        self._say(b"tighten\nlet go\n")
        if self._watcher is not None:
            self._watcher.communicate()
            self._watcher = None

    def _say(self, words: bytes) -> None:
        if self._watcher is not None and self._watcher.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._watcher.stdin.write(words)
                self._watcher.stdin.flush()


def main(owner: int) -> None:
    """Watch until the owner is dead or has let go, then kill."""
    tight, over = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(tight, over), daemon=True).start()
    held: set[Process] = set()
    while os.getppid() == owner and not over.is_set():
        parents = _parents()
        roots = {process[0] for process in held} | (set() if tight.is_set() else {owner})
        held = {process for process in held if process in parents} | _descendants(parents, roots)
        held = {process for process in held if process[0] != os.getpid()}
        over.wait(_SECONDS_BETWEEN_LOOKS)
    _kill(held)


def _listen(tight: threading.Event, over: threading.Event) -> None:
    # Without a buffer, whose lock a thread that still waits here would keep from the interpreter when it ends. The end
    # of the stream says nothing: what the owner forked may hold the other end.
    for line in open(0, "rb", buffering=0, closefd=False):  # noqa: SIM115 - it lives as long as the process
        (tight if line.startswith(b"tighten") else over).set()


def _parents() -> dict[Process, int]:
    """Every process with its parent's id."""
    found: dict[Process, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The name may hold anything; after its bracket come the state, the parent and 17 fields to the start.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(entry.name), int(fields[19])] = int(fields[1])
    return found


def _descendants(parents: dict[Process, int], roots: Set[int]) -> set[Process]:
    """All processes that come from one of these, directly or not."""
    found: set[Process] = set()
    ids = set(roots)
    while fresh := {process for process, parent in parents.items() if parent in ids} - found:
        found |= fresh
        ids |= {process[0] for process in fresh}
    return found


def _kill(held: set[Process]) -> None:
    """Kill these and what they start meanwhile; returns when they are gone."""
    deadline = time.monotonic() + _SECONDS_TO_END
    while time.monotonic() < deadline:
        parents = _parents()
        held = {process for process in held if process in parents}
        held |= _descendants(parents, {process[0] for process in held})
        if not held:
            return
        for pid, _ in held:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    main(int(sys.argv[1]))
