"""Fixtures of whole-run tests, made once a session; the reference run goes on beside other tests."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from whole_runs import Workspace, kill_tree, write_inputs

# As a background job of a shell script, this process and its children would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Every process imports all test modules, and so torch and what is built on it: half a million objects that stay. Tests
# that make many objects took twice as long while each full collection searched those for garbage, too.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on, collect what tests make, and leave out what the imports made; seldom, as memory is no concern."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    gc.enable()


# The groups of tests that take longest, from the longest on. They are begun first, so that no process is still busy
# with one when the others have nothing left to do.
_LONGEST = (
    "workspace",
    "report",
    "training/test_against_trl",
    "engines/local/test_shared_prefix",
    "cli/test_data",
    "training/test_launch",
    "pipeline/test_independent_judge",
    "pipeline/test_judge_health",
    "engines/local/test_workers",
    "engines/local/test_engine",
    "training/test_trainer",
    "engines/local/test_equality",
    "docs/test_api",
    "training/test_dpo",
    "pocket/test_model",
    "engines/openai/test_throttling",
    "cli/test_main",
    "pipeline/test_preflight",
    "docs/test_docs",
    "engines/vllm/test_server",
    "pipeline/test_benchmarks",
    "pipeline/test_real_model",
    "training/test_plain_dpo",
    "evaluation/test_judges",
    "pipeline/test_verify",
    "method/test_pairs",
    "generation/test_runner",
    "faults/test_faults",
    "engines/local/test_selfcheck",
    "engines/test_process_group",
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


def _group(item: pytest.Item) -> str:
    """The tests that run in the same process as ``item``, one after another, so that their fixtures are made once."""
    if "workspace" in getattr(item, "fixturenames", ()):
        return "workspace"
    path = item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix()
    return "report" if path.startswith("report/") else path


def pytest_itemcollected(item: pytest.Item) -> None:
    """Make the group known to `--dist loadgroup`."""
    item.add_marker(pytest.mark.xdist_group(_group(item)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by `_LONGEST`, and behind it by file. While the reference run goes on, tests that don't need it are run."""
    places = {group: place for place, group in enumerate(_LONGEST)}

    def place(item: pytest.Item) -> tuple[int, bool]:
        group = _group(item)
        waits = group == "workspace" and "room" not in getattr(item, "fixturenames", ())
        return places.get(group, len(places)), waits

    items.sort(key=place)
