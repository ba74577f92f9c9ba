"""Fixtures of whole-run tests, made once a session; the reference run goes on beside other tests."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator

import pytest
from whole_runs import Workspace, kill_tree, write_inputs

# As a background job of a shell script, this process and its children would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every process imports all test modules, and so torch and what is built on it: half a million objects that stay. Tests
# that make many objects took twice as long while each full collection searched those for garbage, too.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on, collect what tests make, and leave out what the imports made."""
    gc.freeze()
    gc.enable()


# Names of modules whose fixtures start processes or train models; and `workspace`.
_EXPENSIVE = (
    "workspace",
    "test_dpo",
    "test_sft",
    "test_workers",
    "test_launch",
    "test_data",
    "test_api",
    "test_docs",
    "test_judge_health",
)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A model that writes verdicts now and then, prompts, a recipe, and a running reference run."""
    from tiny_models import tiny_llama  # imports torch: only for tests that use this fixture

    folder = tmp_path_factory.mktemp("workspace")
    tiny_llama(folder / "model", verdicts=True)
    write_inputs(folder)
    built = Workspace(folder)
    reference = built.start_reference()
    yield built
    kill_tree(reference)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Run tests that share an expensive fixture in one process (`--dist loadgroup`), so that it is made once."""
    shared = "workspace" if "workspace" in getattr(item, "fixturenames", ()) else item.path.stem
    if shared in _EXPENSIVE:
        item.add_marker(pytest.mark.xdist_group(shared))
