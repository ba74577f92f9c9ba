"""The faults, as a table: what is done to a run, and what must come of it.

Each function disturbs one run, and gives the number of faults in it and what came of them. It raises
`BrokenPromiseError` for a changed result, a lost record, a process that is left, a traceback.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from flips import Flip, apply
from rude_servers import RUDE
from whole_runs import processes_of
from world import Part, Process, Scene, free_port, require

SAME = "the same results"
LINE = "one clear line, then the same results"
DIED = "the process died, then the same results"
Act = Callable[[Scene], tuple[int, str]]


@dataclass(frozen=True)
class Fault:
    """``count``: how many times it is to be done. ``part``: of the run that it disturbs."""

    name: str
    kind: Literal["kill", "other"]
    count: int
    act: Act
    part: Part = "generate"
    needs: Literal["", "mounts", "clock"] = ""


# --- moments ---


def _random_moment(scene: Scene, process: Process, share: float = 1.0) -> None:
    """Wait up to this share of the time that an undisturbed driver takes, or until the part's end."""
    until = time.monotonic() + scene.draw.uniform(0.0, share * scene.world.seconds(scene.part))
    scene.wait(process, lambda: time.monotonic() > until or scene.at_end())


def _when(scene: Scene, process: Process, fact: Callable[[], object]) -> None:
    scene.wait(process, lambda: fact() or scene.at_end())


def _records(scene: Scene, t: int, at_least: int) -> bool:
    """Whether so many records of iteration ``t`` are there; 0: of M0's evaluation."""
    folder = scene.run.iteration(t)
    path = folder.records if t else folder.evaluation / "records.sqlite"
    return path.is_file() and sum(key.startswith(path.parent.name) for key in scene.documents()) >= at_least


_MOMENTS: dict[str, Callable[[Scene], object]] = {
    "locking": lambda scene: (scene.run.path / "lock").exists(),
    "beginning": lambda scene: (scene.run.path / "iter-0").is_dir(),
    "writing the recipe": lambda scene: scene.run.recipe.exists(),
    "begun": lambda scene: scene.run.resolved.exists(),
    "opening the first store": lambda scene: (scene.run.iteration(0).evaluation / "records.sqlite").exists(),
    "evaluating": lambda scene: _records(scene, 0, 1 + scene.draw.randrange(3)),
    "evaluated": lambda scene: (scene.run.iteration(0).evaluation / "model.json").exists(),
    "opening the second store": lambda scene: scene.run.iteration(1).records.exists(),
    "generating": lambda scene: _records(scene, 1, 1 + scene.draw.randrange(9)),
    "building pairs": lambda scene: (scene.run.iteration(1).path / "pairs").is_dir(),
    "writing actor pairs": lambda scene: scene.run.iteration(1).pairs("actor").exists(),
    "writing judge pairs": lambda scene: scene.run.iteration(1).pairs("judge").exists(),
    "writing dropped prompts": lambda scene: scene.run.iteration(1).dropped.exists(),
}


# --- signals ---


def _kept(scene: Scene, before: dict[str, str]) -> dict[str, str]:
    """The records now; those of ``before`` must be among them."""
    now = scene.documents()
    require(before.items() <= now.items(), "finished records are lost or changed")
    return now


def _kill_again_and_again(scene: Scene, times: int, moment: str = "") -> tuple[int, str]:
    """``kill -9`` of driver after driver, at random or at one moment; then let one end."""
    kept: dict[str, str] = {}
    killed = 0
    for _ in range(times):
        process = scene.start()
        if moment:
            _when(scene, process, lambda: _MOMENTS[moment](scene))
        else:
            _random_moment(scene, process)
        killed += scene.kill(process) == -signal.SIGKILL
        kept = _kept(scene, kept)
    scene.complete()
    return killed, SAME


def _signal(scene: Scene, what: signal.Signals, times: int = 1) -> tuple[int, str]:
    """A signal, several times if so, at a random moment."""
    process = scene.start()
    _random_moment(scene, process, 0.6)
    for _ in range(times):
        scene.send(process, what)
        time.sleep(scene.draw.uniform(0.0, 0.05))
    code = scene.wait(process)
    scene.require_no_processes(process)
    if code != -what:  # before Python's or our handler is there, as for any program
        scene.require_line(process, code, 130)
    scene.complete()
    return 1, LINE


def _freeze(scene: Scene) -> tuple[int, str]:
    """SIGSTOP for a while, in which a second driver tries to start; then SIGCONT."""
    process = scene.start()
    _when(scene, process, lambda: _records(scene, 0, 1))
    scene.send(process, signal.SIGSTOP)
    _require_refused(scene)
    scene.send(process, signal.SIGCONT)
    scene.wait(process, scene.at_end)
    scene.kill(process)
    scene.complete()
    return 1, SAME


def _require_refused(scene: Scene) -> None:
    """A second driver says that one is running."""
    second = scene.start()
    line = scene.require_line(second, scene.wait(second), 2)
    require("is running here" in line, line)


# --- a second driver ---


def _two_drivers(scene: Scene) -> tuple[int, str]:
    """Two drivers at once: one runs, the other says so."""
    both = [scene.start(), scene.start()]
    ended: list[Process] = []

    def one_has_ended() -> bool:
        ended.extend(each for each in both if each not in ended and scene.world.zygote.poll(each.pid) is not None)
        return bool(ended)

    limit = time.monotonic() + 60
    while not one_has_ended() and time.monotonic() < limit:
        time.sleep(0.002)
    require(ended, "two drivers run in one folder")
    code = scene.world.zygote.poll(ended[0].pid)
    require("is running here" in scene.require_line(ended[0], code, 2), "the second driver gave another reason")
    (other,) = (each for each in both if each is not ended[0])
    scene.wait(other, scene.at_end)
    scene.kill(other)
    scene.complete()
    return 1, LINE


def _lock_removed(scene: Scene, names: tuple[str, ...]) -> tuple[int, str]:
    """The lock's files are deleted while a driver runs, and a second one starts."""
    process = scene.start()
    _when(scene, process, lambda: _records(scene, 0, 1))
    for name in names:
        (scene.run.path / name).unlink(missing_ok=True)
    _require_refused(scene)
    scene.wait(process, scene.at_end)
    scene.kill(process)
    scene.complete()
    return 1, LINE


def _folder_moved(scene: Scene, comes_back: bool) -> tuple[int, str]:
    """The run folder is moved away while a driver runs; with ``comes_back`` a second one starts in its place before."""
    process = scene.start()
    _when(scene, process, lambda: _records(scene, 1, 1))
    away = scene.run.path.with_name(f"{scene.run.path.name}.away")
    scene.run.path.rename(away)
    if comes_back:
        second = scene.start()
        scene.wait(second, lambda: (scene.run.path / "lock.json").exists())
        line = scene.require_line(process, scene.wait(process), 2)
        scene.kill(second)
        shutil.rmtree(scene.run.path)
    else:
        line = scene.require_line(process, scene.wait(process), 2)
    require("the run folder was" in line, line)
    scene.require_no_processes(process)
    away.rename(scene.run.path)
    scene.complete()
    return 1, LINE


# --- disks, memory, clocks ---


def _full_disk(scene: Scene) -> tuple[int, str]:
    """The disk is full but for a few pages, from the start or from a random moment on."""
    world, early = scene.world, scene.draw.random() < 0.2
    pages = scene.draw.choice((1, 2, 4, 8, 16, 24, 32, 48))
    if early:
        world.leave_free(pages)
    try:
        process = scene.start()
        if not early:
            _random_moment(scene, process, 0.6)
            world.leave_free(pages)
        code = scene.wait(process, scene.at_end)
    finally:
        world.leave_free(None)
    if code is None:
        scene.kill(process)
    else:
        line = scene.require_line(process, code, 2)
        require("full" in line or "No space" in line or "make room" in line, line)
    scene.complete()
    return 1, SAME if code is None else LINE


def _read_only_disk(scene: Scene) -> tuple[int, str]:
    """The disk becomes read-only between two starts."""
    process = scene.start()
    _random_moment(scene, process, 0.5)
    scene.kill(process)
    kept = scene.documents()
    scene.world.remount("bind,ro")
    try:
        process = scene.start()
        line = scene.require_line(process, scene.wait(process), 2)
        require("ead-only" in line or "can't be" in line, line)
    finally:
        scene.world.remount("bind,rw")
    _kept(scene, kept)
    scene.complete()
    return 1, LINE


def _vanishing_disk(scene: Scene) -> tuple[int, str]:
    """The disk is unmounted while a driver writes to it, and comes back."""
    there = scene.world.disk / f"{scene.run.path.name}.mounted"
    there.mkdir()
    scene.run.path.mkdir()
    subprocess.run(["mount", "--bind", str(scene.run.path), str(there)], check=True)
    process = scene.start(run=there)
    _when(scene, process, lambda: _records(scene, 0, 1))
    time.sleep(scene.draw.uniform(0.0, 0.2))
    subprocess.run(["umount", "-l", str(there)], check=True)
    code = scene.wait(process)
    require("the run folder was" in scene.require_line(process, code, 2), scene.said(process)[-300:])
    require(not list(there.iterdir()), "something was written where the disk had been")
    scene.require_no_processes(process)
    scene.complete()
    return 1, LINE


def _little_memory(scene: Scene) -> tuple[int, str]:
    """The driver may take a few MB only: Python says so, native libraries abort the process."""
    process = scene.start(memory=scene.draw.randrange(1 << 20, 24 << 20))
    code = scene.wait(process, scene.at_end)
    if code is None:
        scene.kill(process)
    elif code >= 0:
        scene.require_line(process, code, 2)
    scene.require_no_processes(process)
    scene.complete()
    return 1, LINE if code is not None and code >= 0 else DIED if code else SAME


def _clock_jumps(scene: Scene) -> tuple[int, str]:
    """The wall clock jumps by up to ten years while a driver runs, forwards and backwards."""
    process = scene.start()
    try:
        for _ in range(3):
            time.sleep(scene.draw.uniform(0.0, 0.15))
            scene.world.jump(scene.draw.choice((-1, 1)) * 10.0 ** scene.draw.uniform(0.0, 8.5))
        code = scene.wait(process, scene.at_end)
        require(code is None, f"ended with {code}: {scene.said(process)[-300:]}")
    finally:
        scene.world.jump(0.0)
    scene.kill(process)
    scene.complete()
    return 1, SAME


# --- files ---


def _some_file(scene: Scene) -> Path | None:
    """A file of the run that isn't empty, in this part after a kill at a random moment; None if there is none."""
    if scene.part == "generate":
        process = scene.start()
        _random_moment(scene, process)
        scene.kill(process)
    files = [path for path in scene.run.path.rglob("*") if path.is_file() and path.stat().st_size]
    return scene.draw.choice(sorted(files)) if files else None


def _torn_file(scene: Scene) -> tuple[int, str]:
    """After a kill, the end of a file is missing, as after a power cut."""
    if (path := _some_file(scene)) is None:
        scene.complete()
        return 0, SAME
    whole = path.read_bytes()
    path.write_bytes(whole[: scene.draw.randrange(len(whole))])
    process = scene.start()
    code = scene.wait(process, scene.at_end)
    outcome = SAME
    if code is None:
        scene.kill(process)
    else:
        outcome = LINE
        line = scene.require_line(process, code, 2)
        require(path.name.removesuffix("-wal") in line, f"{path.name} was cut, and the line is: {line}")
        path.write_bytes(whole)
    scene.complete()
    return 1, outcome


def _flipped_bit(scene: Scene) -> tuple[int, str]:
    """A bit of any file is another: ``verify`` notices and mends it, or it changes nothing that is used."""
    if (path := _some_file(scene)) is None:
        scene.complete()
        return 0, SAME
    whole = path.read_bytes()
    apply(Flip(path, scene.draw.randrange(len(whole)), scene.draw.randrange(8)))
    name, outcome = scene.run.path.name, SAME
    check = scene.command("verify", name)
    if (code := scene.wait(check)) != 0:
        scene.require_line(check, code, 2)
        outcome = "verify notices; repaired, the same results"
        mended = scene.command("verify", name, "--repair")
        if (code := scene.wait(mended)) != 0:  # what nobody can make again, such as the user's recipe
            scene.require_line(mended, code, 2)
            outcome = "verify notices; restored, the same results"
            path.write_bytes(whole)
    scene.complete()
    return 1, outcome


def _model_swapped(scene: Scene) -> tuple[int, str]:
    """A bit of M0's weights is another at the next start, and then as it was."""
    process = scene.start()
    _when(scene, process, lambda: _records(scene, 1, 1))
    scene.kill(process)
    weights = scene.world.disk / "model/model.safetensors"
    size = weights.stat().st_size
    flip = Flip(weights, scene.draw.randrange(size // 2, size), scene.draw.randrange(8))
    apply(flip)
    try:
        process = scene.start()
        line = scene.require_line(process, scene.wait(process), 2)
        require("model" in line, line)
    finally:
        apply(flip)
    scene.complete()
    return 1, LINE


# --- servers ---


def _server_killed(scene: Scene) -> tuple[int, str]:
    """``kill -9`` of the server while it is asked, several times; another one takes its place."""
    process, kills = scene.start(), 0
    for _ in range(3):
        _random_moment(scene, process, 0.3)
        if scene.world.zygote.poll(process.pid) is not None or scene.at_end():
            break
        scene.world.stop_server()
        time.sleep(scene.draw.uniform(0.0, 0.2))
        scene.world.serve("good")
        kills += 1
    code = scene.wait(process, scene.at_end)
    if code is None:
        scene.kill(process)
    else:  # it was down while the engine was opened
        line = scene.require_line(process, code, 2)
        require("can't be reached" in line or "no server" in line, line)
    scene.complete()
    return kills, SAME if code is None else LINE


def _rude_server(scene: Scene, manner: str) -> tuple[int, str]:
    """A server with this manner; afterwards a good one."""
    scene.world.serve(manner)
    try:
        process = scene.start()
        code = scene.wait(process, scene.at_end)
    finally:
        scene.world.serve("good")
    if code is None:
        scene.kill(process)
    else:
        scene.require_line(process, code, 2)
    scene.complete()
    return 1, SAME if code is None else LINE


def _no_server(scene: Scene, url: str) -> tuple[int, str]:
    """The server isn't there, or speaks another protocol."""
    address = url.format(port=scene.world.port)
    process = scene.start("--set", f"engine.base_urls={json.dumps([address])}")
    line = scene.require_line(process, scene.wait(process), 2)
    require(address.partition("//")[2] in line, line)
    scene.complete()
    return 1, LINE


def _bad_certificate(scene: Scene) -> tuple[int, str]:
    """The server has a certificate that nobody has signed."""
    certificate, port = scene.world.disk / "certificate.pem", free_port()
    if not certificate.is_file():
        made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
        both = ["-keyout", str(certificate), "-out", f"{certificate}.crt"]
        subprocess.run([*made, *both], check=True, capture_output=True)
        certificate.write_bytes(certificate.read_bytes() + Path(f"{certificate}.crt").read_bytes())
    server = scene.world.zygote.server("good", port, certificate)
    try:
        _, outcome = _no_server(scene, f"https://localhost:{port}")
        said = "".join(path.read_text() for path in scene.logs.iterdir())
        require("certificate" in said.lower(), said[-300:])
    finally:
        os.kill(server, signal.SIGKILL)
        scene.world.zygote.poll(server)
    return 1, outcome


# --- workers and trainers ---


def _child(process: Process, program: str) -> int | None:
    """The process of the driver's session that runs this module, once it does."""
    for pid in processes_of(process.pid):
        with contextlib.suppress(OSError):
            if program.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return pid
    return None


def _worker_killed(scene: Scene) -> tuple[int, str]:
    """``kill -9`` of the local engine's worker at random moments, also while it starts: the driver goes on."""
    process, kills = scene.start(), 0
    for _ in range(3):
        scene.wait(process, lambda: _child(process, "metareward.engines.local.worker") or scene.at_end())
        _random_moment(scene, process)
        worker = _child(process, "metareward.engines.local.worker")
        if worker is not None and not scene.at_end():
            os.kill(worker, signal.SIGKILL)
            kills += 1
    code = scene.wait(process, scene.at_end)
    if code is None:
        scene.kill(process)
    else:  # the first start of a worker failed
        line = scene.require_line(process, code, 2)
        require("ended by signal 9" in line, line)
    scene.complete()
    return kills, SAME if code is None else LINE


def _trainer_killed(scene: Scene) -> tuple[int, str]:
    """``kill -9`` of the trainer at a random moment."""
    process, trainer = scene.start(), "metareward.training.child"
    scene.wait(process, lambda: _child(process, trainer))
    until = time.monotonic() + scene.draw.uniform(0.0, 15.0)
    scene.wait(process, lambda: time.monotonic() > until or not _child(process, trainer))
    victim = _child(process, trainer)
    if victim is None:  # it was quicker
        require(scene.wait(process) == 0, scene.said(process)[-300:])
        return 0, SAME
    os.kill(victim, signal.SIGKILL)
    line = scene.require_line(process, scene.wait(process), 2)
    require("training was killed by SIGKILL, not for want of memory" in line, line)
    scene.complete()
    return 1, LINE


def _killed_in_training(scene: Scene) -> tuple[int, str]:
    """``kill -9`` of the driver while the trainer starts, trains or writes; the trainer may not live on."""
    process = scene.start()
    until = time.monotonic() + scene.draw.uniform(0.0, 15.0)
    scene.wait(process, lambda: time.monotonic() > until)
    killed = scene.kill(process) == -signal.SIGKILL
    scene.complete()
    return int(killed), SAME


_LOCKS = (("lock",), ("lock.json",), ("lock", "lock.json"))

FAULTS: tuple[Fault, ...] = (
    Fault("driver: kill -9 at random moments, one after another", "kill", 60, partial(_kill_again_and_again, times=5)),
    *(
        Fault(f"driver: kill -9 when {name}", "kill", 6, partial(_kill_again_and_again, times=1, moment=name))
        for name in _MOMENTS
    ),
    Fault("server: kill -9 while it is asked", "kill", 25, _server_killed),
    *(
        Fault(
            f"driver: {what.name}{' twice' if times > 1 else ''}", "other", 15, partial(_signal, what=what, times=times)
        )
        for what in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for times in (1, 2)
    ),
    Fault("driver: SIGSTOP, a second driver, SIGCONT", "other", 10, _freeze),
    Fault("two drivers at once", "other", 10, _two_drivers),
    *(
        Fault(f"{' and '.join(names)} deleted, a second driver", "other", 7, partial(_lock_removed, names=names))
        for names in _LOCKS
    ),
    Fault("run folder moved away", "other", 8, partial(_folder_moved, comes_back=False)),
    Fault("run folder moved away, a second driver in its place", "other", 8, partial(_folder_moved, comes_back=True)),
    Fault("disk: full", "other", 24, _full_disk, needs="mounts"),
    Fault("disk: read-only", "other", 8, _read_only_disk, needs="mounts"),
    Fault("disk: unmounted", "other", 8, _vanishing_disk, needs="mounts"),
    Fault("memory: a limit of a few MB", "other", 12, _little_memory),
    Fault("clock: jumps of up to ten years", "other", 12, _clock_jumps, needs="clock"),
    Fault("file: its end is missing after a kill", "other", 40, _torn_file),
    Fault("file: a bit is another in a half-done run", "other", 30, _flipped_bit),
    Fault("file: a bit is another in a run before M1's evaluation", "other", 20, _flipped_bit, "finish"),
    Fault("model folder: a bit of M0's weights is another", "other", 8, _model_swapped),
    *(
        Fault(f"server: {name}", "other", 6, partial(_rude_server, manner=name))
        for name in ("some judgments fail", "some judgments fail at first")
    ),
    *(
        Fault(f"server: {rude.name}", "other", 1, partial(_rude_server, manner=rude.name))
        for rude in RUDE
        if not (rude.long or rude.expected or rude.others)
    ),
    Fault("server: gone", "other", 2, partial(_no_server, url="http://127.0.0.1:1")),
    Fault("server: TLS on a port without", "other", 2, partial(_no_server, url="https://127.0.0.1:{port}")),
    Fault("server: a certificate that nobody has signed", "other", 3, _bad_certificate),
    Fault("driver: kill -9 from M1 to the report", "kill", 12, partial(_kill_again_and_again, times=3), "finish"),
    Fault("worker: kill -9 at random moments", "kill", 8, _worker_killed, "local"),
    Fault("trainer: kill -9 at a random moment", "kill", 6, _trainer_killed, "train"),
    Fault("driver: kill -9 while it trains", "kill", 6, _killed_in_training, "train"),
)
