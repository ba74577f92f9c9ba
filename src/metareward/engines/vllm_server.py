"""vLLM as a server that the run starts and stops, used through the OpenAI client: of any Python environment.

It ends with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2

from metareward.engines.base import Engine, EngineError, require_model_folder
from metareward.engines.openai.engine import OpenAISettings, open_openai
from metareward.engines.openai.pool import Pauses
from metareward.engines.process_group import ProcessGroup, dying_with_parent
from metareward.engines.vllm import ENVIRONMENT, VllmSettings, copies, engine_arguments, missing, unstarted
from metareward.engines.vllm_reload import Reloader, ReloadError
from metareward.engines.vllm_worker import metareward_vllm as worker
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
_MISSING, _ON_CPU, _GPUS = 3, 4, 16  # _GPUS and the number of GPUs
_PROGRAM = f"""\
import importlib.util, sys
if importlib.util.find_spec("vllm") is None:
    sys.exit({_MISSING})
from vllm.platforms import current_platform
if current_platform.is_cpu():
    sys.exit({_ON_CPU})
import torch
sys.exit({_GPUS} + torch.accelerator.device_count())
"""


async def open_vllm_server(folder: Path, settings: VllmSettings, log: Path) -> Engine:
    """Start a server for the Hugging Face model in ``folder``; returns when it answers. Its output goes to ``log``.

    Raises `UserError` with the server's own message if it can't be started, and when it takes too long.
    """
    require_model_folder(folder)
    python = Path(settings.python or sys.executable)
    gpus = await _count_gpus(python)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    group = ProcessGroup()
    log_start = log.stat().st_size if log.exists() else 0
    token = secrets.token_hex(16) if settings.reload else ""
    arguments = engine_arguments(folder, settings, gpus) | (RELOADS if settings.reload else {})
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *dying_with_parent(server_command(python, arguments, port)),
            stdin=DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment() | (_reload_environment(token) if token else {}),
            start_new_session=True,
        )
    server = Server(folder, f"http://127.0.0.1:{port}", log, log_start, process, group)
    try:
        await server.wait_until_healthy(settings.start_timeout)
        group.close()
        client = OpenAISettings.model_validate(
            {
                "base_urls": (server.url,),
                "model": _NAME,
                "tokenizer": str(folder),
                "max_concurrency": settings.max_concurrency * copies(settings, gpus),
                "timeout": _REQUEST_TIMEOUT,
                "max_attempts": _ATTEMPTS,
            }
        )
        return VllmServer(server, await open_openai(client, _PAUSES), token, on_gpu=gpus is not None)
    except (UserError, asyncio.CancelledError):
        await server.stop()
        raise


class VllmServer:
    """Completions from a server that ends with this engine."""

    def __init__(self, server: Server, client: Engine, token: str = "", on_gpu: bool = False) -> None:
        self._server = server
        self._client = client
        self._closed = False
        self._reloader = Reloader(server.folder, _ServerControls(server.url, token), on_gpu, self.complete)
        self._watch = asyncio.create_task(self._close_with_server())

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`. Raises `EngineError` with the server's last error when it has died."""
        try:
            return await self._client.complete(messages, sampling, n, role)
        except EngineError as error:
            server, code = self._server, self._server.process.returncode
            if self._closed or code is None:
                raise
            cause = f"by signal {-code}" if code < 0 else f"with exit status {code}"
            message = f"the vLLM server ended {cause} ({server.last_error()}; all of it in {server.log})"
            raise EngineError(f"{server.folder}: {message}") from error

    async def sleep(self) -> None:
        """Give back the GPUs' memory until `load`. Raises `ReloadError`."""
        await self._reloader.sleep()

    async def load(self, folder: Path) -> None:
        """Complete with the model in ``folder`` from now on. Raises `ReloadError`."""
        await self._reloader.load(folder)
        self._server = replace(self._server, folder=folder)

    async def aclose(self) -> None:
        """End the server and all its processes; requests in flight fail with `EngineError`."""
        self._closed = True
        await self._client.aclose()
        await self._server.stop()
        await self._watch

    async def _close_with_server(self) -> None:
        """The client would wait for the server to come back, but nothing restarts this one."""
        await self._server.process.wait()
        await self._client.aclose()


# The names are those that vLLM's environment finds: `_reload_environment` puts the module on its path.
RELOADS = {"worker_extension_cls": "metareward_vllm.WeightLoader", "middleware": "metareward_vllm.Guard"}


def _reload_environment(token: str) -> dict[str, str]:
    """With the endpoints that vLLM has for development only; the guard keeps them from others."""
    places = [str(Path(str(worker.__file__)).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": os.pathsep.join(places), worker.TOKEN: token}


@dataclass(frozen=True, slots=True)
class _ServerControls:
    """The `Controls` of a vLLM server."""

    url: str
    token: str

    async def sleep(self) -> None:
        await self._post("sleep?level=2")

    async def wake_up(self, tag: str) -> None:
        await self._post(f"wake_up?tags={tag}")

    async def load(self, folder: str, digests: str) -> None:
        await self._post("collective_rpc", {"method": "metareward_load", "args": [folder, digests]})

    async def reset_prefix_cache(self) -> bool:
        reply = await self._post("reset_prefix_cache")
        return bool(reply.json().get("success", True)) if reply.content else True

    async def _post(self, what: str, body: Mapping[str, object] | None = None) -> httpx2.Response:
        try:
            async with httpx2.AsyncClient(timeout=_REQUEST_TIMEOUT, trust_env=False) as client:
                reply = await client.post(f"{self.url}/{what}", json=body, headers={worker.HEADER: self.token})
        except httpx2.HTTPError as error:
            raise ReloadError(f"{what.partition('?')[0]}: {error or type(error).__name__}") from None
        if reply.status_code != httpx2.codes.OK:
            raise ReloadError(f"{what.partition('?')[0]}: {reply.status_code} {' '.join(reply.text.split())[:300]}")
        return reply


@dataclass(frozen=True, slots=True)
class Server:
    """The child process, its address and its log, which is this server's own from byte ``log_start`` on."""

    folder: Path
    url: str
    log: Path
    log_start: int
    process: asyncio.subprocess.Process
    group: ProcessGroup

    async def wait_until_healthy(self, seconds: float) -> None:
        """Wait until the server answers. Raises `UserError` when it ends before, or takes longer than ``seconds``."""
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(self._healthy):
            if self.process.returncode is not None:
                raise UserError(unstarted(self.folder, f"{self.last_error()} (all of it in {self.log})"))
            if time.monotonic() > deadline:
                late = f"no answer within {seconds:g} s ({self.last_error()}; all of it in {self.log})"
                raise UserError(unstarted(self.folder, f"{late}; is engine.start_timeout too short?"))
            await asyncio.sleep(_POLL_SECONDS)

    def _healthy(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health", timeout=5, trust_env=False).status_code == httpx2.codes.OK
        except httpx2.HTTPError:
            return False

    async def stop(self) -> None:
        """Ask the server to end, then make it and all its processes end."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
        # Kills its children in its Unix process group; our `ProcessGroup` those that left it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()
        await asyncio.to_thread(self.group.kill)

    def last_error(self) -> str:
        """The server's last error, at most 300 characters."""
        with self.log.open("rb") as log:
            log.seek(self.log_start)
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


def server_command(python: Path, arguments: Mapping[str, Any], port: int) -> list[str]:
    """The command that starts the server."""
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


async def _count_gpus(python: Path) -> int | None:
    """How many GPUs the vLLM of this Python has; None if it is for CPUs. Raises `UserError` when there is none."""
    if shutil.which(python) is None:
        raise UserError(f"engine.python {str(python)!r} can't be run: there is no such program; fix: name another")
    command = dying_with_parent([str(python), "-P", "-c", _PROGRAM])
    child = await asyncio.create_subprocess_exec(*command, env=_environment(), stdout=DEVNULL, stderr=PIPE)
    errors = (await child.communicate())[1].decode(errors="replace")
    if child.returncode == _MISSING:
        raise UserError(missing(str(python)))
    code = child.returncode
    if code == _ON_CPU:
        return None
    if code is None or code < _GPUS:
        raise UserError(f"engine.python {str(python)!r}: its vLLM can't be imported: {last_error(errors)[:300]}")
    return code - _GPUS
