"""Where the full public data sets lie: see README.md in this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("METAREWARD_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")


def _folder(name: str) -> Path:
    if not (FOLDER / name).is_dir():
        pytest.fail(f"{FOLDER / name} is missing: tests/full_data/README.md says which files belong there")
    return FOLDER / name


@pytest.fixture(scope="session")
def alpaca_data() -> Path:
    return _folder("alpaca_eval")


@pytest.fixture(scope="session")
def arena_data() -> Path:
    return _folder("arena_hard")


@pytest.fixture(scope="session")
def mt_bench_data() -> Path:
    return _folder("mt_bench")


@pytest.fixture(scope="session")
def judge_data() -> Path:
    return _folder("judge")


@pytest.fixture(scope="session")
def prompt_data() -> Path:
    return _folder("prompts")


@pytest.fixture(scope="session")
def ifeval_data() -> Path:
    return _folder("ifeval")
