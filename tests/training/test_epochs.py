from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from dpo_world import make_job, save_model, save_pairs
from hypothesis import given
from hypothesis import strategies as st

from metareward.errors import UserError
from metareward.training.epochs import EpochRule, adopt, choose_epoch, epoch_folder
from metareward.training.job import DpoJob
from metareward.training.lineage import already_made, read_lineage
from metareward.training.process import run_in_process

START = {"agreement": 0.5, "answer_chars": 100.0}
MEASURED = {
    1: {"agreement": 0.60, "answer_chars": 110.0},
    2: {"agreement": 0.64, "answer_chars": 140.0},
    3: {"agreement": 0.65, "answer_chars": 260.0},
}


@pytest.mark.parametrize(
    ("rule", "epoch"),
    [
        (EpochRule("agreement"), 3),
        (EpochRule("agreement", lowest=True), 1),
        (EpochRule("agreement", margin=0.02), 2),
        (EpochRule("agreement", margin=1.0), 1),
        (EpochRule("agreement", longest=1.5), 2),
        (EpochRule("agreement", longest=1.05), 1),
    ],
)
def test_the_rule_decides(rule: EpochRule, epoch: int) -> None:
    assert choose_epoch(MEASURED, rule, START).epoch == epoch


def test_the_reason_tells_what_was_compared() -> None:
    choice = choose_epoch({**MEASURED, 4: {"agreement": float("nan")}}, EpochRule("agreement", longest=2.0), START)
    assert choice.why == "epoch 2 by highest agreement (1: 0.6, 2: 0.64, 3: 0.65, 4: -; too long: 3)"
    everything = choose_epoch(MEASURED, EpochRule("agreement", longest=1.0), START)
    assert everything.why == "epoch 1: its answer_chars grew least; all grew to more than 1 times the start model's"


def test_no_number_at_all() -> None:
    with pytest.raises(UserError, match="no epoch has a number for win_rate"):
        choose_epoch(MEASURED, EpochRule("win_rate"), START)


@given(st.dictionaries(st.integers(1, 9), st.floats(-5, 5), min_size=1), st.floats(0, 1))
def test_what_is_chosen_is_near_the_best_and_nothing_earlier_is(scores: dict[int, float], margin: float) -> None:
    measured = {epoch: {"f": score} for epoch, score in scores.items()}
    chosen = choose_epoch(measured, EpochRule("f", margin=margin), {}).epoch
    assert scores[chosen] >= max(scores.values()) - margin
    assert all(scores[epoch] < max(scores.values()) - margin for epoch in scores if epoch < chosen)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    """Three epochs of two steps, all kept."""
    folder = tmp_path_factory.mktemp("world")
    pairs = (save_pairs(folder / "actor.parquet", "actor", 16),)
    return replace(make_job(folder, save_model(folder / "M0"), pairs), keep_epoch=3, keep_epochs=True)


def no_step(step: Mapping[str, float]) -> None:
    raise AssertionError("nothing was to be trained")


@pytest.mark.slow
def test_every_epoch_is_kept_and_one_becomes_the_model(job: DpoJob, tmp_path: Path) -> None:
    job = replace(job, output=tmp_path / "model", log=tmp_path / "training.jsonl", checkpoint_steps=3)

    def kill(step: Mapping[str, float]) -> None:
        if step["step"] == 4:
            os.kill(json.loads(job.log.read_text().splitlines()[0])["pid"], signal.SIGKILL)

    with pytest.raises(UserError, match="was killed"):
        run_in_process(job, kill)
    result = run_in_process(job, lambda _: None)
    assert result.output == tmp_path / "model-epochs"
    assert sorted(path.name for path in result.output.iterdir()) == ["epoch-1", "epoch-2", "epoch-3", "lineage.json"]
    assert run_in_process(job, no_step).lineage == result.lineage

    direct = replace(job, output=tmp_path / "direct", log=tmp_path / "direct.jsonl", keep_epochs=False, keep_epoch=2)
    run_in_process(direct, lambda _: None)
    files = [folder / "model.safetensors" for folder in (epoch_folder(job, 2), direct.output)]
    assert files[0].read_bytes() == files[1].read_bytes()

    for _ in range(2):  # again, as after a kill
        adopt(job, 2)
    assert not result.output.exists()
    lineage = read_lineage(job.output)
    assert (lineage.epoch, lineage.steps, lineage.log_ratio) == (2, 4, 0.0)
    assert (job.output / lineage.start.folder).resolve() == job.start.resolve()
    assert already_made(job) == lineage
    assert {path.name for path in job.output.iterdir()} == {path.name for path in direct.output.iterdir()}


def test_the_rest_stays_if_asked(job: DpoJob, tmp_path: Path) -> None:
    job = replace(job, output=tmp_path / "model")
    for epoch in (1, 2):
        epoch_folder(job, epoch).mkdir(parents=True)
    adopt(job, 1, keep_rest=True)
    assert job.output.is_dir()
    assert [path.name for path in job.product.iterdir()] == ["epoch-2"]


def test_an_epoch_that_is_not_there(job: DpoJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="epoch-7: no model of this epoch"):
        adopt(replace(job, output=tmp_path / "model"), 7)
