"""Training settings and training jobs: what the recipe embeds, what the child process reads, what TRL is given.

A recipe's ``training`` section is a `TrainingSettings`. `DpoJob` and `SftJob` add to the settings what one run needs:
models, data files, output, seed. `metareward.training.trainer` maps a job to TRL's `DPOConfig` or `SFTConfig`. Settings
have the names of TRL, transformers and peft.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from metareward.errors import UserError
from metareward.settings import Count, Section, Text
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import FileDigest

Device = Literal["auto", "cpu", "cuda", "mps"]
Sharding = Literal["ddp", "fsdp2", "zero2", "zero3"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
# TRL's names (trl.DPOConfig.loss_type).
Loss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
# TRL 1.16 ignores label_smoothing with the other losses, sigmoid among them.
_SMOOTHED_LOSSES = frozenset({"aot", "aot_unpaired", "exo_pair", "robust"})
USER_ERROR = 2  # a training process's exit status for an error of the user's, whose message is one line
JUDGE_METRICS = ("judge_win_rate", "judge_agreement")  # metrics that need checkpoint_selection.judge


def _require(good: bool, field: str, value: object, expected: str) -> None:
    """Raise the error of settings that are each allowed but not together, as the recipe's errors are made."""
    if not good:
        raise PydanticCustomError("mismatch", "{expected}", {"key": (field,), "value": value, "expected": expected})


class LoraSettings(Section):
    """Low-rank adapters (arXiv 2106.09685), for training.method 'lora' and 'qlora'."""

    r: Count = Field(default=16, description="Rank of the adapter")
    lora_alpha: float = Field(default=32.0, gt=0.0, description="The adapter is scaled by lora_alpha / r")
    lora_dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="Dropout before the adapter")
    target_modules: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] = Field(
        default=("all-linear",), description="Linear layers with an adapter, by name; all-linear: all but the LM head"
    )
    carry_over: Literal["merged", "stacked"] = Field(
        default="merged", description="Next iteration: a new adapter on the merged model, or the same one trained on"
    )


class CheckpointSelectionSettings(Section):
    """Which epoch's checkpoint becomes the model; without a metric it is the last epoch's."""

    metric: Text | None = Field(
        default=None, description="Evaluate every epoch on the held-out prompts, take the best; empty: the last epoch"
    )
    mode: Literal["max", "min"] = Field(default="max", description="Whether the metric is to be high or low")
    tolerance: float = Field(
        default=0.0, ge=0.0, description="Take the earliest epoch whose metric is at most this much worse than the best"
    )
    max_length_ratio: float | None = Field(
        default=None, gt=0.0, description="Skip epochs whose answers are longer than this many times the start model's"
    )
    judge: Text | None = Field(
        default=None, description="Judge of judge_win_rate and judge_agreement: a model folder, a recipe, URL#MODEL"
    )
    keep_all: bool = Field(default=False, description="Keep the checkpoints of the other epochs")

    @model_validator(mode="after")
    def _check(self) -> Self:
        judged = self.metric not in JUDGE_METRICS or self.judge is not None
        _require(judged, "judge", None, f"a judge for {self.metric}")
        return self


class OptimizationSettings(Section):
    """What DPO and supervised fine-tuning have in common."""

    learning_rate: float = Field(default=5e-6, gt=0.0, description="Peak learning rate (paper: 5e-6)")
    min_lr: float = Field(default=0.0, ge=0.0, description="Learning rate at the end of the schedule")
    num_train_epochs: Count = Field(default=10, description="Length of the learning-rate schedule (paper: 10)")
    stop_after_epoch: Count | None = Field(
        default=None, description="Epoch after which training stops; empty: the last of the schedule"
    )
    batch_size: Count = Field(default=32, description="Examples in each optimizer step, of all processes (paper: 32)")
    per_device_train_batch_size: Count = Field(
        default=4, description="Examples in memory at a time; batch_size must be a multiple of it"
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Learning-rate schedule after the warmup (paper: cosine)"
    )
    warmup_ratio: float = Field(default=0.0, ge=0.0, lt=1.0, description="Share of the steps that are warmup")
    max_length: Count = Field(default=4096, description="Longest prompt with completion, in tokens; longer: left out")
    weight_decay: float = Field(default=0.0, ge=0.0, description="AdamW's weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0.0, description="Gradient clipping")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="The model's dropout rates while training")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Format of the computation (auto: bfloat16 on a GPU); trained weights are float32"
    )
    save_dtype: Literal["start", "float32", "bfloat16"] = Field(
        default="start", description="Format of the saved weights; start: the start model's"
    )
    device: Device = Field(default="auto", description="Where to train; auto: a GPU if there is one")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for more time")
    num_processes: Count = Field(default=1, description="Processes that train together: one for each GPU")
    launcher: Literal["local", "ray"] = Field(
        default="local",
        description="This machine runs the processes, or workers of Ray Train do (at engine.address or RAY_ADDRESS)",
    )
    max_restarts: int = Field(
        default=3, ge=0, description="With launcher ray: how often lost workers are started again, from a resume state"
    )
    start_timeout: float = Field(
        default=600.0, gt=0.0, description="With launcher ray: seconds to wait for machines that are lost or in use"
    )
    sharding: Sharding = Field(
        default="ddp", description="What each process holds: the whole model (ddp), or a part of it"
    )
    save_steps: Count | None = Field(
        default=None, description="Steps between resume states, for training that is killed; empty: no resume states"
    )
    report_to: Annotated[tuple[Tracker, ...], Field(strict=False)] = Field(
        default=(), description="Experiment trackers; iter-*/training.jsonl is always written"
    )

    @property
    def last_epoch(self) -> int:
        """The epoch after which training stops, counted from 1."""
        return self.stop_after_epoch or self.num_train_epochs

    @property
    def gradient_accumulation_steps(self) -> int:
        """Micro-batches of each process in one optimizer step."""
        return self.batch_size // (self.per_device_train_batch_size * self.num_processes)

    @model_validator(mode="after")
    def _check_batches_and_schedule(self) -> Self:
        micro, together = self.per_device_train_batch_size, self.per_device_train_batch_size * self.num_processes
        divisor = f"a divisor of batch_size, which is {self.batch_size}"
        _require(self.batch_size % micro == 0, "per_device_train_batch_size", micro, divisor)
        times = f"such that num_processes times {micro} divides batch_size, which is {self.batch_size}"
        _require(self.batch_size % together == 0, "num_processes", self.num_processes, times)
        on_ray = self.launcher == "local" or self.sharding in ("ddp", "fsdp2")
        _require(on_ray, "sharding", self.sharding, "ddp or fsdp2 with launcher ray")
        most = f"at most learning_rate, which is {self.learning_rate}"
        _require(self.min_lr <= self.learning_rate, "min_lr", self.min_lr, most)
        falls = self.lr_scheduler_type != "constant" or self.min_lr == 0
        _require(falls, "min_lr", self.min_lr, "0 with the constant schedule")
        epochs = f"at most num_train_epochs, which is {self.num_train_epochs}"
        _require(self.last_epoch <= self.num_train_epochs, "stop_after_epoch", self.stop_after_epoch, epochs)
        return self


class TrainingSettings(OptimizationSettings):
    """DPO (Meta-Rewarding appendix A.3)."""

    beta: float = Field(default=0.1, gt=0.0, description="Beta of the DPO loss (paper: 0.1)")
    start: Text = Field(
        default="previous", description="What each iteration trains: the previous model (paper), 'm0', a model folder"
    )
    reference: Literal["start", "previous", "m0", "ema"] = Field(
        default="start", description="DPO's reference: the start model, the previous one, M0, or a moving average"
    )
    ema_decay: float = Field(default=0.9, ge=0.0, lt=1.0, description="With reference 'ema': decay of the average")
    loss_type: Annotated[tuple[Loss, ...], Field(strict=False, min_length=1)] = Field(
        default=("sigmoid",), description="TRL's losses, summed (paper: sigmoid); [sigmoid, sft] adds the chosen's NLL"
    )
    loss_weights: Annotated[tuple[float, ...], Field(strict=False)] = Field(
        default=(), description="Weight of each loss; none: 1 each"
    )
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5, description="Assumed share of mislabelled pairs")
    ld_alpha: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="LD-DPO: weight of the tokens past the shorter side's length; empty: 1 (plain DPO)",
    )
    method: Literal["full", "lora", "qlora"] = Field(
        default="full", description="All weights, an adapter, or an adapter on a 4-bit base (needs a GPU, bitsandbytes)"
    )
    lora: LoraSettings = LoraSettings()
    prefix_sharing: bool = Field(
        default=True, description="Compute what the rows of a micro-batch share once, where the model allows it"
    )
    checkpoint_selection: CheckpointSelectionSettings = CheckpointSelectionSettings()
    keep_models: Literal["all"] | Count = Field(
        default="all", description="Models that keep their weights: all, or the last so many, once a later one is done"
    )

    @property
    def adapter(self) -> LoraSettings | None:
        """The adapter's settings; None when all weights are trained."""
        return None if self.method == "full" else self.lora

    @property
    def has_dropout(self) -> bool:
        """Whether the policy has dropout while it is trained: the model's own, or the adapter's."""
        return self.dropout > 0 or (self.adapter is not None and self.adapter.lora_dropout > 0)

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        matches = len(self.loss_weights) in (0, len(self.loss_type))
        _require(matches, "loss_weights", list(self.loss_weights), "one for each of loss_type, or none")
        smooth = "exo_pair" not in self.loss_type or self.label_smoothing > 0
        _require(smooth, "label_smoothing", 0.0, "a number above 0 with the loss exo_pair, such as 0.001")
        used = self.label_smoothing == 0 or bool(_SMOOTHED_LOSSES & set(self.loss_type))
        losses = ", ".join(sorted(_SMOOTHED_LOSSES))
        _require(used, "label_smoothing", self.label_smoothing, f"0: only the losses {losses} use it")
        return self


class SftSettings(OptimizationSettings):
    """Supervised fine-tuning on prompt-completion examples, with the loss on the completions.

    The defaults are Self-Rewarding's (section 3.1): 5.5e-6 falling to 1.1e-6 as a cosine, batches of 16, dropout 0.1;
    the number of epochs isn't stated there.
    """

    learning_rate: float = Field(default=5.5e-6, gt=0.0)
    min_lr: float = Field(default=1.1e-6, ge=0.0)
    num_train_epochs: Count = 3
    batch_size: Count = 16
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)


# Meta-Rewarding (appendix A.3) fine-tunes an instruction-tuned model on EFT data alone and takes epoch 5 of 10. Its
# learning rate is as printed there, and so small that little changes.
SFT_PRESETS: Mapping[str, SftSettings] = {
    "self-rewarding": SftSettings(),
    "meta-rewarding": SftSettings(
        learning_rate=5e-8, min_lr=0.0, num_train_epochs=10, stop_after_epoch=5, batch_size=32, dropout=0.0
    ),
}


def sft_settings(paper: str, changes: Sequence[str]) -> SftSettings:
    """A paper's settings for supervised fine-tuning, with each ``key=value`` of ``changes``. Raises `UserError`."""
    if paper not in SFT_PRESETS:
        raise UserError(f"--paper {paper}: not known; fix: make it one of {', '.join(SFT_PRESETS)}")
    values = SFT_PRESETS[paper].model_dump()
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in SftSettings.model_fields:
            known = ", ".join(SftSettings.model_fields)
            raise UserError(f"--set {change}: not key=value with a known key; fix: use one of {known}")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    try:
        return SftSettings.model_validate(values)
    except ValidationError as error:
        raise UserError(f"training settings: {explain_invalid(error)}") from None


class TrainingJob(BaseModel):
    """One training run: the settings, and the files it reads and writes. The child process gets it as JSON.

    ``start`` is a Hugging Face folder, ``data`` the training files, ``log`` a JSON Lines file of events. ``threads``
    are those of all processes together. ``ray_address`` is the cluster of launcher ray, None for that at RAY_ADDRESS.
    ``file_digests`` are digests that the parent process has computed; they count only for files that haven't changed
    since.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    settings: OptimizationSettings
    start: Path
    data: tuple[Path, ...] = Field(min_length=1)
    output: Path
    log: Path
    seed: int = Field(default=0, ge=0)
    threads: Count = 1
    run_name: str = "metareward"
    ray_address: str | None = None
    file_digests: tuple[FileDigest, ...] = ()

    @property
    def threads_each(self) -> int:
        """Threads of each process."""
        return max(1, self.threads // self.settings.num_processes)

    @property
    def product(self) -> Path:
        """The folder that training makes."""
        return self.output

    def write(self, path: Path) -> None:
        """Write the job as JSON, atomically. Relative paths stay relative to the working directory."""
        write_atomic(path, self.model_dump_json(indent=2) + "\n")


class DpoJob(TrainingJob):
    """DPO of ``start`` against ``reference`` (usually the same folder) on ``data``: Parquet files of preference pairs.

    With ``keep_epochs`` every epoch's checkpoint is kept, to select one (`metareward.training.checkpoints`).
    """

    kind: Literal["dpo"] = "dpo"
    settings: TrainingSettings
    reference: Path
    keep_epochs: bool = False

    @property
    def product(self) -> Path:
        """The folder that training makes: the model, or with ``keep_epochs`` the checkpoints beside its place."""
        return self.output.with_name(f"{self.output.name}-epochs") if self.keep_epochs else self.output


class SftJob(TrainingJob):
    """Supervised fine-tuning of ``start`` on ``data``: files of examples (`metareward.training.data`)."""

    kind: Literal["sft"] = "sft"
    settings: SftSettings


AnyJob = DpoJob | SftJob
_JOB: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="kind")])


def read_job(path: Path) -> AnyJob:
    """The job in a JSON file. Raises `UserError` naming the file, the field and what is wrong with it."""
    try:
        return _JOB.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}; fix: name a job file") from None
    except ValidationError as error:
        raise UserError(f"{path}: {explain_invalid(error)}") from None


def explain_invalid(error: ValidationError) -> str:
    """The first error of settings or a job in one line: field, value, what is wrong."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    field = ".".join(map(str, (*first["loc"], *context.get("key", ()))))
    if first["type"] == "mismatch":
        return f"{field} is {context['value']}; fix: make it {context['expected']}"
    return f"{field or 'the file'}: {first['msg']}; fix: correct it"
