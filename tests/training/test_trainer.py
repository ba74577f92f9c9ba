"""What TRL is given: the order of examples, and every setting under the name that it has there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from training_world import CONTEXT, changed, make_job, prepare_trainer, save_model, save_pairs
from transformers import TrainerControl, TrainerState

from metareward.training.callbacks import ResumeStates, StepLog
from metareward.training.config import (
    DpoJob,
    LoraSettings,
    SftJob,
    SftSettings,
    TrainingSettings,
)
from metareward.training.data import fit_examples, fit_pairs, read_examples, read_training_pairs
from metareward.training.launch import command
from metareward.training.models import load_dpo_models, load_model, load_tokenizer, save_trained
from metareward.training.trainer import ExampleTrainer, LengthSortedBatches, make_dpo_trainer, make_sft_trainer


@given(st.lists(st.integers(1, 99), min_size=1, max_size=50), st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_is_every_pair_once_and_falls_in_length_inside_each_batch(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    order = LengthSortedBatches(lengths, batch_size, seed=1)
    order.set_epoch(epoch)
    numbers = list(order)
    assert sorted(numbers) == list(range(len(lengths)))
    for first in range(0, len(numbers), batch_size):
        batch = [lengths[number] for number in numbers[first : first + batch_size]]
        assert batch == sorted(batch, reverse=True)


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    lengths = [5] * 40
    order = LengthSortedBatches(lengths, 8, seed=1)
    first = list(order)
    assert first == list(order) == list(LengthSortedBatches(lengths, 8, seed=1))
    assert first != list(LengthSortedBatches(lengths, 8, seed=2))
    order.set_epoch(1)
    assert first != list(order)


# --- every setting reaches TRL ---

STEPS = 6  # two in each of three epochs


@dataclass(frozen=True)
class Place:
    """Where the ``value`` of a ``field`` must show up, as ``expected``, in a trainer that is ready to train."""

    field: str
    value: Any
    find: Callable[[Any, Any], object]  # of the trainer and the job
    expected: object


def learning_rates(trainer: Any, steps: int = STEPS) -> list[float]:
    rates = []
    for _ in range(steps + 1):
        rates.append(float(trainer.lr_scheduler.get_last_lr()[0]))
        trainer.lr_scheduler.step()
    return rates


def saved_dtype(trainer: Any, job: Any) -> str:
    folder = Path(trainer.args.output_dir) / "saved"
    folder.mkdir()
    save_trained(trainer, job, folder)
    return str(next(iter(load_file(folder / "model.safetensors").values())).dtype)


def stops_after(trainer: Any, job: Any) -> int:
    """The epoch at whose end the callbacks stop the training."""
    log = StepLog(job, lambda _: None, 1)
    epochs = range(1, job.settings.num_train_epochs + 1)
    for epoch in epochs:
        control = TrainerControl()
        log.on_epoch_end(trainer.args, TrainerState(epoch=epoch), control)
        if control.should_training_stop:
            return epoch
    return 0


def saves_at(trainer: Any, job: Any) -> list[int]:
    """The steps after which the callbacks request a resume state, in the middle of an epoch."""
    states, steps = ResumeStates(job, 0.0), []
    for step in range(1, 10):
        control = TrainerControl()
        states.on_step_end(trainer.args, TrainerState(global_step=step, epoch=step / 100), control)
        steps += [step] if control.should_save else []
    return steps


# Written by hand: nothing here comes from the code that maps settings to arguments. The default of every value differs.
SHARED = [
    Place("learning_rate", 7e-4, lambda t, _: t.args.learning_rate, 7e-4),
    Place("learning_rate", 7e-4, lambda t, _: t.optimizer.param_groups[0]["initial_lr"], 7e-4),
    Place("min_lr", 3e-4, lambda t, _: learning_rates(t)[-1], 3e-4),
    Place("num_train_epochs", 5, lambda t, _: t.args.num_train_epochs, 5),
    Place("stop_after_epoch", 1, stops_after, 1),
    Place("batch_size", 12, lambda t, _: t.args.per_device_train_batch_size * t.args.gradient_accumulation_steps, 12),
    Place("per_device_train_batch_size", 2, lambda t, _: t.args.per_device_train_batch_size, 2),
    Place("per_device_train_batch_size", 2, lambda t, _: t.args.gradient_accumulation_steps, 4),
    Place("lr_scheduler_type", "linear", lambda t, _: learning_rates(t)[4] / 1e-3, 1 / 3),
    Place("lr_scheduler_type", "constant", lambda t, _: sorted(set(learning_rates(t))), [1e-3]),
    Place("warmup_ratio", 0.3, lambda t, _: t.args.warmup_steps, 2),  # of 2 steps in each of 3 epochs
    Place(
        "warmup_ratio",
        0.3,
        lambda t, _: [round(rate / 1e-3, 6) for rate in learning_rates(t)[:4]],
        [0, 0.5, 1, 0.853553],
    ),
    Place("max_length", 100, lambda t, _: len(t.train_dataset) < 16, True),
    Place("max_length", 100, lambda t, _: t.args.max_length, None),  # nothing is truncated
    Place("weight_decay", 0.25, lambda t, _: max(group["weight_decay"] for group in t.optimizer.param_groups), 0.25),
    Place("max_grad_norm", 0.3, lambda t, _: t.args.max_grad_norm, 0.3),
    Place("dropout", 0.2, lambda t, _: t.model.config.attention_dropout, 0.2),
    Place("dtype", "bfloat16", lambda t, _: (t.args.bf16, t.model.dtype), (True, torch.float32)),
    Place("save_dtype", "bfloat16", saved_dtype, "torch.bfloat16"),
    Place("device", "auto", lambda t, _: t.args.use_cpu, not torch.accelerator.is_available()),
    Place("gradient_checkpointing", True, lambda t, _: t.args.gradient_checkpointing, True),
    Place("num_processes", 2, lambda t, _: t.args.gradient_accumulation_steps, 1),
    Place("num_processes", 2, lambda _, job: command(job, Path("j"))[2], "metareward.training.launch"),
    Place("launcher", "ray", lambda _, job: command(job, Path("j"))[2], "metareward.training.launch"),
    Place("sharding", "fsdp2", lambda _, job: command(job, Path("j"))[2], "metareward.training.launch"),
    Place("save_steps", 4, saves_at, [4, 8]),
    Place("report_to", ("tensorboard",), lambda t, _: t.args.report_to, ["tensorboard"]),
]
LORA = LoraSettings(r=3, lora_alpha=5.0, lora_dropout=0.25, target_modules=("v_proj", "up_proj"))
DPO_ONLY = [
    Place("beta", 0.37, lambda t, _: (t.args.beta, t.beta), (0.37, 0.37)),
    Place("dropout", 0.2, lambda t, _: t.args.disable_dropout, False),
    Place("loss_type", ("hinge", "sft"), lambda t, _: t.args.loss_type, ["hinge", "sft"]),
    Place("loss_weights", (0.7,), lambda t, _: t.args.loss_weights, [0.7]),
    Place("label_smoothing", 0.15, lambda t, _: (t.args.label_smoothing, t.label_smoothing), (0.15, 0.15)),
    Place("ld_alpha", 0.6, lambda t, _: t.args.ld_alpha, 0.6),
    Place("method", "lora", lambda t, _: type(t.model).__name__, "PeftModelForCausalLM"),
]
ADAPTER: dict[str, Callable[[Any], bool]] = {
    "r": lambda config: config.r == 3,
    "lora_alpha": lambda config: config.lora_alpha == 5.0,
    "lora_dropout": lambda config: config.lora_dropout == 0.25,
    "target_modules": lambda config: set(config.target_modules) == {"v_proj", "up_proj"},
}
# Settings that no trainer sees, and the tests of what they do.
ELSEWHERE = {
    "start": "tests/pipeline/test_bound_recipe.py",
    "reference": "tests/pipeline/test_bound_recipe.py",
    "ema_decay": "tests/training/test_average.py",
    "checkpoint_selection": "tests/training/test_checkpoints.py",
    "keep_models": "tests/pipeline/test_kept_models.py",
    "prefix_sharing": "tests/training/test_sanity_checks.py",
    "lora": "test_an_adapter_is_as_set",
    "carry_over": "tests/pipeline/test_checkpoint_selection.py",
    "max_restarts": "tests/training/test_ray_launch.py",
    "start_timeout": "tests/training/test_ray_launch.py",
}


def names(model: Any) -> set[str]:
    return set(model.model_fields)


def test_the_lists_have_every_field() -> None:
    shared, dpo = ({place.field for place in places} for places in (SHARED, DPO_ONLY))
    assert names(TrainingSettings) == (shared | dpo | ELSEWHERE.keys()) - {"carry_over"}
    assert names(SftSettings) == shared | {"max_restarts", "start_timeout"}
    assert names(LoraSettings) == ADAPTER.keys() | {"carry_over"}


def test_the_values_differ_from_the_defaults_of_the_test() -> None:
    settings = base_settings(TrainingSettings)
    assert [place.field for place in SHARED + DPO_ONLY if getattr(settings, place.field) == place.value] == []


def base_settings(kind: type[Any]) -> Any:
    """Two steps in each of three epochs of sixteen examples."""
    return kind(
        learning_rate=1e-3, min_lr=0.0, num_train_epochs=3, batch_size=8, dropout=0.0, max_length=CONTEXT, device="cpu"
    )


@pytest.fixture(scope="module")
def dpo_job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    folder = tmp_path_factory.mktemp("dpo")
    job = make_job(folder, save_model(folder / "M0"), (save_pairs(folder / "actor.parquet", "actor", 16, 40),))
    # A loss that uses label_smoothing, so that every setting can be given.
    return changed(job, settings=base_settings(TrainingSettings).model_copy(update={"loss_type": ("robust",)}))


@pytest.fixture(scope="module")
def sft_job(tmp_path_factory: pytest.TempPathFactory) -> SftJob:
    folder = tmp_path_factory.mktemp("sft")
    rows = [{"prompt": "name four red fruits " * (1 + 2 * number), "completion": "best"} for number in range(16)]
    data = folder / "ift.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    start, output, log = save_model(folder / "M0"), folder / "model", folder / "training.jsonl"
    return SftJob(settings=base_settings(SftSettings), start=start, data=(data,), output=output, log=log)


def prepare_sft(job: SftJob, folder: Path) -> ExampleTrainer:
    tokenizer, model = load_tokenizer(job.start), load_model(job.start, job.settings.dropout)
    return make_sft_trainer(
        job, fit_examples(read_examples(job.data), tokenizer, job, CONTEXT), model, tokenizer, folder, []
    )


def label(place: Place) -> str:
    return f"{place.field}={place.value}"


@pytest.mark.parametrize("place", SHARED + DPO_ONLY, ids=label)
def test_a_dpo_setting_is_where_it_should_be(dpo_job: DpoJob, tmp_path: Path, place: Place) -> None:
    job = changed(dpo_job, **{place.field: place.value})
    trainer = prepare_trainer(job, tmp_path, sharing=False)
    trainer.create_optimizer_and_scheduler(num_training_steps=STEPS)
    assert place.find(trainer, job) == pytest.approx(place.expected)


@pytest.mark.parametrize("place", SHARED, ids=label)
def test_an_sft_setting_is_where_it_should_be(sft_job: SftJob, tmp_path: Path, place: Place) -> None:
    job = changed(sft_job, **{place.field: place.value})
    trainer: Any = prepare_sft(job, tmp_path)
    trainer.create_optimizer_and_scheduler(num_training_steps=STEPS)
    assert place.find(trainer, job) == pytest.approx(place.expected)


def test_an_adapter_is_as_set(dpo_job: DpoJob, tmp_path: Path) -> None:
    trainer = prepare_trainer(changed(dpo_job, method="lora", lora=LORA), tmp_path, sharing=False)
    config = trainer.model.peft_config["default"]
    assert dict.fromkeys(ADAPTER, True) == {name: holds(config) for name, holds in ADAPTER.items()}


def test_an_adapter_on_a_4_bit_base_is_trained_in_float32(dpo_job: DpoJob, tmp_path: Path) -> None:
    job = changed(dpo_job, method="lora", lora=LORA)
    models, tokenizer = load_dpo_models(job), load_tokenizer(job.start)
    models.policy.is_loaded_in_4bit = True  # what TRL looks at; its weights aren't
    data = fit_pairs(read_training_pairs(job.data), tokenizer, job, CONTEXT)
    trainer = make_dpo_trainer(job, data, models.policy, None, tokenizer, tmp_path, [], models.adapter)
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    assert trained and all(weight.dtype == torch.float32 for weight in trained)


def test_bfloat16_needs_no_gpu(dpo_job: DpoJob, tmp_path: Path) -> None:
    """transformers refuses bfloat16 on a CPU unless it is told to use it."""
    trainer = prepare_trainer(changed(dpo_job, device="auto", dtype="bfloat16"), tmp_path, sharing=False)
    assert trainer.args.bf16


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_the_last_step_is_never_warmup(dpo_job: DpoJob, tmp_path: Path, kind: str) -> None:
    """With a rate of 0 in its only step training would do nothing."""
    job = changed(dpo_job, lr_scheduler_type=kind, warmup_ratio=0.1, batch_size=16, num_train_epochs=1)
    trainer = prepare_trainer(job, tmp_path, sharing=False)
    trainer.create_optimizer_and_scheduler(num_training_steps=1)
    assert learning_rates(trainer, 1)[0] == 1e-3


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"lr_scheduler_type": "cosine"}, [1.0, 0.5, 0.0]),
        ({"lr_scheduler_type": "cosine", "min_lr": 1e-3}, [1.0, 0.75, 0.5]),
        ({"lr_scheduler_type": "linear"}, [1.0, 0.5, 0.0]),
        ({"lr_scheduler_type": "linear", "min_lr": 1e-3}, [1.0, 0.75, 0.5]),
        ({"lr_scheduler_type": "constant"}, [1.0, 1.0, 1.0]),
        ({"lr_scheduler_type": "linear", "min_lr": 2e-3}, [1.0, 1.0, 1.0]),
        ({"lr_scheduler_type": "linear", "warmup_ratio": 0.5}, [0.0, 1.0, 0.0]),
        ({"lr_scheduler_type": "linear", "warmup_ratio": 0.5, "min_lr": 1e-3}, [0.0, 1.0, 0.5]),
        ({"lr_scheduler_type": "cosine", "warmup_ratio": 0.5, "min_lr": 1e-3}, [0.0, 1.0, 0.5]),
    ],
)
def test_the_learning_rate_at_the_beginning_the_middle_and_the_end(
    dpo_job: DpoJob, tmp_path: Path, changes: dict[str, Any], rates: list[float]
) -> None:
    job = changed(dpo_job, learning_rate=2e-3, num_train_epochs=5, stop_after_epoch=1, **changes)
    trainer = prepare_trainer(job, tmp_path, sharing=False)
    trainer.create_optimizer_and_scheduler(num_training_steps=10)
    seen = [rate / 2e-3 for rate in learning_rates(trainer, 10)]
    assert [seen[0], seen[5], seen[10]] == pytest.approx(rates)
