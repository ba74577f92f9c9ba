"""A server of our own that dies, doesn't start or is closed; `test_real_vllm.py` has the real vLLM."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import fake_vllm
import pytest
from tiny_models import shifted_pocket

from metareward.config.schema import load_recipe
from metareward.engines.base import Engine, EngineError
from metareward.engines.device import this_machine
from metareward.engines.vllm import VllmSettings, automatic_engine, copies
from metareward.engines.vllm_server import last_error, open_vllm_server
from metareward.errors import UserError
from metareward.pipeline.engines import EnginePool
from metareward.pocket.world import MODEL
from metareward.types import Message, Messages, Sampling

HOT = Sampling(temperature=1.0, top_p=0.95, max_tokens=8, seed=3)
SOON = 5.0  # seconds


@dataclass(frozen=True)
class Setup:
    settings: VllmSettings
    log: Path

    def changed(self, **changes: object) -> Setup:
        return Setup(self.settings.model_copy(update=changes), self.log)


@pytest.fixture
def setup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Of the stand-in, which this Python finds as vLLM."""
    place = tmp_path / "vllm/entrypoints/openai/api_server.py"
    place.parent.mkdir(parents=True)
    shutil.copy(fake_vllm.__file__, place)
    (tmp_path / "vllm/platforms.py").write_text("class current_platform:\n    is_cpu = lambda: True\n")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return Setup(VllmSettings.model_validate({"max_concurrency": 8, "start_timeout": 60.0}), tmp_path / "vllm.log")


def ask(text: str) -> Messages:
    return (Message("user", text),)


def processes(setup: Setup) -> list[int]:
    """The server and its child."""
    said = re.search(r"processes (\d+) (\d+)", setup.log.read_text())
    assert said is not None
    return [int(pid) for pid in said.groups()]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def check_gone(setup: Setup) -> None:
    """Nothing of it is left; elsewhere there is no /proc to look at."""
    if sys.platform == "linux":
        assert not [pid for pid in processes(setup) if running(pid)]


def played(setup: Setup, scene: Callable[[Engine], Awaitable[None]]) -> None:
    async def play() -> None:
        engine = await open_vllm_server(MODEL, setup.settings, setup.log)
        try:
            await scene(engine)
        finally:
            await engine.aclose()

    asyncio.run(play())
    check_gone(setup)


def refusal(setup: Setup, folder: Path = MODEL) -> str:
    with pytest.raises(UserError) as caught:
        asyncio.run(open_vllm_server(folder, setup.settings, setup.log))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    return str(caught.value)


def test_it_answers_until_it_is_closed(setup: Setup) -> None:
    async def scene(engine: Engine) -> None:
        written = await engine.complete(ask("well"), HOT, 3)
        assert [each.text for each in written] == ["well 0", "well 1", "well 2"]
        if sys.platform == "linux":
            assert all(running(pid) for pid in processes(setup))
        await engine.aclose()
        with pytest.raises(EngineError, match="the engine was closed before"):
            await engine.complete(ask("late"), HOT, 1)

    played(setup, scene)


def test_every_gpu_has_a_copy_of_the_model_or_a_part_of_one() -> None:
    assert [copies(VllmSettings(), gpus) for gpus in (None, 0, 1, 8)] == [1, 1, 1, 8]
    assert [copies(VllmSettings(tensor_parallel_size=2), gpus) for gpus in (1, 2, 8)] == [1, 1, 4]
    assert copies(VllmSettings(data_parallel_size=2), None) == 2


def test_auto_is_the_local_engine_where_there_is_no_gpu() -> None:
    gpus = this_machine().gpus
    chosen, why = automatic_engine()
    assert chosen["kind"] == "local" or gpus
    assert str(this_machine()) in why
    recipe = load_recipe("meta-rewarding", ["model=m", "prompts.source=p", "engine.dtype=float32"])
    assert (recipe.engine.kind, recipe.engine.dtype) == (chosen["kind"], "float32")  # type: ignore[union-attr]
    on_cpu = load_recipe("meta-rewarding", ["model=m", "prompts.source=p", "engine.device=cpu"])
    assert on_cpu.engine.kind == "local"


@pytest.mark.parametrize("is_cpu", [True, False])
def test_prompts_are_read_whole_where_vllm_runs_on_a_cpu(setup: Setup, tmp_path: Path, is_cpu: bool) -> None:
    (tmp_path / "vllm/platforms.py").write_text(f"class current_platform:\n    is_cpu = lambda: {is_cpu}\n")

    async def scene(_: Engine) -> None:
        (words,) = re.findall(r"^words (.*)$", setup.log.read_text(), re.MULTILINE)
        assert ("--no-enable-chunked-prefill" in words.split()) is is_cpu
        assert "--enable-prefix-caching --" in words and "None" not in words

    played(setup, scene)


def test_a_vllm_that_cannot_be_imported(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "vllm/platforms.py").write_text("raise RuntimeError('operator nms does not exist')\n")
    told = refusal(setup)
    assert told.endswith(": its vLLM can't be imported: RuntimeError: operator nms does not exist")
    assert told.startswith(f"engine.python {sys.executable!r}: ")


def test_closing_ends_what_is_under_way(setup: Setup) -> None:
    async def scene(engine: Engine) -> None:
        waiting = asyncio.create_task(engine.complete(ask("hang"), HOT, 1))
        await asyncio.sleep(0.3)
        await engine.aclose()
        with pytest.raises(EngineError, match="the engine was closed before"):
            await waiting

    played(setup, scene)


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("die", r"ended with exit status 3 \(RuntimeError: out of luck; all of it in .*vllm\.log\)"),
        ("hang", r"ended by signal 9 \(.*; all of it in .*vllm\.log\)"),
    ],
)
def test_when_it_ends_all_requests_fail_at_once_with_its_last_error(setup: Setup, last: str, told: str) -> None:
    async def scene(engine: Engine) -> None:
        # More than may be under way, so some wait for their turn.
        texts = [last, *["hang"] * 11]
        waiting = [asyncio.create_task(engine.complete(ask(text), HOT, 2)) for text in texts]
        await asyncio.sleep(0.5)
        if last == "hang":
            os.kill(processes(setup)[0], signal.SIGKILL)
        began = time.monotonic()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        with pytest.raises(EngineError) as caught:
            await engine.complete(ask("late"), HOT, 1)
        assert time.monotonic() - began < SOON
        for each in (*outcomes, caught.value):
            assert isinstance(each, EngineError)
            assert re.fullmatch(f"{MODEL}: the vLLM server {told}", str(each))

    played(setup, scene)


def test_a_cancelled_request_leaves_the_others(setup: Setup) -> None:
    async def scene(engine: Engine) -> None:
        waiting = asyncio.create_task(engine.complete(ask("hang"), HOT, 1))
        await asyncio.sleep(0.3)
        waiting.cancel()
        assert len(await engine.complete(ask("well"), HOT, 2)) == 2

    played(setup, scene)


def test_what_it_says_when_it_does_not_start_is_said(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.log.write_text("KeyError: of an earlier start\n")
    monkeypatch.setenv("STAND_IN", "refuse")
    told = refusal(setup)
    assert told.startswith(f"{MODEL}: vLLM does not start: ValueError: no room for so long a context (all of it in ")
    check_gone(setup)


def test_one_that_never_answers_is_given_up(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "silent")
    told = refusal(setup.changed(start_timeout=1.5))
    assert "no answer within 1.5 s (processes " in told and "engine.start_timeout" in told
    check_gone(setup)


def test_one_that_serves_something_else_is_ended(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN", "stranger")
    assert "serves somebody else, not model" in refusal(setup)
    check_gone(setup)


def test_a_python_that_is_none_or_has_no_vllm(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    told = refusal(setup.changed(python="no/such/python"))
    assert told == "engine.python 'no/such/python' can't be run: there is no such program; fix: name another"
    monkeypatch.delenv("PYTHONPATH")
    if importlib.util.find_spec("vllm") is None:
        told = refusal(setup.changed(python=sys.executable))
        assert f"which is not in {sys.executable}; " in told and "engine.python" in told


def log_lines(setup: Setup, start: str) -> list[str]:
    return [line for line in setup.log.read_text().splitlines() if line.startswith(start)]


def test_a_server_is_kept_from_model_to_model_and_started_again_where_that_fails(
    setup: Setup,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings, pool = setup.settings.model_copy(update={"serve": True, "reload": True}), EnginePool()
    names = ("first", "second", "deaf", "failing", "stuck", "last")
    models = {name: shifted_pocket(tmp_path / name, place / 4) for place, name in enumerate(names)}
    starts: dict[str, int] = {}

    async def use(name: str) -> None:
        engine = await pool.open(settings, models[name], 0, tmp_path)
        assert [each.text for each in await engine.complete(ask("well"), HOT, 2)] == ["well 0", "well 1"]
        await engine.aclose()
        starts[name] = len(log_lines(setup, "processes"))

    async def play() -> None:
        try:
            for name in names[:-1]:
                await use(name)
            pool.stop_keeping()
            await use("last")
        finally:
            await pool.aclose()

    with caplog.at_level(logging.WARNING):
        asyncio.run(play())
    check_gone(setup)
    # Where a reload failed, the next model begins with a server that was started for the one before.
    assert starts == {"first": 1, "second": 1, "deaf": 2, "failing": 3, "stuck": 4, "last": 4}
    told = [record.getMessage() for record in caplog.records if record.name == "metareward.pipeline.engines"]
    assert told == [
        f"vLLM is started again: {models['deaf']}: it writes what {models['second']} wrote",
        'vLLM is started again: collective_rpc: 500 {"error": "Call to collective_rpc method failed:\\nit is broken"}',
        "vLLM is started again: its prefix cache can't be emptied",
    ]
    asked = [line.removeprefix("asked to ").strip() for line in log_lines(setup, "asked")]
    assert asked[:2] == ["collective_rpc metareward_load", "reset_prefix_cache"]
    (words, *_) = log_lines(setup, "words")
    assert "--worker-extension-cls metareward_vllm.WeightLoader --middleware metareward_vllm.Guard" in words


def test_a_folder_without_a_model(setup: Setup, tmp_path: Path) -> None:
    assert refusal(setup, tmp_path).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("", "it printed nothing"),
        (
            "Traceback (most recent call last):\n    except KeyError: pass\nx.ValidationError: 1 error for Model\n"
            "  Value error, context too long\n    see there\n\nlast",
            "x.ValidationError: 1 error for Model Value error, context too long see there",
        ),
        ("one\n\n(Worker pid=3) INFO 11-21 07:35:14 [a.py:1] two\n", "two"),
        ("(Worker pid=3) WARNING 11-21 07:35:14 [a.py:1] like `OSError: too many`\nlast", "last"),
        (
            "(EngineCore pid=3) ERROR 11-21 07:35:14 [a.py:1] \nValueError: first\nRuntimeError: then\n",
            "ValueError: first",
        ),
        (
            "(EngineCore pid=3) ERROR 11-21 07:35:14 [a.py:1] torch.OutOfMemoryError: 3 GiB\n",
            "torch.OutOfMemoryError: 3 GiB",
        ),
    ],
)
def test_the_last_error_in_a_log(log: str, words: str) -> None:
    assert last_error(log) == words
