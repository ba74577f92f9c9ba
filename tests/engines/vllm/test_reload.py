"""The next model's weights in a running vLLM: which fit, how they are read, the steps, and who may ask for them.

`test_server.py` has a stand-in for the server, `test_real_vllm.py` the real one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import shifted_pocket

from metareward.engines.vllm_reload import Reloader, ReloadError, difference, loaded_model
from metareward.engines.vllm_worker.metareward_vllm import HEADER, TOKEN, Guard, read_weights
from metareward.types import Completion, Messages, Sampling


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- the models ---


def test_weights_are_read_as_safetensors_reads_them_and_only_those_of_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": torch.randn(3, 5),
        "b": torch.randn(7).to(torch.bfloat16),
        "none": torch.empty(0, 4),
        "one": torch.tensor(2.0),
    }
    save_file(tensors, path, {"format": "pt"})
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    found = dict(read_weights(str(tmp_path), {path.name: sha256}))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
    with pytest.raises(ValueError, match="is not the file that the run knows"):
        dict(read_weights(str(tmp_path), {path.name: "0" * 64}))


def test_what_does_not_fit_is_told_apart(tmp_path: Path) -> None:
    first, second = shifted_pocket(tmp_path / "first"), shifted_pocket(tmp_path / "second", 0.5)
    edit_json(second / "config.json", transformers_version="6.0")
    (second / "lineage.json").write_text("{}")
    (second / "README.md").write_text("mine")
    before = loaded_model(first)

    def why(spoil: Callable[[Path], object]) -> str:
        spoil(second)
        return difference(before, loaded_model(second))

    assert why(lambda _: None) == ""
    assert before.weights != loaded_model(second).weights
    assert "other names, shapes or formats" in why(
        lambda at: save_file({"x": torch.zeros(2)}, at / "model.safetensors")
    )
    assert "tokenizer.json differs" in why(lambda at: (at / "tokenizer.json").write_text("{}"))
    assert "config.json, tokenizer.json differs" in why(lambda at: edit_json(at / "config.json", hidden_size=3))
    with pytest.raises(ReloadError, match="can't be read"):
        why(lambda at: (at / "config.json").write_text("{"))


# --- the steps ---


@dataclass
class Recorded:
    """Controls that only note what is asked."""

    calls: list[str] = field(default_factory=list)

    async def sleep(self) -> None:
        self.calls.append("sleep")

    async def wake_up(self, tag: str) -> None:
        self.calls.append(f"wake up {tag}")

    async def load(self, folder: str, digests: str) -> None:
        self.calls.append(f"load {Path(folder).name} {list(json.loads(digests))}")

    async def reset_prefix_cache(self) -> bool:
        self.calls.append("reset")
        return True


@pytest.mark.parametrize("on_gpu", [True, False])
def test_on_gpus_it_sleeps_and_wakes_in_two_steps(on_gpu: bool, tmp_path: Path) -> None:
    first, second = shifted_pocket(tmp_path / "first"), shifted_pocket(tmp_path / "second", 0.5)
    controls = Recorded()

    async def complete(_: Messages, sampling: Sampling, n: int) -> list[Completion]:
        assert (sampling.temperature, n) == (0.0, 1)
        controls.calls.append("probe")
        return [Completion(f"{len(controls.calls)}", "stop", 1)]

    async def play() -> None:
        reloader = Reloader(first, controls, on_gpu, complete)
        with pytest.raises(ReloadError):
            await reloader.load(second)
        await reloader.sleep()
        await reloader.load(second)

    asyncio.run(play())
    loads = "load second ['model.safetensors']"
    if on_gpu:
        steps = ["probe", "sleep", "wake up weights", loads, "wake up kv_cache", "reset", "probe"]
    else:
        steps = ["probe", loads, "reset", "probe"]
    assert controls.calls == steps


def test_the_same_weights_may_write_the_same(tmp_path: Path) -> None:
    first, again, other = (shifted_pocket(tmp_path / name, shift) for name, shift in (("a", 0), ("b", 0), ("c", 1)))

    async def complete(_: Messages, __: Sampling, ___: int) -> list[Completion]:
        return [Completion("same", "stop", 1)]

    async def play(folder: Path) -> None:
        reloader = Reloader(first, Recorded(), False, complete)
        await reloader.sleep()
        await reloader.load(folder)

    asyncio.run(play(again))
    with pytest.raises(ReloadError, match="it writes what"):
        asyncio.run(play(other))


# --- who may ask ---


def test_strangers_may_only_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN, "secret")
    served: list[str] = []

    async def app(scope: MutableMapping[str, Any], _: Any, __: Any) -> None:
        served.append(str(scope.get("path", scope["type"])))

    async def request(path: str, headers: Mapping[str, str], kind: str = "http") -> list[object]:
        sent: list[object] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message.get("status"))

        async def receive() -> MutableMapping[str, Any]:
            return {}

        pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
        await Guard(app)({"type": kind, "path": path, "headers": pairs}, receive, send)
        return sent

    for path, headers, allowed in (
        ("/v1/chat/completions", {}, True),
        ("/health", {}, True),
        ("/collective_rpc", {}, False),
        ("/collective_rpc", {HEADER: "guess"}, False),
        ("/sleep", {HEADER: "secret"}, True),
    ):
        before = len(served)
        assert asyncio.run(request(path, headers)) == ([] if allowed else [403, None])
        assert (len(served) > before) is allowed
    asyncio.run(request("/", {}, "lifespan"))
    assert served[-1] == "/"
