"""Tiny models, made once a session, and conversations to ask them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import CONFIGS, WORDS, save_model

from metareward.types import Message, Messages

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for each kind of model."""
    root = tmp_path_factory.mktemp("models")
    return {kind: save_model(root / kind, kind) for kind in CONFIGS}


@pytest.fixture(scope="session")
def llama(folders: dict[str, Path]) -> Path:
    return folders["llama"]


@pytest.fixture(scope="session")
def conversation() -> Callable[[int, int], Messages]:
    """A user's turn of ``words`` words that differs with ``number``."""

    def make(number: int, words: int) -> Messages:
        chosen = [WORDS[(number * 7 + step * (1 + number % 5)) % len(WORDS)] for step in range(words)]
        return (Message("user", f"{number}: {' '.join(chosen)}"),)

    return make
