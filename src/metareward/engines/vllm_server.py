"""A vLLM server of our own: a child process that serves one model folder, asked like any other endpoint.

vLLM may live in another Python environment than ours. The server and whatever it starts end with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metareward.engines.base import Engine, EngineError, require_model_folder
from metareward.engines.endpoint import EndpointSettings, open_endpoint
from metareward.engines.endpoint_place import Pauses
from metareward.engines.process_group import ProcessGroup
from metareward.engines.vllm import ENVIRONMENT, VllmSettings, arguments, missing, unstarted
from metareward.errors import UserError
from metareward.types import Completion, Messages, ModelRole, Sampling

_NAME = "model"
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_STOP = 20.0
# A request may wait for others in the server, so only one that is lost takes this long.
_REQUEST_TIMEOUT = 3600.0
_ATTEMPTS = 3
# Nobody starts this server again, so a minute without a connection is no pause.
_PAUSES = Pauses(patience=60.0)
# What vLLM puts before a line: the process, then the level, date and place in its source.
_MARKS = re.compile(r"(?:\(\w+ pid=\d+\) )?(?:(?P<level>[A-Z]+) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_ERROR = re.compile(r"\S.*?(?:Error|Exception): ")
_HARMLESS = ("DEBUG", "INFO", "WARNING")


# Which vLLM another Python has, told by exit status: vLLM prints this and that.
_MISSING, _ON_CPU = 3, 4
_PROGRAM = f"""\
import importlib.util, sys
if importlib.util.find_spec("vllm") is None:
    sys.exit({_MISSING})
from vllm.platforms import current_platform
sys.exit({_ON_CPU} if current_platform.is_cpu() else 0)
"""


@dataclass(frozen=True, slots=True)
class VllmServerSettings:
    """How the server runs the model, and how it is started and asked.

    ``python``: of the environment that has vLLM, None this one. ``in_flight``: requests under way at once.
    ``start_timeout``: seconds until it must answer. ``log``: file to which what it prints is appended.
    """

    model: VllmSettings
    python: Path | None
    in_flight: int
    start_timeout: float
    log: Path


async def open_vllm_server(folder: Path, settings: VllmServerSettings) -> Engine:
    """Start a server for the Hugging Face model in ``folder``; returns when it answers.

    Raises `UserError` with the server's own words if it can't be started, and when it takes too long.
    """
    require_model_folder(folder)
    server = await Server.start(folder, settings)
    asked = EndpointSettings(
        urls=(server.url,),
        model=_NAME,
        key_variable=None,
        in_flight=settings.in_flight,
        requests_per_minute=None,
        timeout=_REQUEST_TIMEOUT,
        attempts=_ATTEMPTS,
        cache=None,
        pauses=_PAUSES,
    )
    try:
        return VllmServer(server, await open_endpoint(asked))
    except (UserError, asyncio.CancelledError):
        await server.stop()
        raise


class VllmServer:
    """Completions from a server that ends with this engine."""

    def __init__(self, server: Server, endpoint: Engine) -> None:
        self._server = server
        self._endpoint = endpoint
        self._closed = False
        self._watch = asyncio.create_task(self._outlive())

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`. Raises `EngineError` with the server's last words when it has died."""
        try:
            return await self._endpoint.complete(messages, sampling, n, role)
        except EngineError as error:
            if self._closed or self._server.running:
                raise
            raise EngineError(self._server.obituary()) from error

    async def aclose(self) -> None:
        """End the server and all its processes; requests under way fail with `EngineError`."""
        self._closed = True
        await self._endpoint.aclose()
        await self._server.stop()
        await self._watch

    async def _outlive(self) -> None:
        """An endpoint waits for a server that is away to come back, but this one won't: close it with the server."""
        await self._server.end()
        await self._endpoint.aclose()


class Server:
    """The child process, its address and its log."""

    def __init__(
        self,
        folder: Path,
        url: str,
        log: Path,
        log_start: int,
        process: asyncio.subprocess.Process,
        group: ProcessGroup,
    ) -> None:
        self.url = url
        self._folder = folder
        self._log = log
        self._log_start = log_start
        self._process = process
        self._group = group

    @classmethod
    async def start(cls, folder: Path, settings: VllmServerSettings) -> Server:
        """Start a server and wait until it answers. Raises `UserError`."""
        python = settings.python or Path(sys.executable)
        on_cpu = await _runs_on_cpu(python)
        port, begin, group = _free_port(), _size(settings.log), ProcessGroup()
        with settings.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *_command(python, arguments(folder, settings.model, on_cpu), port),
                stdin=DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        server = cls(folder, f"http://127.0.0.1:{port}", settings.log, begin, process, group)
        try:
            await server._wait(settings.start_timeout)
        except (UserError, asyncio.CancelledError):
            await server.stop()
            raise
        group.close()
        return server

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._process.returncode is None

    async def end(self) -> None:
        """Wait until the process has ended."""
        await self._process.wait()

    async def stop(self) -> None:
        """Ask the server to end, then make it and all its processes end."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _SECONDS_TO_STOP)
        # Kills its children in its Unix process group; our `ProcessGroup` those that left it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await asyncio.to_thread(self._group.kill)

    def obituary(self) -> str:
        """Of what the server died, and its last words."""
        code = self._process.returncode
        cause = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        return f"{self._folder}: the vLLM server ended {cause} ({self._last_words()}; all of it in {self._log})"

    async def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(_healthy, self.url):
            if not self.running:
                raise UserError(unstarted(self._folder, f"{self._last_words()} (all of it in {self._log})"))
            if time.monotonic() > deadline:
                late = f"no answer within {seconds:g} s ({self._last_words()}; all of it in {self._log})"
                raise UserError(unstarted(self._folder, f"{late}; is engine.start_timeout too short?"))
            await asyncio.sleep(_SECONDS_BETWEEN_LOOKS)

    def _last_words(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return last_words(log.read().decode(errors="replace"))[:300]


def last_words(log: str) -> str:
    """Of what a server printed, the first error with what is said below it, else the last line; without marks."""
    parted = [(_MARKS.match(line), line) for line in log.splitlines()]
    lines = [(marks["level"], line[marks.end() :]) for marks, line in parted if marks and line[marks.end() :].strip()]
    for place, (level, text) in enumerate(lines):
        if level not in _HARMLESS and _ERROR.match(text):
            below = itertools.takewhile(lambda line: line[1].startswith(" "), lines[place + 1 :])
            return " ".join(" ".join([text, *(line for _, line in below)]).split())
    return lines[-1][1].strip() if lines else "it printed nothing"


def _command(python: Path, asked: Mapping[str, Any], port: int) -> list[str]:
    options = {**asked, "served_model_name": _NAME, "host": "127.0.0.1", "port": port}
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--uvicorn-log-level", "warning"]
    for name, value in options.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{dashed}" if value else f"--no-{dashed}")
        elif value is not None:
            command += [f"--{dashed}", str(value)]
    return command


def _environment() -> dict[str, str]:
    """The child's environment: the user's wishes for vLLM stand, but nobody is told a key that would be asked for."""
    quiet = {name: value for name, value in ENVIRONMENT.items() if name != "VLLM_LOGGING_LEVEL"}
    return {name: value for name, value in (quiet | os.environ).items() if name != "VLLM_API_KEY"}


async def _runs_on_cpu(python: Path) -> bool:
    """Whether the vLLM of this Python is for CPUs. Raises `UserError` when there is none."""
    try:
        child = await asyncio.create_subprocess_exec(
            str(python), "-P", "-c", _PROGRAM, env=_environment(), stdout=DEVNULL, stderr=PIPE
        )
    except OSError as error:
        raise UserError(f"engine.python {str(python)!r} can't be run: {error.strerror}") from error
    said = (await child.communicate())[1].decode(errors="replace")
    if child.returncode == _MISSING:
        raise UserError(missing(str(python)))
    if child.returncode not in (0, _ON_CPU):
        raise UserError(f"engine.python {str(python)!r}: its vLLM can't be imported: {last_words(said)[:300]}")
    return child.returncode == _ON_CPU


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _healthy(url: str) -> bool:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0
