"""The benchmarks' own files, where they are: in a folder beside the checkout. They are not part of the repository."""

from __future__ import annotations

from pathlib import Path

import pytest

STORED = Path(__file__).parents[3] / "shared" / "data"


def _folder(name: str) -> Path:
    folder = STORED / name
    if not folder.is_dir():
        pytest.skip(f"the benchmark's stored files ({name}) are not beside the checkout")
    return folder


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
