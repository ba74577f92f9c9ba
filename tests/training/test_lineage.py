from __future__ import annotations

from pathlib import Path

import pytest

from metareward.errors import UserError
from metareward.training.lineage import Origin, check_log_ratio, fingerprint_model

M0 = Origin("../../iter-0/model", "a" * 64)
M1 = Origin("../../iter-1/model", "b" * 64)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
def test_what_makes_the_model_changes_its_fingerprint(model: Path, name: str) -> None:
    before = fingerprint_model(model)
    assert before == fingerprint_model(model)
    (model / name).write_text("changed")
    assert fingerprint_model(model) != before


@pytest.mark.parametrize("name", ["lineage.json", "README.md"])
def test_what_tells_of_the_model_does_not(model: Path, name: str) -> None:
    before = fingerprint_model(model)
    (model / name).write_text("anything")
    assert fingerprint_model(model) == before


@pytest.mark.parametrize(("name", "told"), [("config.json", "no model here"), ("model.safetensors", "no safetensors")])
def test_no_model(model: Path, name: str, told: str) -> None:
    (model / name).unlink()
    with pytest.raises(UserError, match=told):
        fingerprint_model(model)


def test_equal_models_must_agree() -> None:
    assert check_log_ratio([0.0, -1e-6], M0, M0) == 1e-6
    with pytest.raises(UserError, match=r"iter-0.*should be one model.*log-ratio.*0\.02 instead of 0"):
        check_log_ratio([0.0, -0.02], M0, M0)


def test_different_models_may_differ() -> None:
    assert check_log_ratio([3.5, -0.02], M1, M0) == 3.5


def test_a_broken_model_is_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        check_log_ratio([0.0, float("nan")], M1, M0)
