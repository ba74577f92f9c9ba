"""IFEval on the stored GPT-4 responses of 2023-11-07: upstream's own verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metareward.cli.evaluate import evaluate_app
from metareward.data.files import read_rows

pytestmark = pytest.mark.full_data

# Upstream replaced the "#" of this prompt with a letter drawn at random, a new one for each of the two verdicts.
RANDOM_UPSTREAM = {"1122"}


def test_every_verdict_is_upstream_s(ifeval_data: Path, tmp_path: Path) -> None:
    words = ["--questions", ifeval_data / "input_data.jsonl"]
    words += ["--responses", ifeval_data / "responses_gpt4_20231107.jsonl", "--json", tmp_path / "out.json"]
    told = CliRunner().invoke(evaluate_app, ["ifeval", *map(str, words)])
    assert told.exit_code == 0, told.exception
    (model,) = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["models"]
    expected = {row.text("key"): row.fields for row in read_rows(ifeval_data / "expected_gpt4.jsonl")}
    assert len(model["verdicts"]) == len(expected) == 540
    differing = {
        each["key"]
        for each in model["verdicts"]
        if [each["strict"], each["loose"]] != [expected[each["key"]][mode] for mode in ("strict", "loose")]
    }
    assert differing == RANDOM_UPSTREAM
    # Published: 77.22 and 83.77 strict, 79.63 and 85.58 loose; one loose verdict more is right here.
    assert (model["prompt_strict"], model["prompt_loose"]) == (
        pytest.approx(77.222, abs=1e-3),
        pytest.approx(79.815, abs=1e-3),
    )
    assert model["instruction_strict"] == pytest.approx(83.77, abs=0.01) and model["n_checker_errors"] == 0
