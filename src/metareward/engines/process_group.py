"""Child processes that never outlive this one, however it dies.

`dying_with_parent` starts any child so that it dies with its parent from its first moment on, also while it imports;
`die_with_parent` is for children that run our own code, `ProcessGroup` for programs that start processes of their own,
such as vLLM. Standard library only, so that a child can call `die_with_parent` before any heavy import;
`collector_paused` is for these imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_POLL_SECONDS = 0.5
_START_POLL_SECONDS = 0.1  # while the group's first processes start
_KILL_SECONDS = 5.0
# The kernel keeps the request across execvp. A parent that died before it was made shows as another parent.
_EXECUTE = f"""\
import ctypes, os, sys
ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(signal.SIGKILL)}, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""

# A process: its id and its start time, so that a later process with the same id is not taken for it.
Process = tuple[int, int]


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """``command`` so that on Linux the kernel kills the process with the thread that starts it; elsewhere unchanged.

    A small program asks for that and becomes ``command`` then: no moment is left, neither before the first line of a
    child's code nor while it imports.
    """
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _EXECUTE, str(os.getpid()), *command]


def die_with_parent(parent: int | None = None, *, watch_stdin: bool = False) -> None:
    """End this process when its parent ends. Call it first, before heavy imports.

    On Linux the kernel kills this process with its parent, even while it is busy in native code. ``parent`` is the
    parent's process id where the child was told it: if the parent has died already, this process exits here.
    ``watch_stdin`` works on every system: stdin must be a pipe whose other end only the parent holds, and nothing else
    may read it; this process exits when the pipe ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(1)

    def exit_with_stdin() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    if watch_stdin:
        threading.Thread(target=exit_with_stdin, name="die-with-parent", daemon=True).start()


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No garbage collection inside, and later ones leave out what was made there.

    Importing torch and transformers makes hundreds of thousands of objects that stay. Searching them for garbage takes
    a fifth of the time of these imports.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def count_oom_kills() -> int | None:
    """How many processes Linux has killed for want of memory since it started; None where that isn't known."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/vmstat").read_text(encoding="utf-8").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
    return None


class ProcessGroup:
    """All processes that its owner starts between the creation of the group and `close`, with their descendants.

    A small watcher process notes them, and kills them once the owner is dead or calls `kill`. It reads /proc, so groups
    work on Linux only; elsewhere `kill` does nothing.
    """

    def __init__(self) -> None:
        self._watcher: subprocess.Popen[bytes] | None = None
        if sys.platform == "linux":
            self._watcher = subprocess.Popen(
                [sys.executable, "-P", "-m", "metareward.engines.process_group", str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
            assert self._watcher.stdout is not None
            self._watcher.stdout.readline()  # what is started from now on is noted

    def close(self) -> None:
        """Processes that the owner starts from now on do not belong to the group."""
        self._send(b"close\n")

    def kill(self) -> None:
        """Kill the group's processes; returns when they are gone."""
        self._send(b"close\nkill\n")
        if self._watcher is not None:
            self._watcher.communicate()
            self._watcher = None

    def _send(self, lines: bytes) -> None:
        if self._watcher is not None and self._watcher.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._watcher.stdin.write(lines)
                self._watcher.stdin.flush()


def watch(owner: int) -> None:
    """The watcher's program: note the owner's descendants until it dies or sends "kill", then kill them."""
    closed, over = threading.Event(), threading.Event()

    def listen() -> None:
        # Unbuffered: a buffer's lock, held by this waiting thread, would block the interpreter's exit. The end of the
        # stream means nothing: processes that the owner forked may hold its other end.
        for line in open(0, "rb", buffering=0, closefd=False):  # noqa: SIM115 - open as long as the process lives
            (closed if line.startswith(b"close") else over).set()

    threading.Thread(target=listen, daemon=True).start()
    os.write(1, b"watching\n")
    group: set[Process] = set()
    while os.getppid() == owner and not over.is_set():
        parents = _parents()
        roots = {process[0] for process in group} | (set() if closed.is_set() else {owner})
        group = {process for process in group if process in parents} | _descendants(parents, roots)
        group = {process for process in group if process[0] != os.getpid()}
        over.wait(_POLL_SECONDS if closed.is_set() else _START_POLL_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        parents = _parents()
        group = {process for process in group if process in parents}
        group |= _descendants(parents, {process[0] for process in group})  # what they started meanwhile
        if not group:
            return
        for pid, _ in group:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def _parents() -> dict[Process, int]:
    """Every running process with its parent's id."""
    found: dict[Process, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The command name may hold anything; behind its bracket come state, parent, and start time as 20th.
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] != "Z":
                    found[int(entry.name), int(fields[19])] = int(fields[1])
    return found


def _descendants(parents: dict[Process, int], roots: Set[int]) -> set[Process]:
    """All children, grandchildren and so on of these process ids."""
    found: set[Process] = set()
    ids = set(roots)
    while fresh := {process for process, parent in parents.items() if parent in ids} - found:
        found |= fresh
        ids |= {process[0] for process in fresh}
    return found


if __name__ == "__main__":
    watch(int(sys.argv[1]))
