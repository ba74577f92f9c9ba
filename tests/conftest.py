"""Fixtures of whole-run tests, made once a session; the reference run goes on beside other tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from whole_runs import Workspace, kill_tree, write_inputs

# As a background job of a shell script, this process and its children would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


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
