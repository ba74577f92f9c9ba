"""An engine made of child processes that each run the model: one to a GPU, or one to a CPU core.

The parent needs no torch. A request goes to the worker with the least to do. What a worker had not finished when
it died is given to another one, once; as a completion depends on its seed alone, nobody can tell afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from metareward.engines.engine import Engine, EngineError
from metareward.engines.model_folder import require_model_folder
from metareward.engines.precision import accelerators, surely_cpu
from metareward.engines.wire import unpack
from metareward.errors import UserError
from metareward.types import Completion, Messages, ModelRole, Sampling

_LOG = logging.getLogger(__name__)
_LONGEST_LINE = 1 << 28
_MOST_CPU_WORKERS = 8
_SECONDS_TO_STOP = 5.0
_MOST_TRIES = 2


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is started with; ``device`` is one device, and ``parent`` the process it must not outlive."""

    folder: str
    device: str
    dtype: str
    threads: int
    rows: int
    deterministic: bool
    parent: int


@dataclass(frozen=True, slots=True)
class Job:
    """A request on its way. ``cost`` is a rough measure of its work; ``tries`` counts the workers it was given to."""

    id: int
    line: bytes
    cost: int
    tries: int
    future: asyncio.Future[tuple[Completion, ...]]


class Worker:
    """One child process and the jobs it has not answered yet."""

    def __init__(self, process: asyncio.subprocess.Process, stderr: IO[bytes]) -> None:
        self.jobs: dict[int, Job] = {}
        self._process = process
        self._stderr = stderr

    @classmethod
    async def start(cls, settings: WorkerSettings) -> Worker:
        """Start a process; returns when its model is loaded. Raises `UserError` or `EngineError`, one line each."""
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the worker
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "metareward.engines.worker", json.dumps(asdict(settings))),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env=_environment(settings.threads),
            limit=_LONGEST_LINE,
        )
        worker = cls(process, stderr)
        try:
            greeting = await worker._receive()
        except asyncio.CancelledError:
            await worker.stop()
            raise
        if greeting == {"ready": True}:
            return worker
        await worker.stop()
        if greeting is None:
            raise EngineError(f"{settings.folder}: {worker.obituary()} while it loaded the model")
        raise UserError(str(greeting["refused"]))

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def load(self) -> int:
        """Rough amount of work that is not done yet."""
        return sum(job.cost for job in self.jobs.values())

    def give(self, job: Job) -> None:
        """Send it a job."""
        self.jobs[job.id] = job
        assert self._process.stdin is not None
        self._process.stdin.write(job.line)

    async def listen(self) -> None:
        """Settle the futures of jobs as their answers come in, log warnings; returns when the process has ended."""
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
                job.future.set_result(tuple(unpack(parts) for parts in reply["completions"]))
        await self._process.wait()

    async def stop(self) -> None:
        """Close the pipe, which ends the process; kill it if that takes too long."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _SECONDS_TO_STOP)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    def obituary(self) -> str:
        """Who died and of what, for a process that has ended."""
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
    """An engine over several workers. It goes on as long as one is alive."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._alive = list(workers)
        self._ids = itertools.count()
        self._obituary = "the engine is closed"
        self._listeners = [asyncio.create_task(self._attend(worker)) for worker in workers]

    @classmethod
    async def open(cls, settings: Sequence[WorkerSettings]) -> WorkerPool:
        """Start all workers at once. If one can't start, none is left behind and its error is raised."""
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
        """The processes of the workers that are alive."""
        return tuple(worker.pid for worker in self._alive)

    async def complete(
        self,
        messages: Messages,
        sampling: Sampling,
        n: int,
        role: ModelRole = "actor",  # noqa: ARG002 - one model in all roles
    ) -> Sequence[Completion]:
        """``n`` completions; see `Engine`."""
        number = next(self._ids)
        request = {
            "id": number,
            "messages": [[message.role, message.content] for message in messages],
            "sampling": [
                sampling.temperature,
                sampling.top_p,
                sampling.max_tokens,
                sampling.seed,
                sampling.top_logprobs,
            ],
            "n": n,
        }
        # About four characters to a token, and reading a token costs about a fifth of writing one.
        cost = n * sampling.max_tokens + sum(len(message.content) for message in messages) // 20
        future: asyncio.Future[tuple[Completion, ...]] = asyncio.get_running_loop().create_future()
        self._assign(Job(number, json.dumps(request).encode() + b"\n", cost, 0, future))
        return await future

    async def aclose(self) -> None:
        """End all workers; requests under way fail with `EngineError`."""
        self._obituary = "the engine was closed before this request was finished"
        workers, self._alive = self._alive, []
        await asyncio.gather(*(worker.stop() for worker in workers))
        await asyncio.gather(*self._listeners)

    def _assign(self, job: Job) -> None:
        if not self._alive or job.tries == _MOST_TRIES:
            job.future.set_exception(EngineError(self._obituary))
            return
        min(self._alive, key=lambda worker: worker.load).give(replace(job, tries=job.tries + 1))

    async def _attend(self, worker: Worker) -> None:
        """Listen to a worker; when it has ended, hand its unfinished jobs on."""
        await worker.listen()
        if worker in self._alive:
            self._alive.remove(worker)
            self._obituary = worker.obituary()
        for job in worker.jobs.values():
            if not job.future.done():
                self._assign(job)


def _environment(threads: int) -> dict[str, str]:
    """The child's environment: no network, few threads, and memory kept rather than returned and faulted in again."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Threads that spin while they wait for each other slow down tenfold and more when a core is taken from them.
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


async def open_local(
    folder: Path,
    *,
    device: str,
    dtype: str,
    workers: int | Literal["auto"],
    threads: int | Literal["auto"],
    rows: int,
    deterministic: bool,
) -> Engine:
    """An engine over child processes that run the Hugging Face model in ``folder``.

    ``workers`` "auto" is one to a GPU, on CPU one to a core and at most 8; ``threads`` "auto" shares the cores out.
    Raises `UserError` naming the folder and the fix if the model can't be loaded or run.
    """
    require_model_folder(folder)
    devices = await _devices(device)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    count = workers if workers != "auto" else len(devices) if devices != ["cpu"] else min(cores, _MOST_CPU_WORKERS)
    each = threads if threads != "auto" else max(1, cores // count)
    common = WorkerSettings(str(folder), "", dtype, each, rows, deterministic, os.getpid())
    places = itertools.islice(itertools.cycle(devices), count)
    return await WorkerPool.open([replace(common, device=place) for place in places])


async def _devices(device: str) -> list[str]:
    """The single devices that ``device`` stands for. Asks torch, in a child, only where there may be a GPU."""
    if device not in ("auto", "cuda"):
        return [device]
    if surely_cpu(device):
        return ["cpu"]
    gpus, mps = await asyncio.to_thread(accelerators)
    if gpus:
        return [f"cuda:{index}" for index in range(gpus)]
    return [device] if device == "cuda" else ["mps" if mps else "cpu"]
