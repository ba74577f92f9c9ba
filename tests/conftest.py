"""What whole-run tests share: made once a session, and the run that nobody disturbs goes on beside other tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from house import House, furnish, kill_tree

# Where these tests run as a shell script's background job, Ctrl-C is ignored, by all children too.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A model that writes verdicts now and then, prompts, a recipe; and a run of it under way."""
    from tiny_model import tiny_llama  # torch: only for those who ask for this

    folder = tmp_path_factory.mktemp("house")
    tiny_llama(folder / "model", bent=True)
    furnish(folder)
    built = House(folder)
    undisturbed = built.begin()
    yield built
    kill_tree(undisturbed)
