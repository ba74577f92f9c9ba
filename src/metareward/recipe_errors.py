"""What is wrong with a recipe, in one line: the place, the key, the value, and what was expected there."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from metareward.errors import UserError
from metareward.recipe_file import Key, Tree, dotted, shown

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "model_type": "a section of keys with values",
    "dict_type": "a section of keys with values",
    "tuple_type": "a list, such as [one, two]",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number that is at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number that is at most {le}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "string_too_short": "a text that is not empty",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', as in a folder's name",
    "mismatch": "{expected}",
}


def explain(error: ValidationError, tree: Tree, source: str, schema: type[BaseModel]) -> UserError:
    """The first mistake in ``error`` as one line. Unknown keys come first: a typo also makes a key look missing.

    ``source`` names the recipe where ``tree`` doesn't know the place.
    """
    details = sorted(error.errors(include_url=False), key=_urgency)
    first = details[0]
    key = _place(first, tree)
    where = tree.origin(key) or source
    if first["type"] == "extra_forbidden":
        return UserError(f"{where}: {dotted(key)}: unknown key; {_nearest(key, schema)}")
    if _is_missing(first, key, schema):
        return UserError(f"{source}: {dotted(key)}: must be given: {_described(key, schema)}")
    expected = " or ".join(dict.fromkeys(_expected(each) for each in details if _place(each, tree) == key))
    said = where.startswith(f"--set {dotted(key)}=")
    given = "" if said else f"{dotted(key)}: {_value(first)}"
    return UserError(f"{where}: {given}expected {expected}")


def _urgency(detail: ErrorDetails) -> int:
    return {"extra_forbidden": 0, "missing": 2, "mismatch": 3}.get(detail["type"], 1)


def _place(detail: ErrorDetails, tree: Tree) -> Key:
    """The key as the user knows it: pydantic adds the member of a union that it tried, and '[key]'."""
    if "key" in detail.get("ctx", {}):
        return tuple(detail["ctx"]["key"])
    if detail["type"] in ("missing", "extra_forbidden"):
        return detail["loc"]
    inside: list[str | int] = []
    node: object = tree.values
    for part in detail["loc"]:
        if not (isinstance(node, Mapping) and part in node):
            break
        node = node[part]
        inside.append(part)
    return tuple(inside) or detail["loc"]


def _value(detail: ErrorDetails) -> str:
    """The value at fault with a colon behind it; empty where the key itself is at fault."""
    if detail["loc"][-1:] == ("[key]",):
        return ""
    if detail["type"] == "mismatch":
        value = detail["ctx"]["value"]
        return "" if value is None else f"{shown(value)}: "
    return f"{shown(detail['input'])}: "


def _expected(detail: ErrorDetails) -> str:
    if detail["loc"][-1:] == ("[key]",):
        if detail["loc"][:1] == ("benchmarks",):
            return "a name of letters, digits, '_' and '-' that begins with a letter"
        return "iterations numbered 1, 2, 3 and so on"
    return _EXPECTED.get(detail["type"], detail["msg"]).format(**detail.get("ctx", {}))


def _is_missing(detail: ErrorDetails, key: Key, schema: type[BaseModel]) -> bool:
    """An empty value of a required key is what ``init`` leaves behind: it's a missing one, not a wrong one."""
    field = dict(fields(schema)).get(_general(key))
    return detail["type"] == "missing" or (detail["input"] is None and field is not None and field.is_required())


def _described(key: Key, schema: type[BaseModel]) -> str:
    field = dict(fields(schema)).get(_general(key))
    return (field.description if field else None) or "a value"


def _nearest(key: Key, schema: type[BaseModel]) -> str:
    """The key that was probably meant: a sibling if one is close, else a key of that name in another section."""
    known = [place for place, _ in fields(schema)]
    general = _general(key)
    siblings = [str(place[-1]) for place in known if place[:-1] == general[:-1]]
    close = difflib.get_close_matches(str(key[-1]), siblings, n=1)
    if close:
        return f"the nearest known one is {dotted((*key[:-1], close[0]))}"
    elsewhere = difflib.get_close_matches(str(key[-1]), [str(place[-1]) for place in known], n=1)
    if elsewhere:
        place = next(each for each in known if each[-1] == elsewhere[0])
        return f"the nearest known one is {dotted(place).replace('*', 'NAME' if place[0] == 'benchmarks' else '1')}"
    return f"known here: {', '.join(siblings)}"


def _general(key: Key) -> Key:
    """A key of any iteration or benchmark as a key of all: ``iterations.*.rho``."""
    named = key[:1] == ("benchmarks",)
    return tuple("*" if isinstance(part, int) or (named and at == 1) else part for at, part in enumerate(key))


def fields(schema: type[BaseModel], above: Key = ()) -> Iterator[tuple[Key, FieldInfo]]:
    """Every key of a recipe, sections before what is in them, iterations and benchmarks once under ``iterations.*``."""
    for name, field in schema.model_fields.items():
        yield (*above, name), field
        section = section_of(field)
        if section is not None:
            middle = () if field.annotation is section else ("*",)
            yield from fields(section, (*above, name, *middle))


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model behind a section, or behind each value of a mapping of sections; None for a plain value."""
    options = (field.annotation, *get_args(field.annotation))
    return next((each for each in options if isinstance(each, type) and issubclass(each, BaseModel)), None)
