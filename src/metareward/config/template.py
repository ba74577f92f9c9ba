"""A new recipe file: every key with what it means and the preset's value, ready to be uncommented and changed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel

from metareward.config.schema import Recipe, load_recipe
from metareward.config.yaml_file import (
    PRESETS,
    Key,
    dotted,
    nearest_preset,
    read_layers,
    recipe_path,
    sections_of,
    shown,
)
from metareward.errors import UserError
from metareward.settings import Section

_HEAD = """\
# A recipe says only what differs from the one it extends. To change a value, take the '#' from its line.
# Paths are relative to the folder in which the command runs.
extends: {preset}
"""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")


def starter_text(preset: str) -> str:
    """A recipe that extends ``preset`` (one of `yaml_file.PRESETS`) and, as it stands, means the same.

    Keys that the preset leaves to the user stand there uncommented and empty.
    """
    given = read_layers(recipe_path(preset), (), {"name": preset}).origins
    unset = [key for key in _required(Recipe) if key not in given and key != ("name",)]
    recipe = load_recipe(preset, [f"{dotted(key)}=to-be-given" for key in unset])
    return _HEAD.format(preset=preset) + "\n".join(_lines(recipe, (), unset)) + "\n"


def write_starter(path: Path, preset: str) -> None:
    """Write `starter_text` to ``path``. Raises `UserError` for an unknown preset and for a file that is there."""
    if preset not in PRESETS:
        raise UserError(f"--preset {preset}: no such preset; {nearest_preset(preset)}")
    text = starter_text(preset)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path}: there already, and is kept; name another file or move it away") from None
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror}; name a file in a folder that is there") from None


def _required(section: type[BaseModel], above: Key = ()) -> Iterator[Key]:
    """The keys without a default, except in sections that are optional or one of several kinds."""
    for name, field in section.model_fields.items():
        kinds = sections_of(field.annotation)
        if field.is_required() and not kinds:
            yield (*above, name)
        elif len(kinds) == 1 and field.annotation is kinds[0]:
            yield from _required(kinds[0], (*above, name))


def _lines(section: Section, above: Key, unset: list[Key]) -> Iterator[str]:
    indent = "  " * len(above)
    for name, field in type(section).model_fields.items():
        value, key = getattr(section, name), (*above, name)
        yield from () if above else ("",)
        yield f"{indent}# {field.description or (value.__doc__ or '').splitlines()[0]}"
        if isinstance(value, Section):
            yield f"{indent}{name}:"
            yield from _lines(value, key, unset)
        elif isinstance(value, Mapping):
            yield f"{indent}{name}:"
            # The first iteration explains its keys, the others repeat them bare.
            for place, (number, iteration) in enumerate(value.items()):
                yield f"  {number}:"
                lines = _lines(iteration, (name, number), [])
                yield from (line for line in lines if not place or not line.lstrip().startswith("# "))
        elif isinstance(value, tuple) and any(isinstance(each, Section) for each in value):
            yield f"{indent}#{name}:"
            given = (each.model_dump(mode="json", exclude_unset=True) for each in value)
            yield from (f"{indent}  #- {json.dumps(each, ensure_ascii=False)}" for each in given)
        elif key in unset:
            yield f"{indent}{name}:"
        else:
            plain = isinstance(value, str) and _PLAIN.fullmatch(value)
            written = "" if value is None else value if plain else shown(value)
            yield f"{indent}#{name}: {written}".rstrip()
