"""Replicas on real Ray clusters: the same records whatever joins, leaves, dies or hangs; nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from ray_clusters import LocalCluster, actors, gone, local_cluster, processes
from scripted_models import here, open_slow, prompts, settings
from whole_runs import documents

from metareward.engines.base import Engine, EngineError
from metareward.engines.device import resolved_dtype
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.engines.ray.engine import RayEngine, open_ray
from metareward.engines.ray.settings import RaySettings
from metareward.errors import UserError
from metareward.generation.annotate import AnnotationSettings, annotation_fingerprint
from metareward.generation.progress import SilentProgress
from metareward.generation.runner import annotate_prompts
from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.pipeline.engines import open_engine
from metareward.pocket import world
from metareward.storage.store import RecordStore
from metareward.types import Message, Sampling

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600), pytest.mark.xdist_group("ray")]

PROMPTS = 40


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(0) as opened:
        yield opened


def ray_settings(cluster: LocalCluster, **changes: object) -> RaySettings:
    return RaySettings.model_validate({"address": cluster.address, "engine": {"dtype": "float32"}, **changes})


async def slow_replicas(cluster: LocalCluster, seconds: float, **changes: object) -> RayEngine:
    return await open_ray(world.MODEL, ray_settings(cluster, **changes), partial(open_slow, seconds))


class Watched(SilentProgress):
    """Calls ``after`` when so many prompts are committed."""

    def __init__(self, count: int, after: Callable[[], object]) -> None:
        self.left, self.after = count, after

    def advance(self, role: str, n: int) -> None:
        if role == "prompts":
            self.left -= n
            if self.left == 0:
                self.after()


async def annotate(
    engine: Engine,
    path: Path,
    progress: SilentProgress | None = None,
    how: AnnotationSettings | None = None,
    count: int = PROMPTS,
) -> dict[str, str]:
    how = how or settings()
    with RecordStore.open(path, annotation_fingerprint(how)) as store:
        result = await annotate_prompts(engine, prompts(count), how, store, progress or SilentProgress())
    assert not result.failed
    return documents(path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The records of one engine in this process, without Ray. Pairs are a function of the records."""
    path = tmp_path_factory.mktemp("alone") / "records.sqlite"

    async def alone() -> dict[str, str]:
        return await annotate(await open_slow(0.0, None, path, path), path)

    return asyncio.run(alone())


def using(open_it: Awaitable[RayEngine], scene: Callable[[RayEngine], Awaitable[None]]) -> None:
    async def play() -> None:
        engine = await open_it
        try:
            await scene(engine)
        finally:
            await engine.aclose()

    asyncio.run(play())
    assert gone("ray::ReplicaActor", 10)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_workers_makes_the_same_records(
    count: int, cluster: LocalCluster, expected: dict[str, str], tmp_path: Path
) -> None:
    cluster.resize(count)

    async def scene(engine: RayEngine) -> None:
        until = time.monotonic() + 60
        while len(engine.nodes) < count and time.monotonic() < until:
            await asyncio.sleep(0.1)
        assert len(engine.nodes) == len(actors()) == count
        assert await annotate(engine, tmp_path / "records.sqlite") == expected

    using(slow_replicas(cluster, 0.005), scene)


def test_the_local_engine_writes_the_same_texts_on_a_cluster(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.resize(2)
    rubric, metarubric = Rubric.load("pocket_judge"), MetaRubric.load("pocket_metajudge")
    how = replace(settings(k=2, n=2), rubric=rubric, metarubric=metarubric)
    inner = {"device": "cpu", "dtype": resolved_dtype("auto", "cpu")}
    workers = f'"folder": "{tempfile.gettempdir()}/metareward-models-'  # of replicas, on weights from the object store

    async def alone() -> dict[str, str]:
        engine = await open_local(world.MODEL, LocalSettings.model_validate({**inner, "workers": 1}))
        try:
            return await annotate(engine, tmp_path / "alone.sqlite", how=how, count=6)
        finally:
            await engine.aclose()

    reference = asyncio.run(alone())

    async def compare(engine: RayEngine) -> None:
        while len(engine.nodes) < 2:
            await asyncio.sleep(0.1)
        assert processes(workers)
        assert await annotate(engine, tmp_path / "records.sqlite", how=how, count=6) == reference
        with pytest.raises(EngineError, match="context of") as caught:
            await engine.complete((Message("user", "word " * 5000),), Sampling(1.0, 1.0, 8), 1)
        assert "\n" not in str(caught.value)

    async def opened() -> RayEngine:
        made = ray_settings(cluster, engine=inner, weights="object_store")
        engine = await open_engine(made, world.MODEL, 0, tmp_path)
        assert isinstance(engine, RayEngine)
        return engine

    using(opened(), compare)
    assert gone(workers, 10)


def test_a_killed_worker_s_prompts_are_finished_by_others_and_it_is_replaced(
    cluster: LocalCluster, expected: dict[str, str], tmp_path: Path
) -> None:
    cluster.resize(2)

    async def scene(engine: RayEngine) -> None:
        while len(engine.nodes) < 2:
            await asyncio.sleep(0.1)
        before = actors()
        watched = Watched(5, lambda: os.kill(before[0], signal.SIGKILL))
        assert await annotate(engine, tmp_path / "records.sqlite", watched) == expected
        until = time.monotonic() + 60
        while len(engine.nodes) < 2 and time.monotonic() < until:
            await asyncio.sleep(0.1)
        assert len(set(actors()) - set(before)) == 1 and len(engine.nodes) == 2

    using(slow_replicas(cluster, 0.05), scene)


def test_a_worker_that_hangs_is_given_up(cluster: LocalCluster, expected: dict[str, str], tmp_path: Path) -> None:
    cluster.resize(2)

    async def scene(engine: RayEngine) -> None:
        while len(engine.nodes) < 2:
            await asyncio.sleep(0.1)
        hung = actors()[0]
        watched = Watched(5, lambda: os.kill(hung, signal.SIGSTOP))
        assert await annotate(engine, tmp_path / "records.sqlite", watched) == expected
        await asyncio.sleep(3)

    using(slow_replicas(cluster, 0.05, timeout=2.0), scene)


def test_a_killed_node_and_one_that_joins(cluster: LocalCluster, expected: dict[str, str], tmp_path: Path) -> None:
    cluster.resize(2)

    async def scene(engine: RayEngine) -> None:
        while len(engine.nodes) < 2:
            await asyncio.sleep(0.1)
        assert await annotate(engine, tmp_path / "records.sqlite", Watched(5, cluster.kill)) == expected
        cluster.add()
        cluster.add()
        until = time.monotonic() + 90
        # Four for a moment: the killed machine's replica answers until it notices. Idle, it must be given up, too.
        while len(engine.nodes) != 3 and time.monotonic() < until:
            await asyncio.sleep(0.1)
        assert len(engine.nodes) == 3
        texts = [engine.complete((Message("user", f"{i}"),), Sampling(1.0, 1.0, 8, i), 1) for i in range(30)]
        assert len(await asyncio.gather(*texts)) == 30

    using(slow_replicas(cluster, 0.1), scene)


def test_without_any_machine_requests_wait_for_one_and_then_fail_with_one_line(cluster: LocalCluster) -> None:
    cluster.resize(1)

    async def scene(engine: RayEngine) -> None:
        async def ask() -> int:
            return len(await engine.complete((Message("user", "Hello?"),), Sampling(1.0, 1.0, 8, 1), 1))

        async def ask_until_it_fails() -> None:
            while await ask():  # the replica is there for another moment
                await asyncio.sleep(0.1)

        cluster.kill()
        told = r"no replica was left for 25 s \(engine.start_timeout\): one takes 1 CPU, and the nodes have 0 CPU"
        with pytest.raises(EngineError, match=told) as caught:
            await ask_until_it_fails()
        assert "\n" not in str(caught.value)
        with pytest.raises(EngineError, match=told):
            await ask()
        cluster.add()
        until = time.monotonic() + 90
        while not engine.nodes and time.monotonic() < until:
            await asyncio.sleep(0.1)
        assert await ask() == 1

    using(slow_replicas(cluster, 0.0, start_timeout=25.0), scene)


def start_driver(path: Path, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(here() / "processes.py"), "annotate_on_ray", str(path), str(PROMPTS), "0.2", address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("own", [False, True])
def test_a_killed_driver_leaves_no_process_and_the_next_one_goes_on(
    own: bool, cluster: LocalCluster, expected: dict[str, str], tmp_path: Path
) -> None:
    cluster.resize(2)
    path, raylets = tmp_path / "records.sqlite", len(processes("raylet/raylet"))
    with start_driver(path, "local" if own else cluster.address) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if line == "committed\n":
                break
        assert actors()
        driver.kill()
    assert gone("ray::ReplicaActor", 20)
    until = time.monotonic() + 20
    while len(processes("raylet/raylet")) > raylets and time.monotonic() < until:
        time.sleep(0.1)
    assert len(processes("raylet/raylet")) == raylets
    before = documents(path)
    assert 1 <= len(before) < PROMPTS
    with start_driver(path, cluster.address) as driver:
        told, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0 and told.count("committed") == PROMPTS - len(before)
    assert documents(path) == expected and before.items() <= expected.items()


def test_what_keeps_replicas_from_starting_is_one_line(cluster: LocalCluster, tmp_path: Path) -> None:
    cluster.resize(1)

    async def opened(folder: Path, **changes: object) -> None:
        await open_engine(ray_settings(cluster, **changes), folder, 0, tmp_path)

    for folder, changes, told in (
        (world.MODEL, {"cpus_per_replica": 64}, "no node has room for one replica of 64 CPU: the nodes have [01] CPU"),
        (tmp_path, {}, "no config.json"),
        (world.MODEL, {"engine": {"kind": "vllm"}}, "needs vLLM, which is not in this Python environment"),
        (world.MODEL, {"replicas": 1, "gpus_per_replica": 1, "start_timeout": 2.0}, "no replica was ready after 2 s"),
        (world.MODEL, {"address": "ray://127.0.0.1:1"}, "not the address of a node; fix: start the run on a node"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            asyncio.run(opened(folder, **changes))
        assert "\n" not in str(caught.value)
    assert gone("ray::ReplicaActor", 10)
