"""A vLLM server that the run starts for one model folder, used through the OpenAI client.

vLLM may be installed in another Python environment. The server and its child processes end with this process.
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
from pathlib import Path
from typing import Any

from metareward.engines.base import Engine, EngineError, require_model_folder
from metareward.engines.openai.engine import OpenAISettings, open_openai
from metareward.engines.openai.rate_control import Pauses
from metareward.engines.process_group import ProcessGroup
from metareward.engines.vllm.engine import ENVIRONMENT, VllmSettings, engine_arguments, missing, unstarted
from metareward.errors import UserError
from metareward.types import Completion, Messages, ModelRole, Sampling

_NAME = "model"
_POLL_SECONDS = 0.5
_STOP_SECONDS = 20.0
_REQUEST_TIMEOUT = 3600.0  # the server queues requests, so only a lost one takes this long
_ATTEMPTS = 3
# Nothing restarts this server, so it isn't waited for long.
_PAUSES = Pauses(patience=60.0)
# vLLM's prefix of a log line: process, level, date, source line.
_PREFIX = re.compile(r"(?:\(\w+ pid=\d+\) )?(?:(?P<level>[A-Z]+) [\d-]+ [\d:]+ \[[^\]]*\] ?)?")
_ERROR = re.compile(r"\S.*?(?:Error|Exception): ")
_HARMLESS = ("DEBUG", "INFO", "WARNING")


# Finds out which vLLM another Python has; answers by exit status, because vLLM prints to stdout.
_MISSING, _ON_CPU = 3, 4
_PROGRAM = f"""\
import importlib.util, sys
if importlib.util.find_spec("vllm") is None:
    sys.exit({_MISSING})
from vllm.platforms import current_platform
sys.exit({_ON_CPU} if current_platform.is_cpu() else 0)
"""


async def open_vllm_server(folder: Path, settings: VllmSettings, log: Path) -> Engine:
    """Start a server for the Hugging Face model in ``folder``; returns when it answers. Its output goes to ``log``.

    Raises `UserError` with the server's own message if it can't be started, and when it takes too long.
    """
    require_model_folder(folder)
    server = await Server.start(folder, settings, log)
    client = OpenAISettings.model_validate(
        {
            "base_urls": (server.url,),
            "model": _NAME,
            "max_concurrency": settings.max_concurrency,
            "timeout": _REQUEST_TIMEOUT,
            "max_attempts": _ATTEMPTS,
        }
    )
    try:
        return VllmServer(server, await open_openai(client, _PAUSES))
    except (UserError, asyncio.CancelledError):
        await server.stop()
        raise


class VllmServer:
    """Completions from a server that ends with this engine."""

    def __init__(self, server: Server, client: Engine) -> None:
        self._server = server
        self._client = client
        self._closed = False
        self._watch = asyncio.create_task(self._close_with_server())

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`. Raises `EngineError` with the server's last error when it has died."""
        try:
            return await self._client.complete(messages, sampling, n, role)
        except EngineError as error:
            if self._closed or self._server.running:
                raise
            raise EngineError(self._server.exit_reason()) from error

    async def aclose(self) -> None:
        """End the server and all its processes; requests in flight fail with `EngineError`."""
        self._closed = True
        await self._client.aclose()
        await self._server.stop()
        await self._watch

    async def _close_with_server(self) -> None:
        """The client would wait for the server to come back, but nothing restarts this one."""
        await self._server.end()
        await self._client.aclose()


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
    async def start(cls, folder: Path, settings: VllmSettings, log: Path) -> Server:
        """Start a server and wait until it answers. Raises `UserError`."""
        python = Path(settings.python or sys.executable)
        on_cpu = await _runs_on_cpu(python)
        port, group = _free_port(), ProcessGroup()
        log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *_command(python, engine_arguments(folder, settings, on_cpu), port),
                stdin=DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        server = cls(folder, f"http://127.0.0.1:{port}", log, log_start, process, group)
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
                await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        # Kills its children in its Unix process group; our `ProcessGroup` those that left it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        await asyncio.to_thread(self._group.kill)

    def exit_reason(self) -> str:
        """How the server ended, and its last error."""
        code = self._process.returncode
        cause = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        return f"{self._folder}: the vLLM server ended {cause} ({self._last_error()}; all of it in {self._log})"

    async def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(_healthy, self.url):
            if not self.running:
                raise UserError(unstarted(self._folder, f"{self._last_error()} (all of it in {self._log})"))
            if time.monotonic() > deadline:
                late = f"no answer within {seconds:g} s ({self._last_error()}; all of it in {self._log})"
                raise UserError(unstarted(self._folder, f"{late}; is engine.start_timeout too short?"))
            await asyncio.sleep(_POLL_SECONDS)

    def _last_error(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._log_start)
            return last_error(log.read().decode(errors="replace"))[:300]


def last_error(log: str) -> str:
    """The first error in a server's log with the indented lines below it, else the last line; without prefixes."""
    parsed = [(_PREFIX.match(line), line) for line in log.splitlines()]
    lines = [(marks["level"], line[marks.end() :]) for marks, line in parsed if marks and line[marks.end() :].strip()]
    for place, (level, text) in enumerate(lines):
        if level not in _HARMLESS and _ERROR.match(text):
            below = itertools.takewhile(lambda line: line[1].startswith(" "), lines[place + 1 :])
            return " ".join(" ".join([text, *(line for _, line in below)]).split())
    return lines[-1][1].strip() if lines else "it printed nothing"


def _command(python: Path, arguments: Mapping[str, Any], port: int) -> list[str]:
    options = {**arguments, "served_model_name": _NAME, "host": "127.0.0.1", "port": port}
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--uvicorn-log-level", "warning"]
    for name, value in options.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            command.append(f"--{dashed}" if value else f"--no-{dashed}")
        elif value is not None:
            command += [f"--{dashed}", str(value)]
    return command


def _environment() -> dict[str, str]:
    """The child's environment: the user's settings for vLLM, without an API key that the server would then demand."""
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
    errors = (await child.communicate())[1].decode(errors="replace")
    if child.returncode == _MISSING:
        raise UserError(missing(str(python)))
    if child.returncode not in (0, _ON_CPU):
        raise UserError(f"engine.python {str(python)!r}: its vLLM can't be imported: {last_error(errors)[:300]}")
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
