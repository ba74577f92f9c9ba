"""Whom a training tells of its steps, besides the log: TensorBoard, Weights & Biases, MLflow, trackio.

transformers has a callback for each; here stands what they need to be found and to find their place.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from metareward.errors import UserError
from metareward.training.job import DpoJob


def tracking(job: DpoJob) -> dict[str, Any]:
    """The arguments of `transformers.TrainingArguments` for the job's trackers.

    Raises `UserError` naming a tracker that isn't installed, before anything is computed.
    """
    missing = [name for name in job.trackers if find_spec(name) is None]
    if missing:
        names = " ".join(missing)
        raise UserError(f"training job: trackers: {', '.join(missing)} can't be imported; fix: pip install {names}")
    return {"report_to": list(job.trackers) or "none", "run_name": job.run_name}


def places(job: DpoJob) -> dict[str, str]:
    """Environment variables that keep what trackers write beside the job's log; what the user has set goes first."""
    beside = job.log.resolve().parent
    return {
        "TENSORBOARD_LOGGING_DIR": str(beside / "tensorboard"),
        "WANDB_DIR": str(beside),
        "WANDB_PROJECT": "metareward",
        "WANDB_LOG_MODEL": "false",
        "MLFLOW_EXPERIMENT_NAME": "metareward",
    }
