"""The trainer against DPO with AdamW in plain torch (`plain_dpo`), over several values of every setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from plain_dpo import PlainDpo, Weights, learning_rate
from torch import Tensor
from training_world import changed, make_job, prepare_trainer, save_model, save_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer

from metareward.storage.custody import ModelRef, fingerprint_model
from metareward.training.average import write_average
from metareward.training.config import DpoJob, LoraSettings, Loss

TOLERANCE = 1e-5
OTHER = Path("other")  # in a case: a reference that is another model
AVERAGE = Path("average")  # in a case: a reference that is the average of two models


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    """Four steps of at most eight pairs: two of three planned epochs of thirteen pairs."""
    folder = tmp_path_factory.mktemp("world")
    pairs = (save_pairs(folder / "actor.parquet", "actor", 9), save_pairs(folder / "judge.parquet", "judge", 4, 30))
    return changed(make_job(folder, save_model(folder / "M0"), pairs), learning_rate=1e-3)


@pytest.fixture(scope="module")
def references(job: DpoJob, tmp_path_factory: pytest.TempPathFactory) -> Mapping[Path, Path]:
    folder = tmp_path_factory.mktemp("references")
    other = save_model(folder / "other", seed=1)
    earlier, newer = (ModelRef(str(path), fingerprint_model(path)) for path in (job.start, other))
    write_average(earlier, newer, 0.7, folder / "average")
    return {OTHER: other, AVERAGE: folder / "average"}


def trained(job: DpoJob, folder: Path) -> tuple[Weights, Weights]:
    """The trained weights of our trainer before its first step, and after its last; of LoRA the adapter's matrices."""
    trainer = prepare_trainer(job, folder)
    names = [name for name, each in trainer.model.named_parameters() if each.requires_grad]
    before = {name: trainer.model.get_parameter(name).detach().clone() for name in names}
    trainer.train()
    return before, {name: trainer.model.get_parameter(name).detach() for name in names}


def plain(job: DpoJob, before: Weights) -> PlainDpo:
    model, reference = (AutoModelForCausalLM.from_pretrained(path) for path in (job.start, job.reference))
    adapter = None
    if job.settings.method == "lora":
        matrices = {adapter_name(name): each for name, each in before.items()}
        adapted = {name.rpartition(".")[0] for name in matrices}
        targets = job.settings.lora.target_modules
        assert targets == ("all-linear",) or {name.split(".")[-2] for name in adapted} == set(targets)
        adapter = {name: (matrices[f"{name}.A"], matrices[f"{name}.B"]) for name in sorted(adapted)}
    return PlainDpo(job, model, reference, AutoTokenizer.from_pretrained(job.start), adapter)


def adapter_name(name: str) -> str:
    """``layers.0.q_proj.weight.A`` of PEFT's ``base_model.model.layers.0.q_proj.lora_A.default.weight``."""
    layer, _, side = name.removeprefix("base_model.model.").partition(".lora_")
    return f"{layer}.weight.{side[0]}"


def check_agreement(job: DpoJob, folder: Path) -> None:
    """Every weight agrees to `TOLERANCE`, but for those whose update float32 doesn't determine.

    Adam divides a gradient g by its own size, so an error e of g moves the weight by up to min(2, e / |g|) learning
    rates. With float32 sums of n terms e is at most n u times the size of the terms (u = 2^-24).
    """
    before, ours = trained(job, folder)
    oracle = plain(job, before)
    slack = {name: torch.zeros_like(each) for name, each in oracle.weights.items()}
    steps = 2 * job.settings.num_train_epochs
    for step, gradients in enumerate(oracle.train()):
        rate = learning_rate(job.settings, step, steps)
        for name, gradient in gradients.items():
            slack[name] += rate * (ERROR * gradient.abs().max() / gradient.abs().clamp(min=1e-30)).clamp(max=2)
    if job.settings.method == "lora":
        before, ours = ({adapter_name(name): each for name, each in each.items()} for each in (before, ours))
    assert ours.keys() == oracle.weights.keys()
    apart = {name: (ours[name] - each.detach()).abs() for name, each in oracle.weights.items()}
    assert max(float((each - slack[name]).max()) for name, each in apart.items()) < TOLERANCE
    assert share_above(apart, TOLERANCE) < 1e-3
    assert share_above({name: (ours[name] - before[name]).abs() for name in ours}, 20 * TOLERANCE) > 0.1


def share_above(values: Mapping[str, Tensor], bound: float) -> float:
    entries = torch.cat([each.flatten() for each in values.values()])
    return float((entries > bound).double().mean())


# n u: each weight's gradient is a sum over the tokens of a step (8 pairs, 2 rows each, under 45 tokens).
ERROR = 8 * 2 * 45 * 2.0**-24
LORA = LoraSettings(r=3, lora_alpha=5.0, target_modules=("q_proj", "down_proj"))
# Every setting differs from its default in one of these, as the mutant of a setting that is ignored must show.
MIXED: dict[str, dict[str, Any]] = {
    "cosine": {
        "learning_rate": 2e-3, "min_lr": 5e-4, "warmup_ratio": 0.3, "beta": 0.6, "weight_decay": 0.5,
        "max_grad_norm": 0.4, "batch_size": 4, "per_device_train_batch_size": 2, "reference": OTHER,
    },
    "linear": {
        "lr_scheduler_type": "linear", "min_lr": 2e-4, "warmup_ratio": 0.2, "num_train_epochs": 2,
        "stop_after_epoch": None, "loss_type": ("robust", "sft"), "loss_weights": (0.8, 0.3), "label_smoothing": 0.2,
        "ld_alpha": 0.4, "max_length": 60, "prefix_sharing": False,
    },
    "lora": {
        "method": "lora", "lora": LORA, "lr_scheduler_type": "constant", "weight_decay": 0.1, "max_grad_norm": 0.2,
    },
}  # fmt: skip


@pytest.mark.parametrize("case", MIXED)
def test_many_settings_at_once(case: str, job: DpoJob, references: Mapping[Path, Path], tmp_path: Path) -> None:
    check_agreement(with_references(job, MIXED[case], references), tmp_path)


def with_references(job: DpoJob, changes: dict[str, Any], references: Mapping[Path, Path]) -> DpoJob:
    if "reference" in changes:
        changes = changes | {"reference": references[changes["reference"]]}
    return changed(job, **changes)


SMOOTHED = {"robust": (0.0, 0.3), "exo_pair": (1e-3, 0.3), "aot": (0.0, 0.2), "aot_unpaired": (0.0, 0.2)}
# Every loss with a reference that is another model, so that log-ratios aren't 0.
LOSSES = [
    {"loss_type": (loss,), "label_smoothing": eps, "reference": OTHER, "beta": 0.05}
    for loss in get_args(Loss)
    for eps in SMOOTHED.get(loss, (0.0,))
]
SINGLE: list[dict[str, Any]] = [
    *({"learning_rate": value} for value in (3e-4, 3e-3)),
    *({"min_lr": value} for value in (1e-4, 1e-3)),
    *({"min_lr": value, "lr_scheduler_type": "linear"} for value in (0.0, 4e-4, 1e-3)),
    *({"warmup_ratio": value, "lr_scheduler_type": kind} for value in (0.1, 0.5, 0.9) for kind in ("cosine", "linear")),
    {"warmup_ratio": 0.5, "min_lr": 3e-4, "lr_scheduler_type": "linear"},
    {"warmup_ratio": 0.5, "lr_scheduler_type": "constant"},
    *({"beta": value} for value in (0.01, 0.5, 3.0)),
    *({"num_train_epochs": value, "stop_after_epoch": None} for value in (1, 4)),
    *({"stop_after_epoch": value} for value in (1, 3)),
    *({"batch_size": value} for value in (4, 16)),
    *({"per_device_train_batch_size": value} for value in (1, 2, 8)),
    *({"weight_decay": value} for value in (0.01, 1.0)),
    *({"max_grad_norm": value} for value in (0.01, 100.0)),
    *({"max_length": value} for value in (30, 60)),
    *({"reference": value} for value in (OTHER, AVERAGE)),
    *({"ld_alpha": value} for value in (0.0, 0.5, 1.0)),
    {"prefix_sharing": False},
    {"prefix_sharing": False, "num_train_epochs": 1, "stop_after_epoch": 1},
    {"gradient_checkpointing": True},
    {"seed": 7},
    {"loss_type": ("sigmoid", "sft"), "loss_weights": (1.0, 0.2)},
    {"loss_type": ("ipo", "sft", "bco_pair"), "loss_weights": (0.5, 2.0, 0.1), "ld_alpha": 0.3},
    *({"method": "lora", "lora": LORA.model_copy(update=each)} for each in ({"r": 8}, {"lora_alpha": 64.0})),
    {"method": "lora", "lora": LORA.model_copy(update={"target_modules": ("all-linear",)})},
    {"method": "lora", "lora": LORA, "reference": OTHER, "num_train_epochs": 1, "stop_after_epoch": 1},
]
# Settings that bear on speed and memory only, or that are off at this value.
NO_EFFECT: list[dict[str, Any]] = [
    *({"per_device_train_batch_size": value} for value in (1, 2, 8)),
    {"prefix_sharing": False},
    {"gradient_checkpointing": True},
    {"ld_alpha": 1.0},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", SINGLE + LOSSES, ids=str)
def test_one_setting(changes: dict[str, Any], job: DpoJob, references: Mapping[Path, Path], tmp_path: Path) -> None:
    check_agreement(with_references(job, changes, references), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [each for each in SINGLE if each.get("method") != "lora"], ids=str)
def test_the_oracle_tells_settings_apart(
    changes: dict[str, Any], job: DpoJob, references: Mapping[Path, Path], tmp_path: Path
) -> None:
    """A setting that the trainer ignored would be seen above."""
    base, other = plain(job, {}), plain(with_references(job, changes, references), {})
    for oracle in (base, other):
        for _ in oracle.train():
            pass
    apart = share_above({name: (each - base.weights[name]).abs() for name, each in other.weights.items()}, TOLERANCE)
    assert apart < 1e-3 if changes in NO_EFFECT else apart > 0.01


# Dropout: its draws can't be the same, its statistics are.
DRAWS = 100


def test_dropout_has_the_rate_of_the_setting(job: DpoJob, tmp_path: Path) -> None:
    """Log-probabilities scatter as those of a model with dropout of that rate on its attention's probabilities."""
    torch.manual_seed(0)
    trainer = prepare_trainer(changed(job, dropout=0.3, per_device_train_batch_size=1), tmp_path)
    trainer.callback_handler.on_train_begin(trainer.args, trainer.state, trainer.control)
    batch = next(iter(trainer.get_train_dataloader()))
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    rows = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    ours = draws(lambda: trainer.model(**rows, labels=labels, fused_lm_head=True).log_probs, trainer.model)
    eager = AutoModelForCausalLM.from_pretrained(job.start, attn_implementation="eager", attention_dropout=0.3)
    expected = draws(lambda: masked_log_probs(eager(**rows).logits, labels), eager)
    error = (ours.var(0) / DRAWS + expected.var(0) / DRAWS).sqrt()
    assert float(((ours.mean(0) - expected.mean(0)) / error).abs().max()) < 4.5
    assert float((ours.std(0) / expected.std(0)).mean()) == pytest.approx(1.0, abs=0.2)  # at half the rate 0.64


def draws(log_probs: Callable[[], Tensor], model: Any) -> Tensor:
    """(draws, rows): summed over each row, while the model is trained."""
    model.train()
    with torch.no_grad():
        return torch.stack([log_probs().sum(dim=1) for _ in range(DRAWS)]).double()


def masked_log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    found = logits[:, :-1].log_softmax(-1).gather(2, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    return found * (labels[:, 1:] != -100)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_an_adapters_dropout_has_the_rate_of_the_setting(job: DpoJob, tmp_path: Path, dropout: float) -> None:
    """With the x_j of s B A x dropped at a rate p, entry i has the variance p / (1 - p) sum_j (s (B A)_ij x_j)^2."""
    rate = 0.4
    lora = LORA.model_copy(update={"lora_dropout": rate})
    trainer = prepare_trainer(changed(job, method="lora", lora=lora, dropout=dropout), tmp_path)
    layer = trainer.model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").train()
    torch.manual_seed(0)
    a, b = (getattr(layer, f"lora_{side}")["default"].weight for side in "AB")
    torch.nn.init.normal_(b)
    x = torch.randn(32)
    with torch.no_grad():
        seen = layer(x.expand(4000, 32)) - layer.base_layer(x)
        parts = 5.0 / 3 * (b @ a) * x
    assert torch.allclose(seen.mean(0), parts.sum(1), atol=0.2 * float(seen.std()))
    expected = (rate / (1 - rate) * parts.square().sum(1)).sqrt()
    assert float((seen.std(0) / expected).mean()) == pytest.approx(1.0, abs=0.03)
