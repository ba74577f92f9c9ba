"""Before the first step: start and reference agree, packed rows give the same figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_world import CONTEXT, changed, make_job, save_model, save_pairs
from transformers import FalconConfig

from metareward.errors import UserError
from metareward.training.checkpoints import SanityFindings
from metareward.training.config import DpoJob
from metareward.training.data import FittingData, TrainingPair, fit_pairs, read_training_pairs
from metareward.training.models import load_model, load_tokenizer
from metareward.training.prefix_sharing.forward import PrefixSharing
from metareward.training.sanity_checks import NOT_WANTED, SanityCheck, check_packing, first_batch
from metareward.training.trainer import PairTrainer, make_dpo_trainer


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    folder = tmp_path_factory.mktemp("world")
    pairs = (save_pairs(folder / "actor.parquet", "actor", 12), save_pairs(folder / "judge.parquet", "judge", 4, 40))
    return changed(make_job(folder, save_model(folder / "M0"), pairs), num_train_epochs=1, stop_after_epoch=1)


def trainer_of(job: DpoJob, reference: Path, folder: Path) -> tuple[PairTrainer, Any]:
    frozen, policy = load_model(reference, 0.0), load_model(job.start, job.settings.dropout)
    tokenizer = load_tokenizer(job.start)
    return make_dpo_trainer(job, data_of(job), policy, frozen, tokenizer, folder, []), frozen


def data_of(job: DpoJob) -> FittingData[TrainingPair]:
    return fit_pairs(read_training_pairs(job.data), load_tokenizer(job.start), job, CONTEXT)


def begin(
    job: DpoJob, reference: Path, folder: Path, findings: SanityFindings | None = None
) -> tuple[PairTrainer, SanityFindings]:
    """What is found before the first step; the step itself is not made."""
    found: list[SanityFindings] = []
    trainer, _ = trainer_of(job, reference, folder)
    check = SanityCheck(job, findings, found.append)
    check.prepare(trainer, data_of(job).lengths)
    check.on_train_begin(trainer.args, trainer.state, trainer.control)
    return trainer, found[0]


def test_start_and_reference_agree_to_the_bit(job: DpoJob, tmp_path: Path) -> None:
    trainer, found = begin(job, job.start, tmp_path)
    assert found == SanityFindings(log_ratio=0.0, not_packed="", flex=False, reference=None)
    assert trainer.ref_model is not None


def test_another_model_in_the_place_of_the_reference_stops_the_run(job: DpoJob, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="should be one model, but the log-ratio on the first pairs is"):
        begin(job, save_model(tmp_path / "stranger", seed=1), tmp_path)


def test_another_reference_is_another_model(job: DpoJob, tmp_path: Path) -> None:
    other = changed(job, reference=save_model(tmp_path / "other", seed=1))
    assert begin(other, other.reference, tmp_path)[1].log_ratio > 1


def test_prefix_sharing_can_be_turned_off(job: DpoJob, tmp_path: Path) -> None:
    apart = changed(job, prefix_sharing=False)
    assert begin(apart, job.start, tmp_path)[1].not_packed == NOT_WANTED


def test_a_model_whose_packed_rows_differ_is_not_packed(job: DpoJob, tmp_path: Path) -> None:
    """Layers that look at neighbours in the row, whoever they are, see the wrong ones in a packed row."""
    trainer, frozen = trainer_of(job, job.start, tmp_path)
    norm = frozen.base_model.layers[0].input_layernorm
    norm.register_forward_hook(lambda _, __, output: output + output.roll(1, dims=1))
    sharing = PrefixSharing(frozen)
    seen = check_packing(trainer, frozen, sharing, first_batch(trainer))
    assert seen.not_packed.startswith("packed rows differ by")
    assert not sharing.packed


def test_the_first_pairs_are_those_that_training_begins_with(job: DpoJob, tmp_path: Path) -> None:
    trainer, _ = trainer_of(changed(job, per_device_train_batch_size=4), job.start, tmp_path)
    seen, whole = first_batch(trainer), next(iter(trainer.get_train_dataloader()))
    assert len(whole["input_ids"]) == 8
    for name, rows in seen.items():
        assert torch.equal(rows, whole[name][[0, 1, 4, 5]])  # chosen 0 and 1, rejected 0 and 1


def test_dropout_is_off_for_the_reference_and_the_check(job: DpoJob, tmp_path: Path) -> None:
    trainer, found = begin(changed(job, dropout=0.5), job.start, tmp_path)
    assert trainer.model.config.attention_dropout == 0.5
    assert trainer.ref_model.config.attention_dropout == 0.0
    assert found.log_ratio == 0.0


def test_the_reference_is_precomputed_once(job: DpoJob, tmp_path: Path) -> None:
    trainer, found = begin(changed(job, num_train_epochs=2, stop_after_epoch=2), job.start, tmp_path)
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


@pytest.mark.parametrize("error", [ValueError("no such\nmask"), RuntimeError("no kernel"), KeyError("mask")])
def test_a_model_that_cannot_run_packed_rows_is_not_packed(job: DpoJob, tmp_path: Path, error: Exception) -> None:
    trainer, frozen = trainer_of(job, job.start, tmp_path)
    sharing = PrefixSharing(frozen)

    def refuse(*_: object) -> None:
        if sharing.packed:
            raise error

    frozen.base_model.layers[0].register_forward_pre_hook(refuse)
    checked = check_packing(trainer, frozen, sharing, first_batch(trainer))
    assert checked.not_packed == " ".join(str(error).split())
    assert not sharing.packed


def test_a_model_that_cannot_be_packed_is_trained_all_the_same(job: DpoJob, tmp_path: Path) -> None:
    start = save_model(tmp_path / "M0", kind=FalconConfig)
    falcon = changed(job, start=start, reference=start)
    trainer, found = begin(falcon, start, tmp_path / "out")
    assert found.not_packed == "packed rows are not tested with model type falcon"
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert float(loss) == pytest.approx(math.log(2), abs=1e-5)


def test_gradients_of_the_policy_are_checked(job: DpoJob, tmp_path: Path) -> None:
    trainer, _ = trainer_of(job, job.start, tmp_path)

    def enlarge(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        if given.get("packed_row") is not None and output[0].requires_grad:
            output[0].register_hook(lambda gradient: gradient * 1.05)

    trainer.model.model.layers[0].self_attn.register_forward_hook(enlarge, with_kwargs=True)
    sharing, batch = PrefixSharing(trainer.model), first_batch(trainer)
    assert check_packing(trainer, trainer.model, sharing, batch).not_packed == ""
    checked = check_packing(trainer, trainer.model, sharing, batch, trained=True)
    assert checked.not_packed.startswith("gradients of packed rows differ by")
    assert not sharing.packed
    assert all(each.grad is None for each in trainer.model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="FlexAttention trains on a GPU only")
def test_a_resumed_run_uses_flex_attention_again(job: DpoJob, tmp_path: Path) -> None:
    gpu = changed(job, device="cuda")
    trainer, findings = begin(gpu, gpu.start, tmp_path)
    assert findings.flex
    check = SanityCheck(gpu, findings, lambda _: None)
    check.prepare(trainer, data_of(gpu).lengths)
    assert check._sharing.packed and check._sharing.flex


def test_a_run_resumed_on_a_cpu_does_without_flex_attention(job: DpoJob, tmp_path: Path) -> None:
    trainer, _ = trainer_of(job, job.start, tmp_path)
    check = SanityCheck(job, SanityFindings(0.0, "", flex=True, reference=None), lambda _: None)
    check.prepare(trainer, data_of(job).lengths)
    assert check._sharing.packed and not check._sharing.flex
