"""The local engine as child processes: one per GPU, or one per few CPU cores.

The parent doesn't import torch. A request goes to the worker with the least work left. A worker that died is started
again, and its unfinished requests are asked again; completions depend on their seed alone, so the result is the same. A
request that kills workers is found by trying one request at a time, and fails alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field

from metareward.engines.base import Engine, EngineError, max_choice_tokens, require_model_folder
from metareward.engines.device import accelerators, surely_cpu
from metareward.engines.local.worker import completion_from_json
from metareward.engines.process_group import count_oom_kills, dying_with_parent
from metareward.errors import UserError
from metareward.settings import Count, Section, Text
from metareward.text import one_line
from metareward.types import Completion, Messages, ModelRole, Sampling

_LOG = logging.getLogger(__name__)
_MAX_LINE_BYTES = 1 << 28
_MAX_CPU_WORKERS = 8
_STOP_SECONDS = 5.0
_TRIES_TOGETHER = 2  # tries of a request beside others, before it is tried while no other such request is
_MAX_TRIES = 4
_MAX_DEATHS = 5  # of a worker in a row without a finished request


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
    """A request given to a worker. ``cost``: a rough measure of its work."""

    line: bytes
    cost: int
    future: asyncio.Future[tuple[Completion, ...]]


class UnservedError(EngineError):
    """A worker died with this request, or a pass over several requests failed: another try may serve it."""


class Worker:
    """One child process and its unfinished jobs by their ids; ``served``: whether it has finished any."""

    def __init__(self, process: asyncio.subprocess.Process, stderr: IO[bytes]) -> None:
        self.jobs: dict[int, Job] = {}
        self.served = False
        self._oom_kills = count_oom_kills()
        self._process = process
        self._stderr = stderr
        self._unreadable = ""

    @classmethod
    async def start(cls, settings: Mapping[str, Any]) -> Worker:
        """Start a process; returns when its model is loaded. Raises `UserError` or `EngineError`, one line each.

        ``settings``: those of `worker.main`.
        """
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the worker lives
        command = [sys.executable, "-P", "-m", "metareward.engines.local.worker", json.dumps(settings)]
        process = await asyncio.create_subprocess_exec(
            *dying_with_parent(command),
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
        if first is None or "refused" not in first:
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

    async def complete(self, job_id: int, request: Mapping[str, Any], cost: int) -> tuple[Completion, ...]:
        """Send a request, and wait for its completions. Raises `UnservedError` when the process dies before.

        Nothing more is spent on a request whose caller is cancelled.
        """
        assert self._process.stdin is not None
        line = json.dumps({"id": job_id, **request}).encode() + b"\n"
        job = self.jobs[job_id] = Job(line, cost, asyncio.get_running_loop().create_future())
        self._process.stdin.write(job.line)
        try:
            return await job.future
        except asyncio.CancelledError:
            if self.jobs.pop(job_id, None) is not None and not self._process.stdin.is_closing():
                self._process.stdin.write(json.dumps({"cancel": job_id}).encode() + b"\n")
            raise

    async def listen(self) -> None:
        """Settle the futures of jobs as replies come in, and log warnings; returns when the process has ended.

        A process whose output can't be read is killed: what it has still to say is lost.
        """
        try:
            while (reply := await self._receive()) is not None:
                if "warning" in reply:
                    _LOG.warning("%s", reply["warning"])
                elif (job := self.jobs.pop(reply["id"], None)) is not None:  # None: it was cancelled meanwhile
                    self._settle(job.future, reply)
        except Exception as error:
            self._unreadable = f"wrote what can't be read ({type(error).__name__}: {one_line(str(error), 80)}), "
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()

    def _settle(self, future: asyncio.Future[tuple[Completion, ...]], reply: Mapping[str, Any]) -> None:
        completions = tuple(map(completion_from_json, reply.get("completions", ())))
        if future.done():  # its caller was cancelled
            return
        if "error" in reply:
            future.set_exception((UnservedError if reply["again"] else EngineError)(reply["error"]))
        else:
            self.served = True
            future.set_result(completions)

    def fail_all(self, error: EngineError) -> None:
        """Fail every unfinished job."""
        for job in self.jobs.values():
            if not job.future.done():
                job.future.set_exception(error)

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
        last = one_line(self._stderr.read().decode(errors="replace").strip().rpartition("\n")[2])
        code = self._process.returncode
        cause = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        if code == -signal.SIGKILL and (self._oom_kills or 0) < (count_oom_kills() or 0):
            cause += ", most likely for want of memory"
        said = f" ({last})" if last else ""
        return f"the engine's worker process {self._process.pid} {self._unreadable}ended {cause}{said}"

    async def _receive(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        reply: dict[str, Any] = json.loads(line)
        return reply


class WorkerPool:
    """An `Engine` over several workers. One that dies is started again, its requests go to the next that is free."""

    def __init__(self, settings: Sequence[Mapping[str, Any]], workers: Sequence[Worker]) -> None:
        self._alive = list(workers)
        self._starting = 0
        self._ids = itertools.count()
        self._exit_reason = ""
        self._changed = asyncio.Event()
        self._alone = asyncio.Lock()
        self._closed = False
        self._attending = [asyncio.create_task(self._attend(*each)) for each in zip(settings, workers, strict=True)]

    @classmethod
    async def open(cls, settings: Sequence[Mapping[str, Any]]) -> WorkerPool:
        """Start all workers at once. If one can't start, all others are stopped and its error is raised."""
        starts = [asyncio.create_task(Worker.start(each)) for each in settings]
        try:
            return cls(settings, await asyncio.gather(*starts))
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
        """``n`` completions; see `Engine`. A request that kills workers is tried by itself, and then fails alone."""
        request = {
            "messages": [[message.role, message.content] for message in messages],
            "sampling": astuple(sampling),
            "n": n,
        }
        # About four characters per token, and prefilling a token costs about a fifth of generating one.
        limit = max_choice_tokens(sampling.choices) if sampling.choices else sampling.max_tokens
        cost = n * limit + sum(len(message.content) for message in messages) // 20
        for tries in range(1, _MAX_TRIES + 1):
            # Several requests that were with dying workers: the one that kills them is found by trying one at a time.
            async with self._alone if tries > _TRIES_TOGETHER else contextlib.nullcontext():
                worker = await self._least_busy()
                try:
                    return await worker.complete(next(self._ids), request, cost)
                except UnservedError as error:
                    if tries == _MAX_TRIES or self._closed:
                        raise EngineError(f"{error}; the request was tried {tries} times") from None
        raise AssertionError("the last try returns or raises")

    async def aclose(self) -> None:
        """End all workers; unfinished requests fail with `EngineError`."""
        self._closed, self._exit_reason = True, "the engine was closed before this request was finished"
        workers, self._alive = self._alive, []
        self._changed.set()
        for worker in workers:
            worker.fail_all(EngineError(self._exit_reason))
        await asyncio.gather(*(worker.stop() for worker in workers))
        for task in self._attending:
            task.cancel()
        await asyncio.gather(*self._attending, return_exceptions=True)

    async def _least_busy(self) -> Worker:
        """The living worker with the least work, once there is one. Raises `EngineError` if there will be none."""
        while not self._alive:
            if self._closed or not self._starting:
                raise EngineError(self._exit_reason)
            self._changed.clear()
            await self._changed.wait()
        return min(self._alive, key=lambda worker: worker.load)

    async def _attend(self, settings: Mapping[str, Any], worker: Worker) -> None:
        """Listen to a worker, and start it again whenever it has died, unless it dies again and again."""
        deaths = 0
        while True:
            await worker.listen()
            if self._closed:
                return
            self._alive.remove(worker)
            deaths = 1 if worker.served else deaths + 1
            self._exit_reason = worker.exit_reason()
            self._starting += 1
            # Only now: whoever is failed here must see that a worker is being started.
            count = len(worker.jobs)
            worker.fail_all(UnservedError(self._exit_reason))
            try:
                if deaths > _MAX_DEATHS:
                    return
                _LOG.warning("%s; it is started again, %d requests are asked again", self._exit_reason, count)
                worker = await Worker.start(settings)
                self._alive.append(worker)
            except (UserError, EngineError) as error:
                self._exit_reason = str(error)
                return
            finally:
                self._starting -= 1
                self._changed.set()


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
