import shutil
from pathlib import Path

import pytest
from fake_run import fake_run

from metareward.storage.run_dir import RunDir


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run. Not to be changed: `copied` gives one that may be."""
    return fake_run(tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="session")
def unmeasured(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run without an oracle, as any run outside the pocket world."""
    return fake_run(tmp_path_factory.mktemp("runs") / "unmeasured", oracle=False)


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run that stands at M1. Not to be changed."""
    return fake_run(tmp_path_factory.mktemp("runs") / "short", models=2)


@pytest.fixture
def copied(short: RunDir, tmp_path: Path) -> RunDir:
    """A copy of ``short`` to spoil."""
    return RunDir(Path(shutil.copytree(short.path, tmp_path / "short")))
