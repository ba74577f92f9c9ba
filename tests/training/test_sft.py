"""Whole supervised runs."""

from __future__ import annotations

import io
import json
import os
import random
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import WORDS, changed, save_model, train_here
from transformers import AutoModelForCausalLM, AutoTokenizer

from metareward.errors import UserError
from metareward.storage.custody import fingerprint_model
from metareward.training.checkpoints import latest_resume_state
from metareward.training.child import train
from metareward.training.config import SftJob, SftSettings
from metareward.training.data import read_examples
from metareward.training.launch import TrainingResult, run_training
from metareward.training.lineage import read_lineage

COUNT = 24


@dataclass(frozen=True)
class Trained:
    job: SftJob
    result: TrainingResult
    steps: list[Mapping[str, float]]
    home: Path


def save_examples(path: Path) -> Path:
    """Answers that begin as their prompts begin, and end with the same word."""
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    for number in range(COUNT):
        words = draw.choices(WORDS, k=draw.randint(3, 9))
        answer = [{"role": "assistant", "content": f"{words[0]} best"}]
        rows.append({"kind": "eft", "prompt": [{"role": "user", "content": " ".join(words)}], "completion": answer})
        rows[-1] |= {"score": float(number % 6)}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_job(folder: Path, model: Path, data: Path) -> SftJob:
    """Two of three planned epochs of a brisk training."""
    settings = SftSettings(
        learning_rate=3e-3,
        min_lr=0.0,
        num_train_epochs=3,
        stop_after_epoch=2,
        batch_size=8,
        dropout=0.0,
        device="cpu",
    )
    return SftJob(settings=settings, start=model, data=(data,), output=folder / "model", log=folder / "training.jsonl")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder, home = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("home")
    job = make_job(folder, save_model(folder / "M0"), save_examples(folder / "eft.jsonl"))
    told, before = io.StringIO(), dict(os.environ)
    os.environ["HOME"] = str(home)
    lineage = train(job, told)  # in this process: test_dpo.py has the parent's side
    os.environ.clear()
    os.environ.update(before)
    events = [json.loads(line) for line in told.getvalue().splitlines()]
    steps = [event for event in events if event.pop("event") == "step"]
    return Trained(job, TrainingResult(job.product, lineage, 0.0), steps, home)


def no_step(step: Mapping[str, float]) -> None:
    raise AssertionError("nothing was to be trained")


def events(job: SftJob) -> list[dict[str, Any]]:
    return [json.loads(line) for line in job.log.read_text().splitlines()]


def nll_of_the_answers(job: SftJob) -> float:
    """What the loss is meant to be before the first step, without TRL: the mean over all tokens of all answers."""
    tokenizer = AutoTokenizer.from_pretrained(job.start)
    model = AutoModelForCausalLM.from_pretrained(job.start, dtype=torch.float32).eval()
    total, tokens = 0.0, 0
    for each in read_examples(job.data):
        asked = tokenizer.apply_chat_template(each.prompt, add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(each.prompt + each.completion, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logs = model(whole).logits[0, :-1].log_softmax(-1)
        picked = logs.gather(1, whole[0, 1:, None])[len(asked) - 1 :]
        total, tokens = total - float(picked.sum()), tokens + len(picked)
    return total / tokens


def test_the_loss_is_on_the_answers_alone(trained: Trained, tmp_path: Path) -> None:
    job = changed(trained.job, output=tmp_path / "model", log=tmp_path / "training.jsonl")
    job = changed(job, batch_size=COUNT, per_device_train_batch_size=4, num_train_epochs=1, stop_after_epoch=None)
    steps = train_here(job)
    assert len(steps) == 1
    assert steps[0]["loss"] == pytest.approx(nll_of_the_answers(job), rel=1e-4)


def test_training_teaches_the_answers(trained: Trained) -> None:
    assert trained.steps[-1]["loss"] < 0.75 * trained.steps[0]["loss"]
    assert nll_of_the_answers(changed(trained.job, start=trained.job.output)) < 0.75 * nll_of_the_answers(trained.job)


def test_every_step_is_told_until_the_epoch_that_is_kept(trained: Trained) -> None:
    assert [step["step"] for step in trained.steps] == list(range(1, 7))
    assert {step["steps"] for step in trained.steps} == {6}
    assert trained.steps[-1]["epoch"] == 2.0
    assert trained.steps[-1]["learning_rate"] > 0.1 * trained.job.settings.learning_rate
    first, *steps, last = events(trained.job)
    assert (first["event"], first["examples"], first["too_long"]) == ("start", {"eft": COUNT}, {})
    assert [{**step, "event": None} for step in steps] == [{**step, "event": None} for step in trained.steps]
    assert last == {"event": "end", "steps": 6}


def test_the_model_folder_is_complete(trained: Trained) -> None:
    start, output = trained.job.start, trained.job.output
    assert {path.name for path in output.iterdir()} == {path.name for path in start.iterdir()} | {"lineage.json"}
    for path in start.iterdir():
        same = (output / path.name).read_bytes() == path.read_bytes()
        assert same == (path.suffix != ".safetensors"), path.name
    assert fingerprint_model(output) != fingerprint_model(start)


def test_lineage_tells_where_the_model_comes_from(trained: Trained) -> None:
    lineage = trained.result.lineage
    assert lineage == read_lineage(trained.job.output)
    assert (lineage.method, lineage.start.path) == ("sft", "../M0")
    assert lineage.start.sha256 == fingerprint_model(trained.job.start)
    assert (lineage.examples, lineage.steps, lineage.settings["learning_rate"]) == ({"eft": COUNT}, 6, 3e-3)
    assert str(trained.job.start.parent) not in (trained.job.output / "lineage.json").read_text()


def test_nothing_else_is_left_behind(trained: Trained) -> None:
    assert not list(trained.home.iterdir())
    beside = {path.name for path in trained.job.output.parent.iterdir()}
    ours = {"training.jsonl", "model"}
    assert beside == ours | {"M0", "eft.jsonl"}


def test_the_same_job_again_does_nothing(trained: Trained) -> None:
    again = run_training(changed(trained.job, threads=2), no_step)
    assert (again.lineage, again.seconds) == (trained.result.lineage, 0.0)


def test_another_job_does_not_write_over_a_model(trained: Trained) -> None:
    with pytest.raises(UserError, match=r"model: a model made with other values of learning_rate, seed is here"):
        run_training(changed(trained.job, learning_rate=1e-3, seed=3), no_step)
    with pytest.raises(UserError, match=r"M0: already there, without a readable lineage\.json"):
        run_training(changed(trained.job, output=trained.job.start), no_step)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_child_leaves_no_model_and_the_next_one_makes_the_same(trained: Trained, tmp_path: Path) -> None:
    job = changed(trained.job, output=tmp_path / "model", log=tmp_path / "training.jsonl")

    def kill(step: Mapping[str, float]) -> None:
        os.kill(events(job)[0]["pid"], signal.SIGKILL)

    with pytest.raises(UserError, match="training was killed by SIGKILL, not for want of memory"):
        run_training(job, kill)
    assert not job.output.exists()
    run_training(job, lambda step: None)
    weights = "model.safetensors"
    assert (job.output / weights).read_bytes() == (trained.job.output / weights).read_bytes()
    assert not list(tmp_path.glob(".*"))  # what the killed one had begun


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals, gloo")
def test_resume_states_and_processes_work_as_in_dpo(trained: Trained, tmp_path: Path) -> None:
    whole = changed(trained.job, output=tmp_path / "whole", log=tmp_path / "whole.jsonl", num_processes=2, dropout=0.1)
    run_training(whole, lambda step: None)
    again = changed(whole, output=tmp_path / "again", log=tmp_path / "again.jsonl", save_steps=2)

    def kill(step: Mapping[str, float]) -> None:
        if step["step"] == 5:
            os.kill(events(again)[0]["pid"], signal.SIGKILL)

    with pytest.raises(UserError):
        run_training(again, kill)
    assert (state := latest_resume_state(again)) is not None and state.step == 4
    run_training(again, lambda step: None)
    assert [event["event"] for event in events(again)][-4:] == ["resume", "step", "step", "end"]
    weights = "model.safetensors"
    assert (again.output / weights).read_bytes() == (whole.output / weights).read_bytes()


def test_a_missing_file_arrives_as_one_line(trained: Trained, tmp_path: Path) -> None:
    job = changed(trained.job, output=tmp_path / "model", log=tmp_path / "training.jsonl")
    with pytest.raises(UserError, match=r"none\.jsonl: can't be read: No such file"):
        run_training(changed(job, data=(tmp_path / "none.jsonl",)), no_step)


@pytest.mark.slow
def test_a_missing_model_arrives_as_one_line(trained: Trained, tmp_path: Path) -> None:
    job = changed(trained.job, output=tmp_path / "model", log=tmp_path / "training.jsonl")
    with pytest.raises(UserError, match=r"nowhere: no model here"):
        run_training(changed(job, start=tmp_path / "nowhere"), no_step)
