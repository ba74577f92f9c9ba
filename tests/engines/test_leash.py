from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc to watch with")

# An owner with a child on the leash, and a child of that child in a session of its own.
FAMILY = "import subprocess, time; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True); "
OWNER = f"""
import subprocess, sys, time
from metareward.engines.leash import Leash

leash = Leash()
held = subprocess.Popen([sys.executable, "-c", "{FAMILY} time.sleep(60)"], stdout=subprocess.PIPE, text=True)
below = held.stdout.readline().strip()
time.sleep(1.5)  # the watcher looks twice a second
leash.tighten()
time.sleep(1.0)
free = subprocess.Popen(["sleep", "60"])
print(held.pid, below, free.pid, flush=True)
sys.stdin.readline()
leash.let_go()
print("gone", flush=True)
sys.stdin.readline()
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(fact: Callable[[], bool]) -> bool:
    until = time.monotonic() + 20
    while not fact() and time.monotonic() < until:
        time.sleep(0.05)
    return fact()


@pytest.mark.parametrize("killed", [False, True], ids=["let go", "owner killed"])
def test_what_is_held_ends_with_what_it_started_and_nothing_else_does(killed: bool) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    held, below, free = map(int, owner.stdout.readline().split())
    try:
        assert all(map(lives, (held, below, free)))
        if killed:
            owner.kill()
        else:
            print(file=owner.stdin, flush=True)
            assert owner.stdout.readline() == "gone\n"
            assert not lives(held)
            assert not lives(below)
        assert soon(lambda: not lives(held) and not lives(below))
        assert lives(free)
    finally:
        subprocess.run(["kill", str(free)], check=True)
        owner.kill()
        owner.communicate()


def test_the_watcher_ends_well_while_somebody_else_holds_its_stream() -> None:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "metareward.engines.leash", str(os.getpid())],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watcher.stdin is not None
    watcher.stdin.write(b"tighten\nlet go\n")
    watcher.stdin.flush()  # and not closed
    assert watcher.wait(20) == 0
    assert watcher.stderr is not None
    assert watcher.stderr.read() == b""
    watcher.stdin.close()
