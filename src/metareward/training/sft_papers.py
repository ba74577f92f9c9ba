"""The settings of supervised training that the papers print, by paper, and changes of them by hand.

What the papers leave open is `SftJob`'s default.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, get_args

from metareward.errors import UserError
from metareward.training.sft_job import SftJob

Paper = Literal["self-rewarding", "meta-rewarding"]

# Self-Rewarding's are the defaults of `SftJob`. Meta-Rewarding (appendix A.3) teaches an instruction-tuned model EFT
# alone and keeps epoch 5 of 10. Its learning rate is as printed there, and so small that little changes.
SETTINGS: Mapping[Paper, Mapping[str, Any]] = {
    "self-rewarding": {},
    "meta-rewarding": {
        "learning_rate": 5e-8,
        "final_learning_rate": 0.0,
        "epochs": 10,
        "keep_epoch": 5,
        "batch_size": 32,
        "dropout": 0.0,
    },
}
_PLACES = ("start", "data", "output", "log")


def settings_of_paper(paper: str, changes: Sequence[str]) -> dict[str, Any]:
    """A paper's settings, changed by each ``key=value``, for `SftJob`, which checks the values.

    Raises `UserError` for an unknown paper or key.
    """
    known: Paper | None = next((name for name in get_args(Paper) if name == paper), None)
    if known is None:
        raise UserError(f"--paper {paper}: not known; fix: make it one of {', '.join(get_args(Paper))}")
    return {**SETTINGS[known], **dict(map(_changed, changes))}


def _changed(change: str) -> tuple[str, Any]:
    key, equals, value = change.partition("=")
    keys = [field.name for field in fields(SftJob) if field.name not in _PLACES]
    if not equals or key not in keys:
        raise UserError(f"--set {change}: not key=value with a key there is; fix: take one of {', '.join(keys)}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
