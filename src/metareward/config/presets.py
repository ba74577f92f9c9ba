"""The recipes that ship with the package, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

PRESETS = ("pocket", "self-rewarding", "meta-rewarding")
PRESET_FOLDER = Path(__file__).parent / "recipes"


def preset_path(name: str) -> Path:
    """The packaged file of preset ``name``, one of `PRESETS`."""
    return PRESET_FOLDER / f"{name}.yaml"


def nearest_preset(word: str) -> str:
    """Half a sentence that points from a mistyped name to the presets."""
    near = difflib.get_close_matches(word, PRESETS, n=1)
    return f"the nearest preset is {near[0]!r}" if near else f"the presets are {', '.join(PRESETS)}"
