"""Both vLLM engines with the real vLLM and the pocket model: in process, and as a server that the run starts.

vLLM has an environment of its own, which `tests/support/setup_servers.sh` makes; without it these tests are skipped.
A server that misbehaves is tested with a fake one (`test_server.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import shifted_pocket
from vllm_process import COLD, HOT, JUDGED, MARK, SCORES, SETTINGS
from whole_runs import documents

from metareward.engines.base import Engine, EngineError
from metareward.engines.local.workers import LocalSettings, open_local
from metareward.engines.vllm import VllmSettings, engine_arguments
from metareward.engines.vllm_server import RELOADS, open_vllm_server, server_command
from metareward.errors import UserError
from metareward.pocket.world import MODEL, prompts
from metareward.storage.run_dir import RunDir
from metareward.types import Completion, Message, Step, TopLogprob

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-vllm/bin/python"
SCRIPT = ROOT / "tests/support/vllm_process.py"
RELOADING = ROOT / "tests/support/vllm_reload_process.py"
QUESTIONS = [prompt.messages[-1].content for prompt in prompts(24, seed=1)]
# Two programs round differently: log-probabilities as close as this are a tie.
TIE = 1e-3

pytestmark = [
    pytest.mark.servers,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"{PYTHON.name} of .venv-vllm is not there; see setup_servers.sh"),
]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(ROOT)


_PARSE = """\
import json, sys
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
found = AsyncEngineArgs.from_cli_args(make_arg_parser(FlexibleArgumentParser()).parse_args(json.loads(sys.argv[1])))
print(json.dumps([found.data_parallel_size, found.tensor_parallel_size, found.max_model_len, found.dtype]))
print(json.dumps([found.enable_sleep_mode, found.worker_extension_cls]))
"""


def test_vllm_knows_the_arguments_for_gpus() -> None:
    """Its own parser takes them, though there is no GPU here to use them."""
    settings = VllmSettings(tensor_parallel_size=2, dtype="bfloat16", max_model_len=256, reload=True)
    words = server_command(PYTHON, engine_arguments(MODEL, settings, 8) | RELOADS, 8000)[3:]
    told = subprocess.run([PYTHON, "-P", "-c", _PARSE, json.dumps(words)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    lines = [json.loads(line) for line in told.stdout.splitlines()[-2:]]
    assert lines == [[4, 2, 256, "bfloat16"], [True, RELOADS["worker_extension_cls"]]]


def family(pid: int) -> set[int]:
    """All processes that come from this one, which is not among them."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if state not in "ZX":
            parents[int(stat.parent.name)] = int(parent)
    found = {child for child, parent in parents.items() if parent == pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def running(pids: set[int]) -> set[int]:
    def runs(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False

    return set(filter(runs, pids))


def check_gone(pids: set[int], seconds: float = 15.0) -> None:
    until = time.monotonic() + seconds
    while left := running(pids):
        assert time.monotonic() < until, f"still there: {left}"
        time.sleep(0.1)


# --- what the model writes ---


@contextmanager
def vllm_in_a_process(kind: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, list[Completion]]]]:
    """A process in which vLLM runs, and what it said."""
    python = str(PYTHON) if kind == "inside" else sys.executable
    with (folder / "errors").open("w") as errors:
        child = subprocess.Popen(
            [python, str(SCRIPT), kind, str(MODEL), str(folder / "vllm.log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        )
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps(QUESTIONS) + "\n")
        child.stdin.flush()
        # vLLM prints, too.
        said = next((line for line in child.stdout if line.startswith(MARK)), None)
        assert said is not None, (folder / "errors").read_text()[-3000:]
        written = json.loads(said.removeprefix(MARK))
        yield child, {name: [completion(each) for each in many] for name, many in written.items()}
    finally:
        child.kill()
        with child:  # which closes its pipes and waits
            pass


def completion(said: dict[str, Any]) -> Completion:
    steps = (Step(step["text"], tuple(TopLogprob(**each) for each in step["top_logprobs"])) for step in said["steps"])
    return Completion(said["text"], said["finish"], said["tokens"], tuple(steps))


def check_what_it_said(said: dict[str, list[Completion]], expected: Sequence[Completion]) -> None:
    *local, chosen = expected
    hot = said["hot"]
    assert len(hot) == 7 and len({each.text for each in hot}) > 3
    assert said["hot again"] == hot, "the seed decides"
    assert len(said["another seed"]) == 7 and said["another seed"] != hot
    assert {each.finish for each in (*hot, *said["another seed"])} >= {"stop"}
    assert all(0 < each.tokens < 40 and "<" not in each.text for each in hot if each.finish == "stop")
    assert {each.text for each in said["chosen"]} <= set(SCORES) and len(said["chosen"]) == 7
    assert {each.finish for each in said["chosen"]} == {"stop"}
    assert len(said["crowd"]) == 160
    # A server counts the tokens of all samples together.
    assert [each.finish for each in said["cut off"]] == ["length"] * 3
    assert sum(each.tokens for each in said["cut off"]) == 6
    assert not differing(said["most probable choice"][0], chosen), "constrained and continued as by our engine"
    ties = [places for each, ours in zip(said["greedy"], local, strict=True) if (places := differing(each, ours))]
    print(f"greedy: {len(local) - len(ties)} of {len(local)} equal, {len(ties)} parted at a near tie")
    assert len(ties) <= 2


def differing(theirs: Completion, ours: Completion) -> bool:
    """Whether they part, which they may only at a near tie; up to there the probabilities are equal, too."""
    for mine, other in zip(ours.steps, theirs.steps, strict=False):
        best, second = (each.logprob for each in mine.top_logprobs[:2])
        if mine.text != other.text:
            assert best - second < TIE, (mine, other)
            return True
        expected = [each.logprob for each in mine.top_logprobs]
        assert [each.logprob for each in other.top_logprobs] == pytest.approx(expected, abs=TIE)
    assert (theirs.text, theirs.finish, len(theirs.steps)) == (ours.text, ours.finish, len(ours.steps))
    return False


@pytest.fixture(scope="module")
def local() -> Sequence[Completion]:
    """What our own engine says to the questions, and which score it chooses last."""

    async def asked() -> list[Completion]:
        engine = await open_local(
            MODEL, LocalSettings(device="cpu", dtype="float32", workers=1, threads=1, max_num_seqs=16)
        )
        try:
            written = (engine.complete((Message("user", question),), COLD, 1) for question in QUESTIONS)
            choice = engine.complete(JUDGED, replace(COLD, top_logprobs=6, choices=SCORES), 1)
            return [each[0] for each in await asyncio.gather(*written, choice)]
        finally:
            await engine.aclose()

    return asyncio.run(asked())


@pytest.mark.parametrize(
    ("kind", "end"), [("inside", "closed"), ("inside", "killed"), ("served", "closed"), ("served", "killed")]
)
def test_it_writes_what_is_asked_for_and_leaves_nothing_behind(
    kind: str, end: str, tmp_path: Path, local: Sequence[Completion]
) -> None:
    with vllm_in_a_process(kind, tmp_path) as (child, said):
        check_what_it_said(said, local)
        started = family(child.pid)
        assert len(started) > 2
        if end == "killed":
            child.kill()
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(60) == (-signal.SIGKILL if end == "killed" else 0)
        check_gone(started)


def changed_pocket(folder: Path) -> Path:
    """The pocket model with all weights changed: vLLM packs some of them, and its head is tied to the embeddings."""
    shutil.copytree(MODEL, folder)
    noise, weights = torch.Generator().manual_seed(1), load_file(folder / "model.safetensors")
    changed = {name: each * (1 + 0.1 * torch.randn(each.shape, generator=noise)) for name, each in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", ["served", "inside"])
def test_weights_that_are_loaded_into_a_running_vllm_write_what_a_new_start_writes(kind: str, tmp_path: Path) -> None:
    # With noise the model writes parts of characters, which a server can't give with their probabilities.
    other = changed_pocket(tmp_path / "other") if kind == "inside" else shifted_pocket(tmp_path / "other", 0.3)
    done = subprocess.run(
        [str(PYTHON) if kind == "inside" else sys.executable, str(RELOADING), kind, MODEL, other, tmp_path / "log"],
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(MARK)] or [done.stderr[-3000:]]
    assert done.returncode == 0, line
    said = {name: [completion(each) for each in many] for name, many in json.loads(line.removeprefix(MARK)).items()}
    assert said["reloaded"] == said["fresh"] and said["back"] == said["first"]
    texts = [(mine.text, theirs.text) for mine, theirs in zip(said["first"], said["fresh"], strict=True)]
    assert sum(mine != theirs for mine, theirs in texts) > len(texts) / 4, "the models differ"


# --- what goes wrong ---


SERVER = SETTINGS.model_copy(update={"python": str(PYTHON)})


def named(pids: set[int], name: str) -> int:
    """The process of vLLM's with this in its title."""
    (found,) = (pid for pid in pids if name in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
    return found


@pytest.mark.parametrize(
    ("who", "told"), [("api_server", "by signal 9"), ("EngineCore", r"with exit status \d+ \(.*EngineDeadError: .*")]
)
def test_a_killed_server_is_one_clear_line_soon(who: str, told: str, tmp_path: Path) -> None:
    async def scene(engine: Engine) -> None:
        started = family(os.getpid())
        long = replace(HOT, max_tokens=400)
        asked = [asyncio.create_task(engine.complete((Message("user", each),), long, 7)) for each in QUESTIONS * 4]
        await asyncio.sleep(0.5)
        os.kill(named(started, who), signal.SIGKILL)
        began = time.monotonic()
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - began < 15
        lines = {str(each) for each in outcomes if isinstance(each, EngineError)}
        assert len(lines) == 1 and re.match(f"{MODEL}: the vLLM server ended {told}", lines.pop())
        assert all(isinstance(each, (EngineError, tuple)) for each in outcomes)
        await engine.aclose()
        check_gone(started)

    async def play() -> None:
        engine = await open_vllm_server(MODEL, SERVER, tmp_path / "vllm.log")
        try:
            await scene(engine)
        finally:
            await engine.aclose()

    asyncio.run(play())


def test_what_vllm_has_against_a_setting_is_one_clear_line(tmp_path: Path) -> None:
    asked = SERVER.model_copy(update={"max_model_len": 100_000})
    with pytest.raises(UserError, match=r"vLLM does not start: .*max_model_len.*100000") as caught:
        asyncio.run(open_vllm_server(MODEL, asked, tmp_path / "vllm.log"))
    assert "\n" not in str(caught.value)
    print(caught.value)


# --- a whole run ---

CHANGES = (
    *("prompts.held_out=4", "answers.k=4", "judgments.n=3", "judgments.min_valid=2"),
    *("iterations.2=drop", "iterations.3=drop", "iterations.4=drop", "training.num_train_epochs=1"),
    *("engine.kind=vllm", "engine.dtype=float32", "engine.gpu_memory_utilization=0.1"),
)
# In process all prompts are under way at once, so it takes more of them to have some finished and others not.
SERVED = (
    "prompts.per_iteration=12",
    "engine.serve=true",
    f"engine.python={PYTHON}",
    "engine.max_concurrency=2",
)
INSIDE = ("prompts.per_iteration=72",)


def run(folder: Path, python: str, changes: Sequence[str]) -> subprocess.Popen[str]:
    command = [python, "-c", "from metareward.cli.main import main; main()", "run", "pocket", "--out", "run"]
    return subprocess.Popen(
        [*command, *(word for change in (*CHANGES, *changes) for word in ("--set", change))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(records: Path) -> dict[str, str]:
    try:
        return documents(records)
    except UserError:  # not quite there
        return {}


@pytest.mark.parametrize(
    ("python", "changes", "count"),
    [pytest.param(sys.executable, SERVED, 12, id="served"), pytest.param(str(PYTHON), INSIDE, 72, id="inside")],
)
def test_a_run_that_is_killed_goes_on_and_leaves_nothing_behind(
    python: str, changes: Sequence[str], count: int, tmp_path: Path
) -> None:
    folder = RunDir(tmp_path / "run").iteration(1)
    process = run(tmp_path, python, changes)
    try:
        while len(finished(folder.records)) < 3:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        started = family(process.pid)
    finally:
        process.kill()
        process.communicate()
    assert len(started) > 2
    check_gone(started)
    before = finished(folder.records)
    assert 3 <= len(before) < count
    process = run(tmp_path, python, changes)
    told, _ = process.communicate()
    assert process.returncode == 0, told
    after = finished(folder.records)
    assert len(after) == count and before.items() <= after.items(), "nothing lost, nothing made again"
    assert folder.done.is_file() and (folder.model / "model.safetensors").is_file()


# --- two data-parallel ranks ---

RANKS = (
    *("prompts.per_iteration=12", "engine.serve=true", f"engine.python={PYTHON}", "engine.max_concurrency=2"),
    *("engine.data_parallel_size=2", "iterations.2={}"),
)


def run_to_end(folder: Path, *changes: str) -> tuple[int, str]:
    process = run(folder, sys.executable, (*RANKS, *changes))
    told, _ = process.communicate()
    return process.returncode, told


def test_two_ranks_one_killed_and_weights_reloaded_make_the_same_records(tmp_path: Path) -> None:
    """Of two iterations: with weights reloaded; and with a start for every model, where one rank is killed."""
    reloading, restarting = tmp_path / "reloading", tmp_path / "restarting"
    for folder in (reloading, restarting):
        folder.mkdir()
    code, told = run_to_end(reloading, "engine.reload=true")
    assert code == 0 and "started again" not in told, told
    kept, again = RunDir(reloading / "run"), RunDir(restarting / "run")
    assert [t for t in (0, 1, 2) if (kept.iteration(t).path / "vllm.log").exists()] == [0]

    process = run(restarting, sys.executable, RANKS)
    records = again.iteration(1).records
    try:
        while len(finished(records)) < 3:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        started = family(process.pid)
        os.kill(named(started, "EngineCore_DP1"), signal.SIGKILL)
        told, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert process.returncode == 2 and "the vLLM server ended" in told, told
    check_gone(started)
    before = finished(records)
    assert 3 <= len(before) < 12
    code, told = run_to_end(restarting)
    assert code == 0, told
    assert [t for t in (0, 1, 2) if (again.iteration(t).path / "vllm.log").exists()] == [0, 1, 2]
    assert before.items() <= finished(records).items(), "nothing lost, nothing made again"
    for t in (1, 2):
        assert len(documents(again.iteration(t).records)) == 12
        assert documents(again.iteration(t).records) == documents(kept.iteration(t).records)
