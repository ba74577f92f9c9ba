"""Processes that start in milliseconds: drivers (``metareward run``) and scripted servers, forked from one process.

The parent, `Zygote`, starts ``python drivers.py``, which imports all that a driver imports before torch and then forks
whatever it is told to. A forked process is a session of its own, as if a user had started it in another terminal.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import resource
import signal
import ssl
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chat_server import Answer, Body, FakeChatServer, Manner, error
from rude_servers import RUDE, good_answer

from metareward.engines.process_group import die_with_parent

HERE = Path(__file__).parent
# What a driver imports until it trains, and while it reports.
_PRELOADED = (
    *("metareward.cli.main", "metareward.pipeline.loop", "metareward.report.independent_judge", "httpx2"),
    *("metareward.report.benchmark_tables", "scipy.stats", "pyarrow.parquet", "pandas", "anyio._backends._asyncio"),
)


class Zygote:
    """The process that forks, as seen by the harness. ``preload``: a library for all processes (`clock.c`)."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "drivers.py")],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._ask({"ready": True})

    def driver(self, words: list[str], log: Path, memory: int | None = None) -> int:
        """Start ``metareward`` with these words; its output goes to ``log``. ``memory``: bytes it may take besides."""
        return int(self._ask({"run": words, "log": str(log), "memory": memory}))

    def server(self, manner: str, port: int, certificate: Path | None = None) -> int:
        """Start a server of this manner (see `manner_of`) at ``port``, when it listens; with TLS by ``certificate``."""
        return int(self._ask({"serve": manner, "port": port, "certificate": certificate and str(certificate)}))

    def poll(self, pid: int) -> int | None:
        """How the process ended (negative: by that signal); None while it runs."""
        code: int | None = self._ask({"poll": pid})
        return code

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        return json.loads(self._process.stdout.readline())


# --- what servers do ---


def manner_of(name: str) -> Manner:
    """``good``, ``slow``, one of `RUDE` by its name, or a share of judgments that fail: always, or at first."""
    match name:
        case "good":
            return lambda body, _: good_answer(body)
        case "some judgments fail":
            return _failing_judgments(lambda _: error(400, "this judgment is refused"))
        case "some judgments fail at first":
            seen: set[str] = set()

            def at_first(key: str) -> Answer | None:
                fresh = key not in seen
                seen.add(key)
                return error(500) if fresh else None

            return _failing_judgments(at_first)
        case _:
            (rude,) = (each for each in RUDE if each.name == name)
            return rude.manner(dies_after=20)


def _failing_judgments(trouble: Callable[[str], Answer | None]) -> Manner:
    """A fifth of the judgments, by their requests' digests."""

    def manner(body: Body, _: int) -> Answer:
        text, key = body["messages"][-1]["content"], json.dumps(body)
        judging = "<answer>" in text and "<judgment_a>" not in text
        chosen = judging and hashlib.sha256(key.encode()).digest()[0] % 5 == 0
        return (trouble(key) if chosen else None) or good_answer(body)

    return manner


# --- in the forked processes ---


def _serve(request: Mapping[str, Any], listening: int) -> None:
    async def serve() -> None:
        server = FakeChatServer(manner_of(request["serve"]))
        server.port = request["port"]
        if request["certificate"]:
            server.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            server.tls.load_cert_chain(request["certificate"])
        await server.live()
        os.write(listening, b"1")
        os.close(listening)
        await asyncio.sleep(3600)

    asyncio.run(serve())


def _run(request: Mapping[str, Any], started: int) -> int:
    from metareward.cli.main import main

    if request["memory"] is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + request["memory"]
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = ["metareward", *request["run"]]
    os.write(started, b"1")  # signals that come before are Python's, not the program's
    os.close(started)
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _forked(request: Mapping[str, Any], listening: int) -> None:
    """Be the process that ``request`` asks for; never returns."""
    code = 1
    try:
        die_with_parent()
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND) if "run" in request else null
        for handle, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(handle, target)
        if "run" in request:
            code = _run(request, listening)
        else:
            _serve(request, listening)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _fork(request: Mapping[str, Any]) -> int:
    """The new process's id, when the server listens or the driver's program begins."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        _forked(request, writing)
    os.close(writing)
    os.read(reading, 1)
    os.close(reading)
    return pid


def _poll(pid: int, codes: dict[int, int]) -> int | None:
    if pid not in codes:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        codes[pid] = os.waitstatus_to_exitcode(status)
    return codes[pid]


def main() -> None:
    """Import, then fork and report, one request a line, until standard input ends."""
    for name in _PRELOADED:
        importlib.import_module(name)
    assert "torch" not in sys.modules
    die_with_parent()
    codes: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        reply: Any = True
        if "poll" in request:
            reply = _poll(request["poll"], codes)
        elif "ready" not in request:
            reply = _fork(request)
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
