"""Runs whose epochs are measured and chosen, with moving-average references and adapters, as a user starts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from run_folders import log_entries
from tiny_models import tiny_llama
from whole_runs import Workspace, write_inputs

from metareward.storage.custody import fingerprint_model
from metareward.storage.run_dir import RunDir
from metareward.training.lineage import ADAPTER, read_lineage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(folder: Path, *changes: str) -> RunDir:
    write_inputs(folder)
    tiny_llama(folder / "model", verdicts=True)
    words = [
        word
        for change in ("training.num_train_epochs=2", "training.batch_size=2", *changes)
        for word in ("--set", change)
    ]
    status, _, errors = Workspace(folder).run("out", *words)
    assert status == 0, errors
    return RunDir(folder / "out")


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_the_epoch_that_the_rule_names_becomes_the_model(tmp_path: Path) -> None:
    done = run(
        tmp_path,
        "training.checkpoint_selection.metric=answer_chars",
        "training.reference=ema",
        "training.checkpoint_selection.judge=model",
    )
    for t, entry in zip((1, 2), log_entries(done, "chosen"), strict=True):
        folder = done.iteration(t)
        measured = {epoch: read(folder.evaluation / f"epoch-{epoch}.json") for epoch in (1, 2)}
        assert all({"win_rate", "judge_win_rate", "answer_chars"} <= figures.keys() for figures in measured.values())
        best = max(measured, key=lambda epoch: (measured[epoch]["answer_chars"], -epoch))
        lineage = read_lineage(folder.model)
        assert entry["epoch"] == lineage.epoch == best
        assert not folder.model.with_name("model-epochs").exists()
        # It is measured again as M_t, with the same seeds: the same figures.
        assert read(folder.evaluation / "model.json")["metrics"]["answer_chars"]["mean"] == pytest.approx(
            measured[best]["answer_chars"]
        )
    first, second = (read_lineage(done.iteration(t).model) for t in (1, 2))
    assert first.reference is not None and second.reference is not None and second.log_ratio is not None
    assert first.reference.sha256 == first.start.sha256 == fingerprint_model(tmp_path / "model")
    assert second.reference.path == "../reference"
    assert second.log_ratio > 0


def test_an_adapter_is_trained_on_in_two_processes(tmp_path: Path) -> None:
    lora = ("training.method=lora", "training.lora.r=4", "training.lora.carry_over=stacked", "training.num_processes=2")
    done = run(tmp_path, *lora, "training.save_steps=1", "training.loss_type=[sigmoid, sft]")
    for t in (1, 2):
        lineage = read_lineage(done.iteration(t).model)
        assert lineage.base is not None and lineage.base.sha256 == fingerprint_model(tmp_path / "model")
        assert lineage.log_ratio == pytest.approx(0.0, abs=1e-3)
        assert (done.iteration(t).model / ADAPTER / "adapter_model.safetensors").is_file()
