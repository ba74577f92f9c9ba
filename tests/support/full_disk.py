"""A run on a small disk of its own that fills up: ``unshare -rm python full_disk.py HOUSE DISK RUN STEPS...``.

Mounts a disk at DISK and copies RUN there, if it is there; then for each step makes the disk so many 4 KiB pages
larger than what is on it and starts the run again. An empty disk needs a page at least: of none it would have no limit.
Prints one JSON line for each start, and the outcome at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from house import House, outcome

from metareward.storage.run_dir import RunDir

_PAGE = 4096


def main(folder: Path, disk: Path, run: Path, steps: list[int]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=True)
    there = disk / "run"
    if run.is_dir():
        shutil.copytree(run, there)
    for pages in steps:
        _leave(disk, pages)
        code, told, errors = House(folder).run(str(there))
        print(json.dumps({"code": code, "told": told, "errors": errors}), flush=True)
    print(json.dumps(outcome(RunDir(there))))


def _leave(disk: Path, pages: int) -> None:
    space = os.statvfs(disk)
    used = (space.f_blocks - space.f_bfree) * space.f_frsize
    size = used + pages * _PAGE
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), [int(word) for word in sys.argv[4:]])
