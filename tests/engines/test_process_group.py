from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metareward.engines.process_group import dying_with_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# An owner with a child in its group; that child has a child in a session of its own.
CHILD = "import subprocess, time; print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True); "
OWNER = f"""
import subprocess, sys, time
from metareward.engines.process_group import ProcessGroup

group = ProcessGroup()
child = subprocess.Popen([sys.executable, "-c", "{CHILD} time.sleep(60)"], stdout=subprocess.PIPE, text=True)
grandchild = child.stdout.readline().strip()
time.sleep(1.5)  # the watcher polls twice a second
group.close()
time.sleep(1.0)
outsider = subprocess.Popen(["sleep", "60"])
print(child.pid, grandchild, outsider.pid, flush=True)
sys.stdin.readline()
group.kill()
print("gone", flush=True)
sys.stdin.readline()
"""
# A parent whose child calls die_with_parent; the child's stdin is a pipe from the parent, or inherited.
DYING_CHILD = "from metareward.engines.process_group import die_with_parent; import time; die_with_parent({}); "
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1] + "print(1, flush=True); time.sleep(60)"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""

# A parent that starts a child by `dying_with_parent`, marked by an argument, and sleeps.
STARTER = """
import subprocess, sys, time
from metareward.engines.process_group import dying_with_parent
child = [sys.executable, "-c", "import time; time.sleep(60)", sys.argv[1]]
print("starting", flush=True)
subprocess.Popen(dying_with_parent(child))
print("started", flush=True)
time.sleep(60)
"""


def marked(mark: str) -> list[int]:
    """The processes with this argument."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes().split(b"\0") and lives(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


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


@pytest.mark.parametrize("killed", [False, True], ids=["group killed", "owner killed"])
def test_a_group_dies_with_all_descendants_and_no_other_process(killed: bool) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert owner.stdin is not None
    assert owner.stdout is not None
    child, grandchild, outsider = map(int, owner.stdout.readline().split())
    try:
        assert all(map(lives, (child, grandchild, outsider)))
        if killed:
            owner.kill()
        else:
            print(file=owner.stdin, flush=True)
            assert owner.stdout.readline() == "gone\n"
            assert not lives(child)
            assert not lives(grandchild)
        assert soon(lambda: not lives(child) and not lives(grandchild))
        assert lives(outsider)
    finally:
        subprocess.run(["kill", str(outsider)], check=True)
        owner.kill()
        owner.communicate()


def test_the_watcher_exits_cleanly_while_its_stdin_stays_open() -> None:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "metareward.engines.process_group", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watcher.stdin is not None
    watcher.stdin.write(b"close\nkill\n")
    watcher.stdin.flush()  # and not closed
    assert watcher.wait(20) == 0
    assert watcher.stderr is not None
    assert watcher.stderr.read() == b""
    watcher.stdin.close()


@pytest.mark.parametrize("arguments", ["", "watch_stdin=True"])
def test_a_child_dies_with_its_killed_parent(arguments: str) -> None:
    command = [sys.executable, "-c", PARENT, DYING_CHILD.format(arguments)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert lives(child)
    parent.kill()
    parent.communicate()
    assert soon(lambda: not lives(child))


def test_no_child_outlives_a_parent_that_is_killed_at_any_moment() -> None:
    draw = random.Random(1)
    for number in range(8):
        mark = f"starter-{os.getpid()}-{number}"
        with subprocess.Popen([sys.executable, "-c", STARTER, mark], stdout=subprocess.PIPE, text=True) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "starting\n"
            time.sleep(draw.uniform(0.0, 0.12))  # before the fork, while Python starts, in the child's own code
            parent.kill()
        until = time.monotonic() + 2
        while (living := marked(mark)) and time.monotonic() < until:
            time.sleep(0.02)
        assert not living


def test_a_child_that_dies_with_its_parent_is_the_command_itself() -> None:
    command = dying_with_parent([sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "--c"])
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (7, "['a b', '--c']\n", "")


def test_a_child_exits_when_its_stdin_ends_or_its_parent_is_another() -> None:
    def exit_status(arguments: str) -> int:
        program = DYING_CHILD.format(arguments) + "time.sleep(60)"
        return subprocess.run([sys.executable, "-c", program], stdin=subprocess.DEVNULL, timeout=20).returncode

    assert exit_status("watch_stdin=True") == 1
    assert exit_status("parent=1 << 30") == 1


def test_the_collector_is_paused_for_imports_and_leaves_out_what_they_made() -> None:
    """In a process of its own, as it changes the collector of the whole process."""
    program = """
import gc, weakref
from metareward.engines.process_group import collector_paused

class Node: pass

with collector_paused():
    paused = not gc.isenabled()
    kept = Node(); kept.itself = kept
made, frozen = weakref.ref(kept), gc.get_freeze_count() > 1000
later = Node(); later.itself = later
garbage = weakref.ref(later)
del kept, later
gc.collect()
print(paused, frozen, gc.isenabled(), made() is not None, garbage() is None)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True"] * 5
