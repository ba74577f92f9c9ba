"""Which of the processes of one training this is, before anything heavy is imported."""

from __future__ import annotations

import os


def is_first() -> bool:
    """Whether this process writes what is written: it is alone, or the first that a launcher has started."""
    return os.environ.get("RANK", "0") == "0"
