"""One supervised run as plain values, and its JSON: the counterpart of `metareward.training.job`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.storage.atomic import write_atomic
from metareward.training.job import Device, DpoJob, Dtype, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class SftJob:
    """What to teach, from which examples, how, and where the result goes.

    ``data`` are files of examples in any form of `metareward.data.prompts`; the loss is on the answers alone.
    ``batch_size`` counts examples. All other fields mean what they mean in `DpoJob`. The defaults are those of
    Self-Rewarding (section 3.1): 5.5e-6 falling to 1.1e-6 as a cosine, batches of 16, dropout 0.1; the number of
    epochs it leaves open.
    """

    start: Path
    data: tuple[Path, ...]
    output: Path
    log: Path
    learning_rate: float = 5.5e-6
    final_learning_rate: float = 1.1e-6
    epochs: int = 3
    keep_epoch: int | None = None
    batch_size: int = 16
    micro_batch_size: int = 4
    max_length: int = 4096
    schedule: Schedule = "cosine"
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    dropout: float = 0.1
    dtype: Dtype = "auto"
    save_dtype: Literal["start", "float32", "bfloat16"] = "start"
    device: Device = "auto"
    gradient_checkpointing: bool = False
    threads: int = 1
    seed: int = 0

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        """Raises `UserError` for values that can't be trained with."""
        if not self.data:
            raise UserError("training job: data is (); fix: make it at least one file of examples")
        self.as_dpo()  # it looks at all the rest

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> SftJob:
        """The job of these ``values``, whatever types they have. Raises `UserError` naming the one that won't do."""
        try:
            return _JOB.validate_python(dict(values))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise UserError(f"training job: {field} is {first['input']!r}: {first['msg']}; fix: change it") from None

    @property
    def last_epoch(self) -> int:
        """The epoch at whose end training stops, counted from 1."""
        return self.epochs if self.keep_epoch is None else self.keep_epoch

    def as_dpo(self) -> DpoJob:
        """The same run in `DpoJob`'s words, for all that the two kinds share; its beta and reference mean nothing."""
        shared: dict[str, Any] = asdict(self)
        return DpoJob(reference=self.start, pairs=shared.pop("data"), beta=1.0, **shared)

    def write(self, path: Path) -> None:
        """Write the job as JSON, all or nothing. Relative paths stay relative to the working directory."""
        write_atomic(path, _JOB.dump_json(self, indent=2).decode() + "\n")

    @classmethod
    def read(cls, path: Path) -> SftJob:
        """The job in a JSON file. Raises `UserError` naming the file, the field and what is wrong with it."""
        try:
            return _JOB.validate_json(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path}: can't be read: {error.strerror}; fix: name a job file") from None
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise UserError(f"{path}: {field}: {first['msg']}; fix: correct the job file") from None


_JOB = TypeAdapter(SftJob)
