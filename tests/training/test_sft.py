"""Whole supervised runs, in processes of their own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_world import WORDS, save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from metareward.errors import UserError
from metareward.training.lineage import fingerprint_model
from metareward.training.sft_examples import read_examples
from metareward.training.sft_job import SftJob
from metareward.training.sft_lineage import read_sft_lineage
from metareward.training.sft_process import SftResult, teach_in_process

COUNT = 24


@dataclass(frozen=True)
class Taught:
    job: SftJob
    result: SftResult
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


def make_job(folder: Path, model: Path, data: Path, **changes: Any) -> SftJob:
    """Two of three planned epochs, briskly."""
    job = SftJob(
        start=model,
        data=(data,),
        output=folder / "model",
        log=folder / "training.jsonl",
        learning_rate=3e-3,
        final_learning_rate=0.0,
        epochs=3,
        keep_epoch=2,
        batch_size=8,
        micro_batch_size=4,
        dropout=0.0,
        device="cpu",
    )
    return replace(job, **changes)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Taught]:
    folder, home = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("home")
    job = make_job(folder, save_model(folder / "M0"), save_examples(folder / "eft.jsonl"))
    steps: list[Mapping[str, float]] = []
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("HOME", str(home))
        yield Taught(job, teach_in_process(job, steps.append), steps, home)


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


def test_the_loss_is_on_the_answers_alone(taught: Taught, tmp_path: Path) -> None:
    job = replace(taught.job, output=tmp_path / "model", log=tmp_path / "training.jsonl")
    job = replace(job, batch_size=COUNT, micro_batch_size=4, epochs=1, keep_epoch=None)
    steps: list[Mapping[str, float]] = []
    teach_in_process(job, steps.append)
    assert len(steps) == 1
    assert steps[0]["loss"] == pytest.approx(nll_of_the_answers(job), rel=1e-4)


def test_training_teaches_the_answers(taught: Taught) -> None:
    assert taught.steps[-1]["loss"] < 0.75 * taught.steps[0]["loss"]
    assert nll_of_the_answers(replace(taught.job, start=taught.job.output)) < 0.75 * nll_of_the_answers(taught.job)


def test_every_step_is_told_until_the_epoch_that_is_kept(taught: Taught) -> None:
    assert [step["step"] for step in taught.steps] == list(range(1, 7))
    assert {step["steps"] for step in taught.steps} == {6}
    assert taught.steps[-1]["epoch"] == 2.0
    assert taught.steps[-1]["learning_rate"] > 0.1 * taught.job.learning_rate  # the schedule is three epochs long
    first, *steps, last = events(taught.job)
    assert (first["event"], first["examples"], first["too_long"]) == ("start", {"eft": COUNT}, {})
    assert [{**step, "event": None} for step in steps] == [{**step, "event": None} for step in taught.steps]
    assert last == {"event": "end", "steps": 6}


def test_the_model_folder_is_complete(taught: Taught) -> None:
    start, output = taught.job.start, taught.job.output
    assert {path.name for path in output.iterdir()} == {path.name for path in start.iterdir()} | {"lineage.json"}
    for path in start.iterdir():
        same = (output / path.name).read_bytes() == path.read_bytes()
        assert same == (path.suffix != ".safetensors"), path.name
    assert fingerprint_model(output) != fingerprint_model(start)


def test_lineage_tells_where_the_model_comes_from(taught: Taught) -> None:
    lineage = taught.result.lineage
    assert lineage == read_sft_lineage(taught.job)
    assert (lineage.method, lineage.start.folder) == ("sft", "../M0")
    assert lineage.start.sha256 == fingerprint_model(taught.job.start)
    assert (lineage.examples, lineage.steps, lineage.settings["learning_rate"]) == ({"eft": COUNT}, 6, 3e-3)
    assert str(taught.job.start.parent) not in (taught.job.output / "lineage.json").read_text()


def test_nothing_else_is_left_behind(taught: Taught) -> None:
    assert not list(taught.home.iterdir())
    beside = {path.name for path in taught.job.output.parent.iterdir()}
    ours = {"training.jsonl", "training.job.json", "training.stderr.txt", "model"}
    assert beside == ours | {"M0", "eft.jsonl"}


def test_the_same_job_again_does_nothing(taught: Taught) -> None:
    again = teach_in_process(replace(taught.job, threads=2), no_step)
    assert (again.lineage, again.seconds) == (taught.result.lineage, 0.0)


def test_another_job_does_not_write_over_a_model(taught: Taught) -> None:
    with pytest.raises(UserError, match=r"model: a model made with other values of learning_rate, seed is here"):
        teach_in_process(replace(taught.job, learning_rate=1e-3, seed=3), no_step)
    with pytest.raises(UserError, match=r"M0: already there, without a readable lineage\.json"):
        teach_in_process(replace(taught.job, output=taught.job.start), no_step)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_child_leaves_no_model_and_the_next_one_makes_the_same(taught: Taught, tmp_path: Path) -> None:
    job = replace(taught.job, output=tmp_path / "model", log=tmp_path / "training.jsonl")

    def kill(step: Mapping[str, float]) -> None:
        os.kill(events(job)[0]["pid"], signal.SIGKILL)

    with pytest.raises(UserError, match="training was killed, most likely for want of memory"):
        teach_in_process(job, kill)
    assert not job.output.exists()
    teach_in_process(job, lambda step: None)
    weights = "model.safetensors"
    assert (job.output / weights).read_bytes() == (taught.job.output / weights).read_bytes()
    assert not list(tmp_path.glob(".*"))  # what the killed one had begun


def test_the_users_mistakes_arrive_as_one_line(taught: Taught, tmp_path: Path) -> None:
    job = replace(taught.job, output=tmp_path / "model", log=tmp_path / "training.jsonl")
    with pytest.raises(UserError, match=r"none\.jsonl: can't be read: No such file"):
        teach_in_process(replace(job, data=(tmp_path / "none.jsonl",)), no_step)
    with pytest.raises(UserError, match=r"nowhere: no model here"):
        teach_in_process(replace(job, start=tmp_path / "nowhere"), no_step)


def test_the_command_ends_with_status_2_for_a_wrong_job(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "metareward.training.sft", str(tmp_path / "job.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "job.json: can't be read" in done.stderr


def test_the_parent_does_not_import_torch() -> None:
    code = "import sys, metareward.training.sft_process; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
