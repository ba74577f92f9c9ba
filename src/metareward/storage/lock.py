"""The lock of a run folder: one driver at a time, whatever is deleted.

The folder itself is locked, an inode that its files' deletion doesn't change. A folder that is removed, moved away or
replaced is noticed before each write (`require_held`) and by a thread twice a second, and ends the run. Where a folder
can't be locked (Windows, some network file systems) its file ``lock`` is, and replacing that file ends the run: whoever
takes such a lock waits first for a run that lost it to notice.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from filelock import FileLock, Timeout

from metareward.errors import UserError

_POLL_SECONDS = 0.5
_WAIT_SECONDS = 0.2  # `is_locked` takes the lock for a moment, which must not make `FolderLock` fail
_GRACE_SECONDS = 3 * _POLL_SECONDS

_held: list[FolderLock] = []


def require_held(path: Path) -> None:
    """Raise `UserError` if ``path`` is in a folder that this process has locked and that is not there any more."""
    if _held:
        absolute = path.absolute()
        for lock in _held:
            if absolute.is_relative_to(lock.folder) and (lost := lock.lost()):
                raise UserError(lost)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the lock of ``folder``; False where that can't be told."""
    lock = FolderLock(folder)
    try:
        if not lock.take_folder():
            return True
        return (folder / "lock").is_file() and not lock.acquire(0.0)
    except OSError:  # no run is possible in a folder that can't be written
        return False
    finally:
        lock.release()


class FolderLock:
    """The lock of ``folder``, an existing one, for this process and not for its children.

    ``lock_folder``: whether to try the folder itself rather than only the file in it.
    """

    def __init__(self, folder: Path, lock_folder: bool = True) -> None:
        self.folder = folder.absolute()
        self._file = FileLock(folder / "lock")
        self._tries_folder = lock_folder and sys.platform != "win32"
        self._handle: int | None = None
        self._guarded: dict[Path, int] = {}  # what must stay where it is, with a handle of it
        self._released = threading.Event()

    def acquire(self, seconds: float = _WAIT_SECONDS) -> bool:
        """Take the lock; False if another process, or this one, holds it for ``seconds``. Raises `OSError`."""
        until = time.monotonic() + seconds
        while not (taken := self._take()) and time.monotonic() < until:
            time.sleep(0.02)
        return taken

    def hold(self) -> None:
        """Guard the lock that was taken until `release`. Waits where another run may have to notice that it lost it."""
        if self._handle is not None:
            self._guarded[self.folder] = self._handle
        else:
            self._guarded[self.folder / "lock"] = os.open(self.folder / "lock", os.O_RDONLY)
            time.sleep(_GRACE_SECONDS)
        _held.append(self)
        main = threading.main_thread()
        if threading.current_thread() is main:
            threading.Thread(target=self._watch, args=(main,), name="metareward-lock", daemon=True).start()

    def lost(self) -> str | None:
        """Why the lock protects the folder no more, in one line; None while it does."""
        for path, handle in self._guarded.items():
            try:
                what = "" if os.path.samestat(path.stat(), os.fstat(handle)) else "replaced"
            except FileNotFoundError:
                what = "removed or moved away"
            except OSError as error:
                what = f"made unreadable ({error.strerror})"
            if what:
                kind = "run folder" if path == self.folder else "run folder's lock file"
                fix = "put the folder back where it was, and run again" if path == self.folder else "run again"
                return f"{path}: the {kind} was {what} while the run was going on, so the run ends; fix: {fix}"
        return None

    def remove(self, name: str) -> None:
        """Delete a file of the locked folder, not one of a folder that has taken its place."""
        if self.lost() is None:
            (self.folder / name).unlink(missing_ok=True)

    def release(self) -> None:
        """Give the lock back."""
        self._released.set()
        if self in _held:
            _held.remove(self)
        self.forget()
        self._file.release()

    def forget(self) -> None:
        """Close all handles; in a forked child, as the lock stays its parent's."""
        handles = {each for each in (self._handle, *self._guarded.values()) if each is not None}
        self._handle, self._guarded = None, {}
        for handle in handles:
            os.close(handle)

    def _take(self) -> bool:
        try:
            self._file.acquire(timeout=0)
        except Timeout:
            return False
        if self.take_folder():
            return True
        self._file.release()
        return False

    def take_folder(self) -> bool:
        """Lock the folder itself; False if it is locked. True where folders can't be locked, which locks nothing."""
        if not self._tries_folder or self._handle is not None:
            return True
        import fcntl

        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        except OSError:  # such as on NFS, where only files that are open for writing can be locked
            os.close(handle)
            return True
        self._handle = handle
        return True

    def _watch(self, main: threading.Thread) -> None:
        while not self._released.wait(_POLL_SECONDS):
            # While it is released its handles are closed.
            if self.lost() and not self._released.is_set() and main.ident is not None:
                ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # in a shell script's background job
                # A signal, as the main thread may wait in a system call.
                signal.pthread_kill(main.ident, signal.SIGTERM if ignored else signal.SIGINT)
                return


def _forget_all() -> None:
    for lock in _held:
        lock.forget()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
