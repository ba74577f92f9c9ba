"""One DPO run as plain values, and its JSON. It knows of folders and numbers, not of recipes or iterations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.rundir import write_atomic

Schedule = Literal["cosine", "linear", "constant"]
Dtype = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda", "mps"]


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
    ``prefix_sharing`` runs a pair's prompt once instead of twice, where the model allows it.
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

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Raises `UserError` for values that can't be trained with."""
        for name in ("learning_rate", "beta", "epochs", "batch_size", "micro_batch_size", "max_length", "threads"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "greater than 0")
        for name in ("dropout", "warmup"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "at least 0 and below 1")
        _require(1 <= self.last_epoch <= self.epochs, "keep_epoch", self.keep_epoch, f"1 to epochs ({self.epochs})")
        whole = self.batch_size % self.micro_batch_size == 0
        _require(whole, "micro_batch_size", self.micro_batch_size, f"a divisor of batch_size ({self.batch_size})")
        _require(bool(self.pairs), "pairs", "()", "at least one Parquet file")
        self._check_schedule()

    def _check_schedule(self) -> None:
        final, peak = self.final_learning_rate, self.learning_rate
        _require(0 <= final <= peak, "final_learning_rate", final, f"0 to learning_rate ({peak})")
        falls = self.schedule != "constant"
        _require(falls or final == 0, "final_learning_rate", final, "0 with the constant schedule, which never falls")

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


def _require(good: bool, field: str, value: object, wanted: str) -> None:
    if not good:
        raise UserError(f"training job: {field} is {value}; fix: make it {wanted}")
