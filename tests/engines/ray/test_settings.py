"""Settings of kind ray: how many replicas fit, what each gets, and that the inner engine alone decides the texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from metareward.config.schema import load_recipe
from metareward.config.sections import engine_fingerprint
from metareward.engines.local.workers import LocalSettings
from metareward.engines.ray.replica import fetch_model, put_model, require_same_files
from metareward.engines.ray.settings import RaySettings, capacity, gpus_needed, replica_engine
from metareward.errors import UserError

NODES = ({"CPU": 8.0, "GPU": 4.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 16.0})


@pytest.mark.parametrize(
    ("cpus", "gpus", "count"), [(1, 0, 27), (1, 1, 7), (1, 2, 4), (4, 2, 2), (4, 0, 6), (1, 8, 0), (32, 0, 0)]
)
def test_how_many_replicas_fit(cpus: int, gpus: int, count: int) -> None:
    assert capacity(NODES, cpus, gpus) == count


def settings(**changes: object) -> RaySettings:
    return RaySettings.model_validate(changes)


@pytest.mark.parametrize(
    ("engine", "cluster", "gpus"),
    [
        ({}, 8, 1),
        ({}, 0, 0),
        ({"device": "cpu"}, 8, 0),
        ({"kind": "vllm"}, 8, 1),
        ({"kind": "vllm", "tensor_parallel_size": 4}, 8, 4),
        ({"kind": "vllm", "tensor_parallel_size": 2, "data_parallel_size": 2}, 8, 4),
        ({"kind": "openai", "base_urls": ["http://a"], "model": "m"}, 8, 0),
    ],
)
def test_the_gpus_of_a_replica(engine: dict[str, object], cluster: int, gpus: int) -> None:
    assert gpus_needed(settings(engine=engine), cluster) == gpus
    assert gpus_needed(settings(engine=engine, gpus_per_replica=3), cluster) == 3


def test_a_local_engine_without_gpus_keeps_to_its_cores() -> None:
    asked = settings(engine={"dtype": "float32"}, cpus_per_replica=4)
    engine = replica_engine(asked, 0)
    assert isinstance(engine, LocalSettings)
    assert (engine.workers, engine.threads) == (4, 1)
    assert replica_engine(asked, 1) == asked.engine
    two = replica_engine(settings(engine={"workers": 2}, cpus_per_replica=4), 0)
    assert isinstance(two, LocalSettings) and (two.workers, two.threads) == (2, 2)


def test_the_inner_engine_decides_the_texts() -> None:
    inner = {"kind": "local", "dtype": "float32", "max_num_seqs": 8}
    on_ray = settings(engine=inner, replicas=4, max_concurrency=7)
    assert engine_fingerprint(on_ray) == engine_fingerprint(LocalSettings.model_validate(inner))


def recipe(*changes: str) -> None:
    load_recipe("pocket", ["engine.kind=ray", *changes])


def test_every_node_computes_in_one_number_format() -> None:
    recipe("engine.engine.dtype=float32")
    recipe("engine.engine.kind=vllm")
    with pytest.raises(UserError, match=r"engine\.engine\.dtype: .*expected float32 or bfloat16"):
        recipe()
    with pytest.raises(UserError, match=r"judge\.engine\.engine\.dtype: .*expected float32 or bfloat16"):
        load_recipe("pocket", ["judge.engine.kind=ray", "judge.model=m"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("engine.replica=2", "unknown key; the nearest known one is engine.replicas"),
        ("engine.engine.worker=2", "unknown key; the nearest known one is engine.engine.workers"),
        ("engine.engine.kind=ray", "expected a kind that is one of 'local', 'openai', 'vllm'"),
        ("engine.engine.kind=auto", "expected a kind that is one of 'local', 'openai', 'vllm'"),
        ("engine.replicas=0", "engine.replicas"),
    ],
)
def test_mistakes_are_one_line(change: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        recipe("engine.engine.dtype=float32", change)
    assert "\n" not in str(caught.value)


def test_a_replica_is_not_kept_while_training_needs_its_gpus() -> None:
    with pytest.raises(UserError, match=r"engine\.engine\.reload: true: expected false: replicas on Ray are closed"):
        recipe("engine.engine={kind: vllm, reload: true}")


def model(folder: Path, weights: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)
    (folder / "README.md").write_text("not part of it")
    return folder


def test_the_object_store_s_files_are_written_once_and_unused_ones_deleted(tmp_path: Path) -> None:
    store: list[bytes] = []
    got: list[int] = []

    def put(data: bytes) -> int:
        store.append(data)
        return len(store) - 1

    def get(place: int) -> bytes:
        got.append(place)
        return store[place]

    first = put_model(model(tmp_path / "m1", "one"), "object_store", put)
    second = put_model(model(tmp_path / "m2", "two"), "object_store", put)
    folder, lock = fetch_model(first, get, tmp_path / "node")
    again, another = fetch_model(first, get, tmp_path / "node")
    assert folder == again and sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_text() == "one" and len(got) == 2
    other, _ = fetch_model(second, get, tmp_path / "node")
    assert folder.is_dir(), "still in use"
    lock.close()
    another.close()
    third = put_model(model(tmp_path / "m3", "three"), "object_store", put)
    fetch_model(third, get, tmp_path / "node")
    assert not folder.is_dir() and other.is_dir()
    store[-1] = b"other"
    with pytest.raises(UserError, match=r"arrived damaged on .*; fix: run again"):
        fetch_model(third, get, tmp_path / "another node")


def test_a_node_with_other_files_at_the_path_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m1", "one")
    source = put_model(folder, "shared", lambda _: None)
    require_same_files(source)
    (folder / "model.safetensors").write_text("longer")
    with pytest.raises(
        UserError, match="its files differ from those on the machine of the run; fix: keep it on storage"
    ):
        require_same_files(source)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    with pytest.raises(UserError, match="m1: no such model folder; fix: keep it on storage"):
        require_same_files(source)
