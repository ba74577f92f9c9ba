"""Whole training runs, in processes of their own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from training_world import changed, make_job, moved, save_model, save_pairs, train_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from metareward.errors import UserError
from metareward.storage.custody import fingerprint_model
from metareward.training.config import DpoJob
from metareward.training.launch import TrainingResult, event_log, exit_reason, run_training
from metareward.training.lineage import read_lineage

# Runs a job, stops the child in its first step for good, and prints its process id.
STOPPING_PARENT = """
import json, os, signal, sys, time
from pathlib import Path
from metareward.training.config import read_job
from metareward.training.launch import run_training

def stop(step):
    pid = json.loads(job.log.read_text().splitlines()[0])["pid"]
    os.kill(pid, signal.SIGSTOP)
    print(pid, flush=True)
    time.sleep(600)

job = read_job(Path(sys.argv[1]))
run_training(job, stop)
"""


@dataclass(frozen=True)
class Trained:
    job: DpoJob
    result: TrainingResult
    steps: list[Mapping[str, float]]
    home: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    folder, home = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("home")
    pairs = (save_pairs(folder / "actor.parquet", "actor", 20), save_pairs(folder / "judge.parquet", "judge", 10, 30))
    job = make_job(folder, save_model(folder / "M0"), pairs)
    steps: list[Mapping[str, float]] = []
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", str(home))
        yield Trained(job, run_training(job, steps.append), steps, home)


def no_step(step: Mapping[str, float]) -> None:
    raise AssertionError("nothing was to be trained")


def events(job: DpoJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.log.read_text().splitlines()]


def test_the_first_loss_is_that_of_two_equal_models(trained: Trained) -> None:
    assert trained.steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert trained.steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert trained.result.lineage.log_ratio == 0.0


def test_training_raises_the_margin_on_its_pairs(trained: Trained) -> None:
    assert trained.steps[-1]["rewards/margins"] > 0.3
    assert trained.steps[-1]["rewards/accuracies"] > 0.9
    assert trained.steps[-1]["loss"] < 0.6


def test_every_step_is_told_until_the_epoch_that_is_kept(trained: Trained) -> None:
    assert [step["step"] for step in trained.steps] == list(range(1, 9))
    assert {step["steps"] for step in trained.steps} == {8}
    assert trained.steps[-1]["epoch"] == 2.0
    assert (
        trained.steps[-1]["learning_rate"] > 0.1 * trained.job.settings.learning_rate
    )  # the schedule is three epochs long
    assert trained.steps[-1]["examples_per_second"] > 0
    first, *steps, last = events(trained.job)
    assert (first["event"], first["examples"]) == ("start", {"actor": 20, "judge": 10})
    assert [{**step, "event": None} for step in steps] == [{**step, "event": None} for step in trained.steps]
    assert last == {"event": "end", "steps": 8}


def test_the_model_folder_is_complete(trained: Trained) -> None:
    start, output = trained.job.start, trained.job.output
    assert {path.name for path in output.iterdir()} == {path.name for path in start.iterdir()} | {"lineage.json"}
    for path in start.iterdir():
        same = (output / path.name).read_bytes() == path.read_bytes()
        assert same == (path.suffix != ".safetensors"), path.name
    assert AutoTokenizer.from_pretrained(output).chat_template
    assert AutoModelForCausalLM.from_pretrained(output).config.model_type == "llama"


def test_lineage_tells_where_the_model_comes_from(trained: Trained) -> None:
    lineage = trained.result.lineage
    assert lineage == read_lineage(trained.job.output)
    assert lineage.start == lineage.reference
    assert lineage.start.path == "../M0"
    assert lineage.start.sha256 == fingerprint_model(trained.job.start) != fingerprint_model(trained.job.output)
    assert (lineage.examples, lineage.too_long) == ({"actor": 20, "judge": 10}, {})
    assert (lineage.steps, lineage.seed, lineage.prefix_sharing) == (8, 0, True)
    assert set(lineage.versions) == {"metareward", "torch", "transformers", "trl", "python"}
    assert str(trained.job.start.parent) not in (trained.job.output / "lineage.json").read_text()


def test_nothing_else_is_left_behind(trained: Trained) -> None:
    assert not list(trained.home.iterdir())
    beside = {path.name for path in trained.job.output.parent.iterdir()}
    ours = {"training.jsonl", "training.job.json", "training.stderr.txt", "model"}
    assert beside == ours | {"M0", "actor.parquet", "judge.parquet"}


def test_the_same_job_again_does_nothing(trained: Trained) -> None:
    again = run_training(changed(trained.job, threads=2), no_step)
    assert again.lineage == trained.result.lineage
    assert again.seconds == 0.0


def test_another_job_does_not_write_over_a_model(trained: Trained) -> None:
    with pytest.raises(UserError, match=r"model: a model made with other values of beta, seed is here"):
        run_training(changed(trained.job, beta=0.5, seed=3), no_step)
    with pytest.raises(UserError, match=r"M0: already there, without a readable lineage\.json"):
        run_training(changed(trained.job, output=trained.job.start), no_step)


@pytest.mark.skipif(sys.platform != "linux", reason="stops the child with a signal and looks for it in /proc")
@pytest.mark.parametrize("moment", ["starting", pytest.param("first step", marks=pytest.mark.slow)])
def test_killed_with_its_parent_it_leaves_no_model(trained: Trained, tmp_path: Path, moment: str) -> None:
    """The kernel kills it from its start on, however far it is; while it starts, torch isn't imported yet."""
    job = moved(trained.job, tmp_path / "again")
    job.write(tmp_path / "job.json")
    command = [sys.executable, "-c", STOPPING_PARENT, str(tmp_path / "job.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as parent:
        assert parent.stdout is not None
        if moment == "starting":
            child = _starting_child(parent.pid)
            os.kill(child, signal.SIGSTOP)  # it can't end by itself
        else:
            child = int(parent.stdout.readline())
        assert not _gone(child, patience=0.2)
        parent.kill()
    assert _gone(child)
    assert not job.output.exists()


def _starting_child(parent: int) -> int:
    """The child of ``parent``, as soon as it runs the training's program."""
    until = time.monotonic() + 60.0
    while time.monotonic() < until:
        for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
            if Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-m", b"metareward.training.child"]:
                return int(child)
        time.sleep(0.01)
    raise AssertionError("no training was started")


def test_in_another_process_it_makes_the_same_bits(trained: Trained, tmp_path: Path) -> None:
    job = moved(trained.job, tmp_path / "again")
    train_here(job)
    assert _content(job.output) == _content(trained.job.output)
    assert not list(job.output.parent.glob(".*"))


def _content(folder: Path) -> dict[str, bytes]:
    """All files; the lineage without the folder names, which tell where the start lies from here."""
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    lineage = json.loads(content["lineage.json"])
    del lineage["start"]["path"], lineage["reference"]["path"]
    return content | {"lineage.json": json.dumps(lineage).encode()}


def _gone(pid: int, patience: float = 10.0) -> bool:
    """Whether the process ends soon. Where nobody takes leave of it, it stays on as a zombie."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_child_killed_in_mid_training_leaves_no_model(trained: Trained, tmp_path: Path) -> None:
    job = moved(trained.job, tmp_path)

    def kill(step: Mapping[str, float]) -> None:
        os.kill(events(job)[0]["pid"], signal.SIGKILL)

    with pytest.raises(
        UserError, match="training was killed by SIGKILL, not for want of memory; fix: run again"
    ) as caught:
        run_training(job, kill)
    assert "\n" not in str(caught.value)
    assert not job.output.exists()


def test_the_users_mistakes_arrive_as_one_line(trained: Trained, tmp_path: Path) -> None:
    job = changed(moved(trained.job, tmp_path), data=(tmp_path / "none.parquet",))
    with pytest.raises(UserError, match=r"none\.parquet: there is no such file of pairs"):
        run_training(job, no_step)
    assert {path.name for path in tmp_path.iterdir()} == {"training.job.json", "training.stderr.txt"}


def test_the_command_ends_with_status_2_for_a_wrong_job(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metareward.training.child", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "job.json: can't be read" in done.stderr


@pytest.mark.parametrize(
    ("status", "text", "told"),
    [
        (2, "a warning\nfile: field: fix\n", "file: field: fix"),
        (1, 'File "x"\n  raise\nKeyError: 7\n', "training ended with status 1: KeyError: 7"),
        (1, "safetensors.SafetensorError: I/O error: No space left on device (os error 28)", "the disk is full"),
        (
            1,
            "torch.OutOfMemoryError: CUDA out of memory. Tried",
            "ran out of memory; fix: lower per_device_train_batch_size",
        ),
        (1, "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried", "ran out of memory"),
        (-11, "", "training ended by SIGSEGV: no message"),
        (-9, "", "training was killed, perhaps for want of memory; fix: lower"),
    ],
)
def test_why_a_child_failed_in_one_line(tmp_path: Path, status: int, text: str, told: str) -> None:
    errors = tmp_path / "errors.txt"
    errors.write_text(text)
    line = exit_reason(status, errors, tmp_path / "model")
    assert told in line
    assert "\n" not in line


def test_a_killed_child_is_blamed_on_memory_only_if_that_is_why(tmp_path: Path) -> None:
    errors = tmp_path / "errors.txt"
    errors.write_text("")
    assert "most likely for want of memory; fix: lower" in exit_reason(-9, errors, tmp_path / "model", True)
    assert "by SIGKILL, not for want of memory; fix: run again" in exit_reason(-9, errors, tmp_path / "model", False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_full_disk_under_the_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    with (
        event_log(tmp_path / "log.jsonl", sys.stdout) as log,
        pytest.raises(UserError, match="No space left on device"),
    ):
        log({"event": "start"})


def test_the_parent_does_not_import_torch() -> None:
    code = "import sys, metareward.training.launch; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
