"""The engine of a recipe with ``engine.kind: ray``: starts, watches and replaces the replicas on a Ray cluster.

Ray places the actors and notices dead ones; which replica gets a request is decided here (`ReplicaPool`). When the run
ends, however it does, Ray ends its actors, and their engines end with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from metareward.engines.base import require_model_folder
from metareward.engines.ray.pool import Replica, ReplicaLostError, ReplicaPool
from metareward.engines.ray.replica import ModelSource, OpenEngine, ReplicaActor, Reply, put_model
from metareward.engines.ray.settings import MISSING, OneEngine, RaySettings, capacity, gpus_needed, replica_engine
from metareward.errors import UserError
from metareward.types import Completion, Messages, ModelRole, Sampling

_LOG = logging.getLogger(__name__)
_CHECK_SECONDS = 1.0
_NODES_SECONDS = 5.0  # between two looks at the cluster's nodes
_CLOSE_SECONDS = 30.0
_LONGEST_PAUSE = 60.0
_MOST_FAILED_STARTS = 5  # in a row, while no replica is there
_OWN_STORE_BYTES = 200_000_000  # of a cluster on this machine alone, where results are all that is stored
_connections = 0  # engines that use the connection which this process has made


class _Connection:
    """The process's connection to a cluster, shared by its engines; one that the caller has made is never closed."""

    def __init__(self, settings: RaySettings) -> None:
        global _connections
        import ray

        self._ours = _connections > 0 or not ray.is_initialized()
        if self._ours and not _connections:
            _connect(settings)
        _connections += self._ours

    def close(self) -> None:
        """Disconnect after the last engine; a cluster of our own ends with that."""
        global _connections
        import ray

        _connections -= self._ours
        if self._ours and not _connections:
            ray.shutdown()


def _connect(settings: RaySettings) -> None:
    import ray

    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    if "://" in address:
        raise UserError(
            f"engine.address: {address}: not the address of a node; fix: start the run on a node of the cluster, with "
            "its address as HOST:PORT or auto"
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "namespace": "metareward"}
    if address == "local":
        options["include_dashboard"] = False
        if settings.weights == "shared":
            options["object_store_memory"] = _OWN_STORE_BYTES
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        fix = "start it with ray start --head, or name its address in engine.address or RAY_ADDRESS, and its token, if "
        fix += "it has one, in RAY_AUTH_TOKEN with RAY_AUTH_MODE=token"
        raise UserError(f"engine.kind ray: no cluster at {address}: {_one_line(error)}; fix: {fix}") from None
    finally:
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)  # Ray's own would end the process without closing anything


async def open_ray(folder: Path, settings: RaySettings, open_one: Callable[[OneEngine, Path, Path], Any]) -> RayEngine:
    """Replicas of ``settings.engine`` on the model in ``folder``; returns when the first one is ready.

    ``open_one(engine, folder, logs)`` opens one of them, in another process. Raises `UserError` when Ray isn't
    installed, the cluster isn't there or has no room, or no replica can start.
    """
    try:
        import ray
    except ImportError:
        raise UserError(f"engine.kind ray {MISSING}") from None
    serves_files = settings.engine.kind != "openai"
    if serves_files:
        require_model_folder(folder)
    connection = _Connection(settings)
    try:
        model = ModelSource(folder.absolute())
        if serves_files:
            model = await asyncio.to_thread(put_model, folder, settings.weights, ray.put)
        engine = RayEngine(settings, model, open_one, connection)
    except BaseException:
        connection.close()
        raise
    try:
        await engine.wait_until_ready()
    except BaseException:
        await engine.aclose()
        raise
    return engine


@dataclass(eq=False, slots=True)
class _ActorReplica:
    """An actor that answers; ``lost`` is set, with the reason, when it is given up."""

    actor: Any
    node: str
    lost: asyncio.Future[str]

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        return (await _ask(self.node, self.actor.complete, messages, sampling, n, role)).result()


async def _ask(node: str, method: Any, *arguments: object) -> Reply:
    """The actor's reply, its warnings logged. Raises `ReplicaLostError` when the actor is gone."""
    from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, WorkerCrashedError

    try:
        reply: Reply = await method.remote(*arguments)
    except (RayActorError, ObjectLostError, WorkerCrashedError, GetTimeoutError) as error:
        raise ReplicaLostError(_one_line(error)) from None
    for warning in reply.warnings:
        _LOG.warning("%s: %s", node, warning)
    return reply


def _one_line(error: BaseException) -> str:
    """One line of Ray's message: the last one that names an error, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    return (named[-1] if named else lines[0] if lines else type(error).__name__)[:300]


class RayEngine:
    """An `Engine` over actors: one task for each, from its start to its loss, and one that starts them."""

    def __init__(
        self,
        settings: RaySettings,
        model: ModelSource,
        open_one: Callable[[OneEngine, Path, Path], Any],
        connection: _Connection,
    ) -> None:
        self._settings, self._model, self._connection = settings, model, connection
        self._open_one = open_one
        self._pool = ReplicaPool(settings.max_concurrency, settings.timeout, self._on_lost)
        self._tasks: dict[asyncio.Task[None], bool] = {}  # one for each replica; whether it is ready
        self._failed_starts: list[Reply] = []  # in a row
        self._pause_until = 0.0
        self._resources = ""  # what a replica takes, and what the nodes have
        self._empty_since: float | None = None  # no replica is left
        self._ready = asyncio.Event()
        self._supervisor = asyncio.create_task(self._supervise())
        self._supervisor.add_done_callback(self._fail_without_supervisor)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The node of each replica that gets requests."""
        return tuple(replica.node for replica in self._pool.replicas if isinstance(replica, _ActorReplica))

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """``n`` completions of one replica; see `Engine`."""
        return await self._pool.complete(messages, sampling, n, role)

    async def wait_until_ready(self) -> None:
        """Wait for the first replica. Raises what its start raised, or `UserError` when it takes too long."""
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait(
                [ready, self._supervisor],
                timeout=self._settings.start_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            ready.cancel()
        if self._supervisor.done():
            self._supervisor.result()  # raises
        if not self._ready.is_set():
            why = f"no replica was ready after {self._settings.start_timeout:.0f} s"
            why += f" ({self._failed_starts[0].text})" if self._failed_starts else f": {self._resources}"
            raise UserError(f"engine.replicas: {why}; fix: see with ray status what the cluster has room for")

    async def aclose(self) -> None:
        """End all replicas, then the connection; unfinished requests fail with `EngineError`."""
        self._pool.fail("the engine was closed before this request was finished")
        tasks = [self._supervisor, *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.to_thread(self._connection.close)

    # --- replicas ---

    async def _supervise(self) -> None:
        """Keep the number of replicas that the settings ask for. Raises the first error if none ever starts."""
        import ray

        clock, looked, room = asyncio.get_running_loop().time, float("-inf"), 0
        gpus = 0
        while True:
            if clock() - looked >= (_NODES_SECONDS if self._tasks else _CHECK_SECONDS):
                nodes = [node["Resources"] for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
                gpus = gpus_needed(self._settings, sum(node.get("GPU", 0.0) for node in nodes))
                room, looked = await self._room(nodes, gpus), clock()
            wanted = room if self._settings.replicas == "auto" else self._settings.replicas
            if len(self._tasks) < wanted and clock() >= self._pause_until:
                for _ in range(wanted - len(self._tasks)):
                    self._tasks[asyncio.create_task(self._run_replica(gpus))] = False
            for task in [task for task, ready in self._tasks.items() if not ready][: max(0, len(self._tasks) - wanted)]:
                task.cancel()
            await asyncio.sleep(_CHECK_SECONDS if self._ready.is_set() else 0.1)
            self._pool.check()
            self._check_failed_starts()
            self._check_empty(clock())

    async def _room(self, nodes: Sequence[dict[str, float]], gpus: int) -> int:
        """How many replicas fit beside what others use. Raises `UserError` if none fits at first."""
        import ray

        cpus, started = self._settings.cpus_per_replica, len(self._tasks)
        free = await asyncio.to_thread(ray.available_resources)
        most = capacity(nodes, cpus, gpus)
        each = f"{cpus} CPU{f' and {gpus} GPU' if gpus else ''}"
        has = "; ".join(f"{node.get('CPU', 0):.0f} CPU, {node.get('GPU', 0):.0f} GPU" for node in nodes)
        self._resources = f"one takes {each}, and the nodes have {has}"
        if not most and self._settings.replicas == "auto" and not self._ready.is_set():
            raise UserError(
                f"engine.replicas: no node has room for one replica of {each}: the nodes have {has}; fix: lower "
                "engine.cpus_per_replica or engine.gpus_per_replica, or set engine.replicas and wait for nodes"
            )
        # What others use is left to them. What was free a moment ago may not be reported as free yet.
        return min(most, started + capacity([free], cpus, gpus))

    def _check_failed_starts(self) -> None:
        """Raise the error if no replica could ever start; later fail the requests if no lost one can be replaced."""
        if not self._failed_starts or self._pool.replicas or self._tasks:
            return
        first = self._failed_starts[0]
        if not self._ready.is_set():
            first.result()
        if len(self._failed_starts) >= _MOST_FAILED_STARTS:
            self._pool.fail(
                f"no replica is left, and {len(self._failed_starts)} starts failed; the first one: {first.text}"
            )

    def _check_empty(self, now: float) -> None:
        """Tell that no replica is left; fail the requests if there is none again within ``start_timeout`` seconds."""
        if self._pool.replicas or not self._ready.is_set():
            self._empty_since = None
            return
        if self._empty_since is None:
            self._empty_since = now
            seconds = self._settings.start_timeout
            _LOG.warning("no replica is left: requests wait for one for up to %.0f s; %s", seconds, self._resources)
        elif now - self._empty_since > self._settings.start_timeout:
            self._pool.fail(
                f"no replica was left for {self._settings.start_timeout:.0f} s (engine.start_timeout): "
                f"{self._resources}; fix: add machines, and run again"
            )

    async def _run_replica(self, gpus: int) -> None:
        """One replica, from its start until it is lost."""
        import ray

        actor = (
            ray.remote(ReplicaActor)
            .options(
                num_cpus=self._settings.cpus_per_replica,
                num_gpus=gpus,
                max_restarts=0,  # a new one is started, maybe on another node
                max_concurrency=self._settings.max_concurrency + 8,
                scheduling_strategy="SPREAD",
            )
            .remote(self._model, self._opener(gpus), str(Path.cwd()))
        )
        task = asyncio.current_task()
        assert task is not None
        try:
            started = await _ask("a replica", actor.open)
            if started.error:
                self._note_failure(started)
                return
            replica = _ActorReplica(actor, started.text, asyncio.get_running_loop().create_future())
            self._failed_starts, self._tasks[task] = [], True
            self._pool.add(replica)
            self._ready.set()
            watch = asyncio.create_task(self._watch(replica))
            try:
                reason = await replica.lost
            finally:
                watch.cancel()
            _LOG.warning("%s: a replica was lost, another one is started: %s", replica.node, reason)
        except ReplicaLostError as error:
            self._note_failure(Reply(error="EngineError", text=f"a replica ended while it started: {error}"))
        except asyncio.CancelledError:
            if self._tasks[task]:
                with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                    await asyncio.wait_for(actor.close.remote(), _CLOSE_SECONDS)
            raise
        finally:
            del self._tasks[task]
            ray.kill(actor)

    async def _watch(self, replica: _ActorReplica) -> None:
        """Take a replica out of the pool when its actor is gone; nothing else would tell of an idle one."""
        try:
            await _ask(replica.node, replica.actor.outlast)
        except ReplicaLostError as error:
            self._pool.remove(replica, str(error))

    def _fail_without_supervisor(self, supervisor: asyncio.Task[None]) -> None:
        """Fail the requests when the supervisor has ended, as it does when the cluster's head is gone."""
        if not supervisor.cancelled() and (error := supervisor.exception()) is not None:
            self._pool.fail(f"the Ray cluster can't be asked any more: {_one_line(error)}")

    def _opener(self, gpus: int) -> OpenEngine:
        engine: Any = replica_engine(self._settings, gpus)
        return partial(self._open_one, engine)

    def _note_failure(self, started: Reply) -> None:
        self._failed_starts.append(started)
        pause = min(_LONGEST_PAUSE, 2.0 ** (len(self._failed_starts) - 1))
        self._pause_until = asyncio.get_running_loop().time() + pause
        if self._ready.is_set():
            _LOG.warning("a replica could not start: %s", started.text)

    def _on_lost(self, replica: Replica, reason: str) -> None:
        assert isinstance(replica, _ActorReplica)
        if not replica.lost.done():
            replica.lost.set_result(reason)
