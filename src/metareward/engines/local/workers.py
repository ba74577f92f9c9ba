"""The local engine as child processes: one per GPU, or one per few CPU cores.

The parent doesn't import torch. A request goes to the worker with the least work left. The unfinished requests of a
worker that died go to another worker, once; completions depend on their seed alone, so the result is the same.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from metareward.engines.base import Engine, EngineError, max_choice_tokens, require_model_folder
from metareward.engines.device import accelerators, surely_cpu
from metareward.engines.local.worker import completion_from_json
from metareward.errors import UserError
from metareward.settings import Count, Section, Text
from metareward.types import Completion, Messages, ModelRole, Sampling

_LOG = logging.getLogger(__name__)
_MAX_LINE_BYTES = 1 << 28
_MAX_CPU_WORKERS = 8
_STOP_SECONDS = 5.0
_MAX_TRIES = 2


class LocalSettings(Section):
    """The local engine: PyTorch in worker processes on this machine."""

    kind: Literal["local"] = Field(default="local", description="'local': our engine")
    device: Text = Field(default="auto", description="'auto', 'cpu', 'cuda', 'cuda:1' and so on")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(default="auto", description="Number format of the weights")
    workers: Literal["auto"] | Count = Field(default="auto", description="Processes that share the prompts")
    threads: Literal["auto"] | Count = Field(default="auto", description="CPU threads of each worker")
    max_num_seqs: Count = Field(default=64, description="Completions written at the same time by each worker")
    deterministic: bool = Field(
        default=True, description="The same text whatever else is in the batch, at some cost in speed"
    )


@dataclass(frozen=True, slots=True)
class Job:
    """A request given to a worker. ``cost``: a rough measure of its work; ``tries``: workers it was given to."""

    id: int
    line: bytes
    cost: int
    tries: int
    future: asyncio.Future[tuple[Completion, ...]]


class Worker:
    """One child process and its unfinished jobs."""

    def __init__(self, process: asyncio.subprocess.Process, stderr: IO[bytes]) -> None:
        self.jobs: dict[int, Job] = {}
        self._process = process
        self._stderr = stderr

    @classmethod
    async def start(cls, settings: Mapping[str, Any]) -> Worker:
        """Start a process; returns when its model is loaded. Raises `UserError` or `EngineError`, one line each.

        ``settings``: those of `worker.main`.
        """
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker lives
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "metareward.engines.local.worker", json.dumps(settings)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=_environment(settings["threads"]),
            limit=_MAX_LINE_BYTES,
        )
        worker = cls(process, stderr)
        try:
            first = await worker._receive()
        except asyncio.CancelledError:
            await worker.stop()
            raise
        if first == {"ready": True}:
            return worker
        await worker.stop()
        if first is None:
            raise EngineError(f"{settings['folder']}: {worker.exit_reason()} while it loaded the model")
        raise UserError(str(first["refused"]))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def load(self) -> int:
        """Rough amount of unfinished work."""
        return sum(job.cost for job in self.jobs.values())

    def give(self, job: Job) -> None:
        """Send a job to the worker."""
        self.jobs[job.id] = job
        assert self._process.stdin is not None
        self._process.stdin.write(job.line)

    async def listen(self) -> None:
        """Settle the futures of jobs as replies come in, and log warnings; returns when the process has ended."""
        while (reply := await self._receive()) is not None:
            if "warning" in reply:
                _LOG.warning("%s", reply["warning"])
                continue
            job = self.jobs.pop(reply["id"])
            if job.future.done():
                continue
            if "error" in reply:
                job.future.set_exception(EngineError(reply["error"]))
            else:
                job.future.set_result(tuple(map(completion_from_json, reply["completions"])))
        await self._process.wait()

    async def stop(self) -> None:
        """Close the pipe, which ends the process; kill the process if that takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def exit_reason(self) -> str:
        """How the process ended, with the last line of its stderr. Only after it has ended."""
        self._stderr.seek(0)
        last = self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
        code = self._process.returncode
        cause = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        return f"the engine's worker process {self._process.pid} ended {cause}" + (f" ({last})" if last else "")

    async def _receive(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply


class WorkerPool:
    """An `Engine` over several workers. It serves as long as one of them is alive."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._alive = list(workers)
        self._ids = itertools.count()
        self._exit_reason = "the engine is closed"
        self._listeners = [asyncio.create_task(self._attend(worker)) for worker in workers]

    @classmethod
    async def open(cls, settings: Sequence[Mapping[str, Any]]) -> WorkerPool:
        """Start all workers at once. If one can't start, all others are stopped and its error is raised."""
        starts = [asyncio.create_task(Worker.start(each)) for each in settings]
        try:
            return cls(await asyncio.gather(*starts))
        except (UserError, EngineError, asyncio.CancelledError):
            for start in starts:
                start.cancel()
            for outcome in await asyncio.gather(*starts, return_exceptions=True):
                if isinstance(outcome, Worker):
                    await outcome.stop()
            raise

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers that are alive."""
        return tuple(worker.pid for worker in self._alive)

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002 - one model in all roles
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`."""
        job_id = next(self._ids)
        request = {
            "id": job_id,
            "messages": [[message.role, message.content] for message in messages],
            "sampling": astuple(sampling),
            "n": n,
        }
        # About four characters per token, and prefilling a token costs about a fifth of generating one.
        limit = max_choice_tokens(sampling.choices) if sampling.choices else sampling.max_tokens
        cost = n * limit + sum(len(message.content) for message in messages) // 20
        future: asyncio.Future[tuple[Completion, ...]] = asyncio.get_running_loop().create_future()
        self._assign(Job(job_id, json.dumps(request).encode() + b"\n", cost, 0, future))
        return await future

    async def aclose(self) -> None:
        """End all workers; unfinished requests fail with `EngineError`."""
        self._exit_reason = "the engine was closed before this request was finished"
        workers, self._alive = self._alive, []
        await asyncio.gather(*(worker.stop() for worker in workers))
        await asyncio.gather(*self._listeners)

    def _assign(self, job: Job) -> None:
        if not self._alive or job.tries == _MAX_TRIES:
            job.future.set_exception(EngineError(self._exit_reason))
            return
        min(self._alive, key=lambda worker: worker.load).give(replace(job, tries=job.tries + 1))

    async def _attend(self, worker: Worker) -> None:
        """Listen to a worker; when it has ended, assign its unfinished jobs to others."""
        await worker.listen()
        if worker in self._alive:
            self._alive.remove(worker)
            self._exit_reason = worker.exit_reason()
        for job in worker.jobs.values():
            if not job.future.done():
                self._assign(job)


def _environment(threads: int) -> dict[str, str]:
    """The worker's environment: no network, few threads, and freed memory is kept instead of being faulted in again."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Threads that spin while waiting for each other become tenfold slower and more when they lose a core.
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
        "MALLOC_TOP_PAD_": str(1 << 26),
    }


async def open_local(folder: Path, settings: LocalSettings) -> Engine:
    """An engine over worker processes that run the Hugging Face model in ``folder``.

    ``workers: auto`` is one per GPU, on a CPU one per core and at most 8; ``threads: auto`` divides the cores among the
    workers. Raises `UserError` naming the folder and the fix if the model can't be loaded or run.
    """
    require_model_folder(folder)
    devices = await _devices(settings.device)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    default = len(devices) if devices != ["cpu"] else min(cores, _MAX_CPU_WORKERS)
    count = default if settings.workers == "auto" else settings.workers
    shared = {
        "parent": os.getpid(),
        "folder": str(folder),
        "dtype": settings.dtype,
        "threads": max(1, cores // count) if settings.threads == "auto" else settings.threads,
        "max_num_seqs": settings.max_num_seqs,
        "deterministic": settings.deterministic,
    }
    each_device = itertools.islice(itertools.cycle(devices), count)
    return await WorkerPool.open([{**shared, "device": device} for device in each_device])


async def _devices(device: str) -> list[str]:
    """The single devices that ``device`` means. Asks torch, in a child process, only if there may be a GPU."""
    if device not in ("auto", "cuda"):
        return [device]
    if surely_cpu(device):
        return ["cpu"]
    gpus, mps = await asyncio.to_thread(accelerators)
    if gpus:
        return [f"cuda:{index}" for index in range(len(gpus))]
    return [device] if device == "cuda" else ["mps" if mps else "cpu"]
