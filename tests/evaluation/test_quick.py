"""All numbers of 805 rows, and of Arena-Hard's 30 models, take seconds on one core: see bench/evaluation.py."""

from __future__ import annotations

import time
from pathlib import Path

from evaluation import INSTRUCTIONS, alpaca, judges, made_up_annotations, matches, mt_bench
from metareward.evaluation.arena_hard import score as arena


def test_all_metrics_on_805_rows_take_less_than_two_seconds(tmp_path: Path) -> None:
    folder = made_up_annotations(tmp_path)
    alpaca(folder)  # so that imports don't count
    began = time.process_time()
    alpaca(folder)
    judges()
    mt_bench()
    assert INSTRUCTIONS == 805 and time.process_time() - began < 2


def test_the_style_control_of_thirty_models_takes_less_than_two_seconds() -> None:
    played, answers = matches()
    began = time.process_time()
    arena.evaluate(played, answers, "v0.1", rounds=1)
    assert time.process_time() - began < 2
