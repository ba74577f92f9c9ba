"""vLLM as an `Engine`: in child processes of this one, or as a server that the run starts and stops.

In process, completion ``i`` of a request is sampled with seed ``seed + i``; chat template, tokenization and decoding
are those of the local engine. vLLM's batches depend on the load, so a completion may still differ by rounding. A server
is used through the OpenAI client and may be that of another Python environment. All of it ends with this process.
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
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import httpx2
from pydantic import Field

from metareward.engines.base import (
    Engine,
    EngineError,
    as_choice,
    max_choice_tokens,
    require_model_folder,
    require_room,
    token_texts,
)
from metareward.engines.chat import ChatEncoder, ChatTemplateError
from metareward.engines.device import this_machine
from metareward.engines.openai.engine import OpenAISettings, open_openai
from metareward.engines.openai.pool import Pauses
from metareward.engines.process_group import ProcessGroup, dying_with_parent
from metareward.errors import UserError
from metareward.settings import Count, Section, Text
from metareward.types import Completion, Messages, ModelRole, Sampling, Step, TopLogprob

_SEED_MASK = (1 << 62) - 1  # vLLM adds a sample's number and takes 63 bits
# Set before vLLM is imported, unless the user has: no usage statistics, no downloads, only errors logged.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


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


class VllmSettings(Section):
    """vLLM, in this process or as a server of its own, which the run starts and stops."""

    kind: Literal["vllm"] = Field("vllm", description="vLLM, if it is installed")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="Number format of the weights")
    tensor_parallel_size: Count = Field(1, description="GPUs that one copy of the model is spread over")
    data_parallel_size: Literal["auto"] | Count = Field(
        "auto", description="Copies of the model that share the requests; auto: as many as the GPUs have room for"
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0.0, le=1.0, description="Share of the GPU's memory that it may take, or of the machine's on a CPU"
    )
    max_model_len: Count | None = Field(
        None, description="Longest prompt with completion, in tokens; empty for the model's"
    )
    serve: bool = Field(False, description="As a server of its own, started and stopped by the run")
    python: Text | None = Field(
        None, description="With serve: the Python of the environment that has vLLM, if it isn't this one"
    )
    max_concurrency: Count = Field(256, description="With serve: most requests in flight for each copy")
    start_timeout: float = Field(900.0, gt=0.0, description="With serve: seconds that the server has to start")


ENVIRONMENT_PYTHON = ".venv-vllm/bin/python"  # of vLLM's own environment, where docs/engines.md makes it


def automatic_engine() -> tuple[dict[str, object], str]:
    """What an engine of kind ``auto`` is on this machine: its kind with the settings that go with it, and why."""
    machine = this_machine()
    if not machine.gpus:
        return {"kind": "local"}, f"the machine has {machine}"
    if find_spec("vllm") is not None:
        return {"kind": "vllm"}, f"the machine has {machine}, and vLLM is installed"
    if Path(ENVIRONMENT_PYTHON).exists():
        return {"kind": "vllm", "serve": True, "python": ENVIRONMENT_PYTHON}, f"the machine has {machine}"
    why = f"the machine has {machine}, but there is no vLLM, which is several times as fast there (docs/engines.md)"
    return {"kind": "local"}, why


async def open_vllm(folder: Path, settings: VllmSettings) -> Engine:
    """vLLM on the Hugging Face model in ``folder``; blocks until it is loaded.

    Raises `UserError` if vLLM isn't installed here, or can't run this model with these settings.
    """
    require_model_folder(folder)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise UserError(missing(f"this Python environment ({error})")) from error
    import torch

    from metareward.engines.local.checkpoint import load_tokenizer

    gpus = None if current_platform.is_cpu() else torch.accelerator.device_count()
    tokenizer, group = load_tokenizer(folder), ProcessGroup()
    arguments = AsyncEngineArgs(**engine_arguments(folder, settings, gpus), disable_log_stats=True)
    try:
        # As offline use has it: without a context vLLM takes small batches.
        engine = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        group.kill()
        raise UserError(unstarted(folder, " ".join(str(error).split())[:300])) from error
    group.close()
    return VllmEngine(folder, engine, tokenizer, group)


def copies(settings: VllmSettings, gpus: int | None) -> int:
    """How many copies of the model share the requests; ``gpus`` is None on a CPU."""
    if settings.data_parallel_size != "auto":
        return settings.data_parallel_size
    return max(1, (gpus or 1) // settings.tensor_parallel_size)


def engine_arguments(folder: Path, settings: VllmSettings, gpus: int | None) -> dict[str, Any]:
    """vLLM's engine arguments, in process and as a server; ``gpus``: how many there are, None on a CPU.

    The folder's own sampling defaults are not used.
    """
    # vLLM on a CPU (0.32) dies of a prompt that is prefilled in chunks if its request has a seed: the generator has to
    # be set back between the chunks, which that of a CPU can't be.
    return {
        "model": str(folder),
        "dtype": settings.dtype,
        "tensor_parallel_size": settings.tensor_parallel_size,
        "data_parallel_size": copies(settings, gpus),
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_model_len": settings.max_model_len,
        "enable_prefix_caching": True,
        "enable_chunked_prefill": False if gpus is None else None,
        "generation_config": "vllm",
    }


def missing(where: str) -> str:
    """The error message when there is no vLLM."""
    return (
        f"engine.kind 'vllm' needs vLLM, which is not in {where}; pip install 'metareward[vllm]', "
        "or set engine.serve true and name the Python that has it in engine.python, or set engine.kind to local"
    )


def unstarted(folder: Path, why: str) -> str:
    """The error message when vLLM doesn't start."""
    return f"{folder}: vLLM does not start: {why}; fix: change its settings (engine), or set engine.kind to local"


class VllmEngine:
    """Completions from vLLM's asynchronous engine."""

    def __init__(self, folder: Path, engine: Any, tokenizer: Any, group: ProcessGroup) -> None:
        self._folder = folder
        self._engine = engine
        self._tokenizer = tokenizer
        self._encoder = ChatEncoder(tokenizer)
        self._group = group
        self._numbers = itertools.count()

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002 - one model in all roles
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        if self._engine is None:
            raise EngineError("the vLLM engine is closed")
        try:
            ids = self._encoder.encode(messages, continue_last=messages[-1].role == "assistant")
            if sampling.choices:
                sampling = replace(sampling, max_tokens=max_choice_tokens(sampling.choices))
            require_room(ids, sampling, n, self._engine.model_config.max_model_len)
        except (EngineError, ChatTemplateError, UnicodeEncodeError) as error:
            raise EngineError(f"{self._folder}: a request was refused: {error}") from error
        try:
            parameters = SamplingParams(
                n=n,
                temperature=sampling.temperature,
                top_p=max(sampling.top_p, 1e-6),
                max_tokens=sampling.max_tokens,
                seed=sampling.seed & _SEED_MASK,
                logprobs=sampling.top_logprobs or None,
                # Its mask precedes temperature, top-p and the log-probabilities, which are those of `Sampling.choices`.
                structured_outputs=StructuredOutputsParams(choice=[*sampling.choices]) if sampling.choices else None,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            written = self._engine.generate({"prompt_token_ids": ids}, parameters, str(next(self._numbers)))
            # With FINAL_ONLY there is one output, when all samples are finished.
            output = [output async for output in written][-1]
        except (EngineDeadError, EngineGenerateError, ValueError) as error:
            if self._engine is None:
                raise EngineError("the vLLM engine was closed before this request was finished") from error
            raise EngineError(f"{self._folder}: vLLM failed: {' '.join(str(error).split())[:300]}") from error
        in_order = sorted(output.outputs, key=lambda each: int(each.index))
        completions = (self._completion(each, sampling.top_logprobs) for each in in_order)
        if not sampling.choices:
            return tuple(completions)
        try:
            return tuple(as_choice(each, sampling.choices) for each in completions)
        except EngineError as error:
            raise EngineError(f"{self._folder}: vLLM {error}") from None

    async def aclose(self) -> None:
        """End vLLM's processes; requests in flight fail with `EngineError`."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(engine.shutdown)
            await asyncio.to_thread(self._group.kill)

    def _completion(self, output: Any, top_logprobs: int) -> Completion:
        def decode(ids: list[int]) -> str:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
            return text

        # Without stop strings only an end token stops a completion, and it is the last one.
        stopped = output.finish_reason == "stop"
        ids = list(output.token_ids)[: -1 if stopped else None]
        steps = []
        if top_logprobs:
            for text, place in zip(token_texts(decode, ids), output.logprobs, strict=False):
                # The sampled token is among them whatever its rank, so there may be one too many.
                best = sorted(place.items(), key=lambda entry: -float(entry[1].logprob))[:top_logprobs]
                top = (TopLogprob(self._tokenizer.decode([id]), float(entry.logprob)) for id, entry in best)
                steps.append(Step(text, tuple(top)))
        return Completion(decode(ids), "stop" if stopped else "length", len(ids), tuple(steps))


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
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            *dying_with_parent(server_command(python, engine_arguments(folder, settings, gpus), port)),
            stdin=DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(),
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
            server, code = self._server, self._server.process.returncode
            if self._closed or code is None:
                raise
            cause = f"by signal {-code}" if code < 0 else f"with exit status {code}"
            message = f"the vLLM server ended {cause} ({server.last_error()}; all of it in {server.log})"
            raise EngineError(f"{server.folder}: {message}") from error

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
    try:
        child = await asyncio.create_subprocess_exec(
            str(python), "-P", "-c", _PROGRAM, env=_environment(), stdout=DEVNULL, stderr=PIPE
        )
    except OSError as error:
        raise UserError(f"engine.python {str(python)!r} can't be run: {error.strerror}") from error
    errors = (await child.communicate())[1].decode(errors="replace")
    if child.returncode == _MISSING:
        raise UserError(missing(str(python)))
    code = child.returncode
    if code == _ON_CPU:
        return None
    if code is None or code < _GPUS:
        raise UserError(f"engine.python {str(python)!r}: its vLLM can't be imported: {last_error(errors)[:300]}")
    return code - _GPUS
