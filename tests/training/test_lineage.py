from __future__ import annotations

import pytest

from metareward.errors import UserError
from metareward.storage.custody import ModelRef
from metareward.training.lineage import check_log_ratio

M0 = ModelRef("../../iter-0/model", "a" * 64)
M1 = ModelRef("../../iter-1/model", "b" * 64)


def test_equal_models_must_agree() -> None:
    assert check_log_ratio([0.0, -1e-6], M0, M0) == 1e-6
    with pytest.raises(UserError, match=r"iter-0.*should be one model.*log-ratio.*0\.02 instead of 0"):
        check_log_ratio([0.0, -0.02], M0, M0)


def test_different_models_may_differ() -> None:
    assert check_log_ratio([3.5, -0.02], M1, M0) == 3.5


def test_a_broken_model_is_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        check_log_ratio([0.0, float("nan")], M1, M0)
