"""Inside the training process: which pairs fit, what the first pairs say, what TRL is told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dpo_world import CONTEXT, make_job, save_model, save_pairs
from safetensors.torch import load_file, save_file

from metareward.errors import UserError
from metareward.training.beginning import Beginning
from metareward.training.first_batch import NOT_ASKED, first_batch, look
from metareward.training.job import DpoJob
from metareward.training.kept import Findings
from metareward.training.lengths import FittingPairs, fitting
from metareward.training.lineage import origins
from metareward.training.models import load_model, load_tokenizer
from metareward.training.models import save_model as save_trained
from metareward.training.pairset import read_training_pairs
from metareward.training.prefix_sharing import RowSharing
from metareward.training.trainer import PairTrainer, arguments, make_trainer


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    folder = tmp_path_factory.mktemp("world")
    pairs = (save_pairs(folder / "actor.parquet", "actor", 12), save_pairs(folder / "judge.parquet", "judge", 4, 40))
    return replace(make_job(folder, save_model(folder / "M0"), pairs), epochs=1, keep_epoch=1)


def fit_pairs(job: DpoJob) -> FittingPairs:
    return fitting(read_training_pairs(job.pairs), load_tokenizer(job.start), job, CONTEXT)


def trainer_of(job: DpoJob, reference: Path, folder: Path) -> tuple[PairTrainer, Any]:
    frozen = load_model(reference, 0.0)
    policy = load_model(job.start, job.dropout)
    return make_trainer(job, fit_pairs(job), policy, frozen, load_tokenizer(job.start), folder, []), frozen


def begin(job: DpoJob, reference: Path, folder: Path) -> tuple[PairTrainer, Findings]:
    """What is found out before the first step; the step itself is not made."""
    found: list[Findings] = []
    trainer, _ = trainer_of(job, reference, folder)
    beginning = Beginning(job, *origins(job), None, found.append)
    beginning.prepare(trainer, fit_pairs(job).lengths)
    beginning.on_train_begin(trainer.args, trainer.state, trainer.control)
    return trainer, found[0]


def test_start_and_reference_agree_to_the_bit(job: DpoJob, tmp_path: Path) -> None:
    trainer, found = begin(job, job.start, tmp_path)
    assert found == Findings(log_ratio=0.0, not_packed="", reference=None)
    assert trainer.ref_model is not None


def test_another_model_in_the_place_of_the_reference_stops_the_run(job: DpoJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="should be one model, but the log-ratio on the first pairs is"):
        begin(job, save_model(tmp_path / "stranger", seed=1), tmp_path)


def test_another_reference_is_another_model(job: DpoJob, tmp_path: Path) -> None:
    other = replace(job, reference=save_model(tmp_path / "other", seed=1))
    assert begin(other, other.reference, tmp_path)[1].log_ratio > 1


def test_sharing_is_not_forced_on_anyone(job: DpoJob, tmp_path: Path) -> None:
    apart = replace(job, prefix_sharing=False)
    assert begin(apart, job.start, tmp_path)[1].not_packed == NOT_ASKED


def test_a_model_that_shares_wrongly_is_run_apart(job: DpoJob, tmp_path: Path) -> None:
    """Layers that look at neighbours in the row, whoever they are, see the wrong ones in a packed row."""
    trainer, frozen = trainer_of(job, job.start, tmp_path)
    norm = frozen.base_model.layers[0].input_layernorm
    norm.register_forward_hook(lambda _, __, output: output + output.roll(1, dims=1))
    sharing = RowSharing(frozen)
    seen = look(trainer, frozen, sharing, first_batch(trainer))
    assert "nats a token apart" in seen.not_packed
    assert not sharing.packed


def test_the_first_pairs_are_those_that_training_begins_with(job: DpoJob, tmp_path: Path) -> None:
    trainer, _ = trainer_of(replace(job, micro_batch_size=4), job.start, tmp_path)
    seen, whole = first_batch(trainer), next(iter(trainer.get_train_dataloader()))
    assert len(whole["input_ids"]) == 8
    for name, rows in seen.items():
        assert torch.equal(rows, whole[name][[0, 1, 4, 5]])  # chosen 0 and 1, rejected 0 and 1


def test_dropout_is_off_for_the_reference_and_for_the_look(job: DpoJob, tmp_path: Path) -> None:
    trainer, found = begin(replace(job, dropout=0.5), job.start, tmp_path)
    assert trainer.model.config.attention_dropout == 0.5
    assert trainer.ref_model.config.attention_dropout == 0.0
    assert found.log_ratio == 0.0


def test_a_frozen_reference_is_run_once(job: DpoJob, tmp_path: Path) -> None:
    trainer, found = begin(replace(job, epochs=2, keep_epoch=2), job.start, tmp_path)
    assert trainer.ref_model is None
    assert trainer.precompute_ref_logps
    trainer_alone, frozen = trainer_of(job, job.start, tmp_path)
    rows = trainer_alone.train_dataset
    for place in (0, 7, len(rows) - 1):
        alone = trainer_alone.compute_ref_log_probs(frozen, trainer_alone.data_collator([rows[place]]))
        assert found.reference is not None
        assert [side[place] for side in found.reference] == pytest.approx([float(each) for each in alone], rel=1e-5)
        noted = trainer.train_dataset[place]
        assert [noted["ref_chosen_logps"], noted["ref_rejected_logps"]] == [side[place] for side in found.reference]


def test_the_longest_pairs_are_left_out_and_counted(job: DpoJob) -> None:
    everything = fit_pairs(job)
    assert (len(everything.pairs), everything.too_long) == (16, ())
    tight = replace(job, max_length=sorted(everything.lengths)[-3])
    fitted = fit_pairs(tight)
    assert [pair.kind for pair in fitted.too_long] == ["judge", "judge"]
    assert fitted.longest == fitted.limit == tight.max_length
    assert len(fitted.lengths) == len(fitted.pairs) == 14


def test_no_pair_fits(job: DpoJob) -> None:
    shortest = min(fit_pairs(job).lengths)
    with pytest.raises(UserError, match=f"no pair fits in max_length 5, the shortest has {shortest} tokens"):
        fit_pairs(replace(job, max_length=5))
    with pytest.raises(UserError, match=f"it reads 6 tokens, the shortest pair has {shortest}"):
        fitting(read_training_pairs(job.pairs), load_tokenizer(job.start), job, 6)


def test_lengths_are_those_trl_trains_on(job: DpoJob, tmp_path: Path) -> None:
    trainer, _ = trainer_of(job, job.start, tmp_path)
    for row, length in zip(trainer.train_dataset, fit_pairs(job).lengths, strict=True):
        assert length == len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))


def test_missing_weights_are_refused(job: DpoJob, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "torn")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"torn: 1 weights are missing \(model.layers.1.mlp.up_proj.weight\)"):
        load_model(folder, 0.0)


def test_a_tokenizer_without_chat_template_is_refused(job: DpoJob, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "mute")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="mute: the tokenizer has no chat template"):
        load_tokenizer(folder)


@pytest.mark.parametrize("asked", ["start", "float32"])
def test_trained_in_float32_and_stored_as_asked(job: DpoJob, tmp_path: Path, asked: Any) -> None:
    start = save_model(tmp_path / "half", dtype=torch.bfloat16)
    model = load_model(start, 0.0)
    assert model.dtype == torch.float32
    (tmp_path / "out").mkdir()
    save_trained(model, replace(job, start=start, save_dtype=asked), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16 if asked == "start" else torch.float32}
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == ("bfloat16" if asked == "start" else "float32")


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"schedule": "cosine"}, [1.0, 0.5, 0.0]),
        ({"schedule": "cosine", "final_learning_rate": 1e-3}, [1.0, 0.75, 0.5]),
        ({"schedule": "linear"}, [1.0, 0.5, 0.0]),
        ({"schedule": "linear", "final_learning_rate": 1e-3}, [1.0, 0.75, 0.5]),
        ({"schedule": "constant"}, [1.0, 1.0, 1.0]),
        ({"schedule": "linear", "warmup": 0.5}, [0.0, 1.0, 0.0]),
    ],
)
def test_the_learning_rate_at_the_beginning_the_middle_and_the_end(
    job: DpoJob, tmp_path: Path, changes: dict[str, Any], rates: list[float]
) -> None:
    trainer, _ = trainer_of(replace(job, learning_rate=2e-3, epochs=5, keep_epoch=1, **changes), job.start, tmp_path)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    seen = []
    for _ in range(11):
        seen.append(trainer.lr_scheduler.get_last_lr()[0] / 2e-3)
        trainer.lr_scheduler.step()
    assert [seen[0], seen[5], seen[10]] == pytest.approx(rates)


def test_trl_may_not_cut_anything(job: DpoJob, tmp_path: Path) -> None:
    told = arguments(job, 16, tmp_path)
    assert told["max_length"] is None
    assert told["gradient_accumulation_steps"] * told["per_device_train_batch_size"] == job.batch_size
    assert not told["bf16"]
