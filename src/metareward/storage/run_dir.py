"""The names of everything in a run folder, and the ways to write there so that a kill never leaves half a file.

    runs/<name>/  recipe.yaml  resolved.json  environment.json  lock  log.jsonl  report.html
      iter-<t>/   prompts.jsonl  records.sqlite  pairs/  dropped.jsonl  model/  eval/  done.json

Iteration 0 holds only the evaluation of the model the run starts from.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from metareward.errors import UserError
from metareward.storage.atomic import write_atomic, write_errors
from metareward.types import PairKind


@dataclass(frozen=True, slots=True)
class IterationDir:
    """The files of one iteration."""

    path: Path

    @property
    def prompts(self) -> Path:
        """The prompts chosen for this iteration."""
        return self.path / "prompts.jsonl"

    @property
    def records(self) -> Path:
        """The store of finished prompts."""
        return self.path / "records.sqlite"

    def pairs(self, kind: PairKind) -> Path:
        """The preference pairs of one kind."""
        return self.path / "pairs" / f"{kind}.parquet"

    @property
    def summary(self) -> Path:
        """What the pairs came out as: counts, weights, findings."""
        return self.path / "pairs" / "summary.json"

    @property
    def dropped(self) -> Path:
        """Why prompts gave no pair."""
        return self.path / "dropped.jsonl"

    @property
    def model(self) -> Path:
        """The trained model, a Hugging Face folder."""
        return self.path / "model"

    @property
    def evaluation(self) -> Path:
        """The folder of evaluation results."""
        return self.path / "eval"

    @property
    def done(self) -> Path:
        """The mark that is written last."""
        return self.path / "done.json"


@dataclass(frozen=True, slots=True)
class RunDir:
    """A run folder. Making the value touches nothing on disk."""

    path: Path

    @property
    def recipe(self) -> Path:
        """The recipe as the user gave it."""
        return self.path / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """The recipe with every default filled in."""
        return self.path / "resolved.json"

    @property
    def environment(self) -> Path:
        """Versions and machine."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """What happened, one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def report(self) -> Path:
        """The report."""
        return self.path / "report.html"

    def iteration(self, t: int) -> IterationDir:
        """The files of iteration ``t``."""
        return IterationDir(self.path / f"iter-{t}")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone; makes it if it isn't there.

        The operating system holds the lock, so it ends with this process however that dies, and a child process
        doesn't inherit it, forked or started (filelock 3.30 on). Raises `UserError` naming the process that has it.
        """
        lock = FileLock(self.path / "lock")
        with write_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=_PEEK_SECONDS)
            except Timeout:
                who = _who(self._holder)
                raise UserError(f"{self.path}: {who} is running here; fix: wait for it or stop it") from None
        try:
            write_atomic(self._holder, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            yield
        finally:
            self._holder.unlink(missing_ok=True)
            lock.release()

    def holder(self) -> str | None:
        """Who runs here now (``process 12 on host``), or None.

        The name is in a file that outlives a kill, so the lock itself is asked, by taking it for a moment.
        """
        if not self._holder.is_file():
            return None
        try:
            with FileLock(self.path / "lock").acquire(blocking=False):
                return None
        except Timeout:
            return _who(self._holder)
        except OSError:  # nothing runs in a folder that can't be written
            return None

    @property
    def _holder(self) -> Path:
        return self.path / "lock.json"


# A look at who holds the lock takes it for a moment; that must not turn a run away.
_PEEK_SECONDS = 0.2


def _who(holder: Path) -> str:
    """The process named in the holder's file, which may be missing for the moment after it took the lock."""
    try:
        told = json.loads(holder.read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def mark_done(path: Path, payload: Mapping[str, object]) -> None:
    """Write the mark that says: all before it is complete. ``payload`` is what a later run compares with."""
    write_atomic(path, json.dumps(payload, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_done(path: Path) -> dict[str, object] | None:
    """The payload of the mark at ``path``, or None when it isn't done. Raises `UserError` for an unreadable mark."""
    try:
        payload = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable done-mark ({error}); fix: delete it to do the step again") from None
    if not isinstance(payload, dict):
        raise UserError(f"{path}: not a done-mark; fix: delete it to do the step again")
    return payload
