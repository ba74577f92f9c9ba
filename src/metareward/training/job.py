"""One DPO run as plain values, and its JSON. It knows of folders and numbers, not of recipes or iterations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.storage.atomic import write_atomic

Schedule = Literal["cosine", "linear", "constant"]
Dtype = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "mps"]
# TRL's names (trl.DPOConfig.loss_type): each is a loss of one pair, or of what is chosen alone (sft).
Loss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
# How the processes of one training share the work: each holds the whole model (ddp), or a part of it.
Sharding = Literal["ddp", "fsdp2", "zero2", "zero3"]
Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """A low-rank adapter (arXiv 2106.09685) in the place of full fine-tuning.

    ``targets`` names the linear layers that get one; ``all-linear`` is every one but the head. With ``stacked`` the
    adapter of the start model is trained on, on top of the base it was made for; without, the start model is taken
    whole and gets a fresh one. Either way the model written is whole, with the adapter beside it in ``adapter/``.
    ``four_bit`` holds the base in 4 bits (QLoRA, arXiv 2305.14314; needs bitsandbytes and a GPU).
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    stacked: bool = False
    four_bit: bool = False

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Raises `UserError` for values that can't be trained with."""
        for name in ("rank", "alpha"):
            _require(getattr(self, name) > 0, f"lora.{name}", getattr(self, name), "greater than 0")
        _require(0 <= self.dropout < 1, "lora.dropout", self.dropout, "at least 0 and below 1")
        _require(bool(self.targets), "lora.targets", "()", "the names of linear layers, or all-linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class DpoJob:
    """What to train, on what, how, and where the result goes.

    ``start`` and ``reference`` are Hugging Face folders; for DPO's usual reference give the same folder twice.
    ``pairs`` are Parquet files in TRL's conversational preference format. ``log`` is written as JSON Lines.
    ``batch_size`` counts the pairs of one optimiser step, ``micro_batch_size`` those in memory at once.
    The learning rate runs its ``schedule`` over ``epochs``, down to ``final_learning_rate``; training stops at the
    end of epoch ``keep_epoch`` (Meta-Rewarding appendix A.3 plans 10 epochs and keeps one of the first 6).
    ``warmup`` is a share of the steps of all ``epochs``; ``max_length`` counts tokens of prompt and completion.
    ``dtype`` is the format of the computation: the weights being trained are always float32, and are stored as
    ``save_dtype`` (``start``: as the start model's are). ``auto`` is bfloat16 on a GPU, else float32.
    ``prefix_sharing`` runs what the pairs of a micro-batch have in common once, where the model allows it.

    ``loss`` is a sum of TRL's losses, each times its weight in ``loss_weights`` (1 where there are none);
    ``label_smoothing`` is the share of pairs taken to be labelled wrongly; ``ld_alpha`` weighs the log-probability of
    what the longer side of a pair has over the shorter one's length (LD-DPO, arXiv 2409.06411; None: like the rest).

    ``processes`` train together, sharing the work as ``sharding`` says; batch_size counts the pairs of all of them.
    Every ``checkpoint_steps`` steps a state is kept from which the same job goes on after a kill (None: never).
    ``keep_epochs`` keeps the model of every epoch, for a choice among them (`metareward.training.epochs`).
    ``trackers`` are told of every step, besides the log; ``run_name`` is what they call it.
    """

    start: Path
    reference: Path
    pairs: tuple[Path, ...]
    output: Path
    log: Path
    learning_rate: float
    beta: float
    epochs: int
    batch_size: int
    micro_batch_size: int
    max_length: int
    keep_epoch: int | None = None
    final_learning_rate: float = 0.0
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dropout: float = 0.0
    dtype: Dtype = "auto"
    save_dtype: Literal["start", "float32", "bfloat16"] = "start"
    device: Device = "auto"
    gradient_checkpointing: bool = False
    prefix_sharing: bool = True
    threads: int = 1
    seed: int = 0
    loss: tuple[Loss, ...] = ("sigmoid",)
    loss_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0
    ld_alpha: float | None = None
    lora: LoraSettings | None = None
    processes: int = 1
    sharding: Sharding = "ddp"
    checkpoint_steps: int | None = None
    keep_epochs: bool = False
    trackers: tuple[Tracker, ...] = ()
    run_name: str = "metareward"

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Raises `UserError` for values that can't be trained with."""
        for name in _POSITIVE:
            _require(getattr(self, name) > 0, name, getattr(self, name), "greater than 0")
        for name in ("dropout", "warmup"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        _require(1 <= self.last_epoch <= self.epochs, "keep_epoch", self.keep_epoch, f"1 to epochs ({self.epochs})")
        _require(bool(self.pairs), "pairs", "()", "at least one Parquet file")
        self._check_batches()
        self._check_schedule()
        self._check_loss()

    def _check_batches(self) -> None:
        together = f"a divisor of batch_size ({self.batch_size})"
        if self.processes > 1:
            together += f" over processes ({self.processes})"
        whole = self.batch_size % (self.micro_batch_size * self.processes) == 0
        _require(whole, "micro_batch_size", self.micro_batch_size, together)
        steps = self.checkpoint_steps
        _require(steps is None or steps > 0, "checkpoint_steps", steps, "greater than 0, or leave it out")

    def _check_schedule(self) -> None:
        final, peak = self.final_learning_rate, self.learning_rate
        _require(0 <= final <= peak, "final_learning_rate", final, f"0 to learning_rate ({peak})")
        falls = self.schedule != "constant"
        _require(falls or final == 0, "final_learning_rate", final, "0 with the constant schedule, which never falls")

    def _check_loss(self) -> None:
        weights, losses = self.loss_weights, len(self.loss)
        _require(losses > 0, "loss", "()", "at least one of TRL's losses")
        _require(len(weights) in (0, losses), "loss_weights", weights, f"one for each of the {losses} losses, or none")
        _require(all(map(math.isfinite, weights)), "loss_weights", weights, "numbers")
        _require(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "at least 0 and below 0.5")
        smooth = "exo_pair" not in self.loss or self.label_smoothing > 0
        _require(smooth, "label_smoothing", self.label_smoothing, "greater than 0 for the exo_pair loss (1e-3, say)")
        _require(self.ld_alpha is None or 0 <= self.ld_alpha <= 1, "ld_alpha", self.ld_alpha, "0 to 1, or leave it out")

    @property
    def product(self) -> Path:
        """Where training puts what it makes: the model, or a folder beside its place with the model of every epoch."""
        return self.output.with_name(f"{self.output.name}-epochs") if self.keep_epochs else self.output

    @property
    def accumulation(self) -> int:
        """Micro-batches of each process in one optimiser step."""
        return self.batch_size // (self.micro_batch_size * self.processes)

    @property
    def threads_each(self) -> int:
        """Threads of each process."""
        return max(1, self.threads // self.processes)

    @property
    def last_epoch(self) -> int:
        """The epoch at whose end training stops, counted from 1."""
        return self.epochs if self.keep_epoch is None else self.keep_epoch

    def write(self, path: Path) -> None:
        """Write the job as JSON, all or nothing. Relative paths stay relative to the working directory."""
        write_atomic(path, _JOB.dump_json(self, indent=2).decode() + "\n")

    @classmethod
    def read(cls, path: Path) -> DpoJob:
        """The job in a JSON file. Raises `UserError` naming the file, the field and what is wrong with it."""
        try:
            return _JOB.validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path}: can't be read: {error.strerror}; fix: name a job file") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(f"{path}: {field}: {first['msg']}; fix: correct the job file") from None


_JOB = TypeAdapter(DpoJob)
_POSITIVE = (
    "learning_rate", "beta", "epochs", "batch_size", "micro_batch_size", "max_length", "threads", "processes",
)  # fmt: skip


def _require(good: bool, field: str, value: object, wanted: str) -> None:
    if not good:
        raise UserError(f"training job: {field} is {value}; fix: make it {wanted}")
