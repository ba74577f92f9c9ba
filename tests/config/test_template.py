from __future__ import annotations

import re
from pathlib import Path

import pytest

from metareward.config.schema import load_recipe
from metareward.config.template import starter_text, write_starter
from metareward.config.yaml_file import PRESETS
from metareward.errors import UserError

GIVEN = ["model=m", "prompts.source=p"]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_new_recipe_means_what_the_preset_means(tmp_path: Path, preset: str) -> None:
    given = [] if preset in ("pocket", "smollm2") else GIVEN
    mine = load_recipe(written(tmp_path, starter_text(preset)), [*given, f"name={preset}"])
    assert mine == load_recipe(preset, given)


@pytest.mark.parametrize("preset", PRESETS)
def test_it_still_does_when_every_line_is_uncommented(tmp_path: Path, preset: str) -> None:
    given = [] if preset in ("pocket", "smollm2") else GIVEN
    text = re.sub(r"^( *)#(?! )", r"\1", starter_text(preset), flags=re.MULTILINE)
    assert load_recipe(written(tmp_path, text), given) == load_recipe(preset, given)


def test_what_the_user_must_give_stands_there_to_be_filled_in(tmp_path: Path) -> None:
    text = starter_text("meta-rewarding")
    assert "\nmodel:\n" in text and "\n  source:\n" in text
    with pytest.raises(UserError, match=r"mine\.yaml: model: must be given"):
        load_recipe(written(tmp_path, text))


def test_every_setting_is_explained_once() -> None:
    lines = starter_text("pocket").splitlines()
    assert lines.count("  # Answers sampled for each prompt, K (paper: 7)") == 1
    assert sum("Length control" in line for line in lines) == 1
    assert max(map(len, lines)) <= 120


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write_starter(path, "pocket")
    path.write_text("seed: 1\n")
    with pytest.raises(UserError, match="there already, and is kept"):
        write_starter(path, "pocket")
    assert path.read_text() == "seed: 1\n"


def test_an_unknown_preset_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--preset pokket: no such preset; the nearest preset is 'pocket'"):
        write_starter(tmp_path / "mine.yaml", "pokket")
    with pytest.raises(UserError, match="can't be written: No such file or directory"):
        write_starter(tmp_path / "none" / "mine.yaml", "pocket")
    assert list(tmp_path.iterdir()) == []
