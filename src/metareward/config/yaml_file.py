"""A recipe file as a plain tree of values that remembers who said what.

Layers are laid over each other: the preset or file that `extends` names, the file itself, then each `--set`.
Sections merge key by key, anything else replaces. Every key keeps the place it was last given (``my.yaml:12`` or
``--set answers.k=3``), so a mistake found later is reported where it was made. Nothing here knows the schema.

The YAML read is the safe core of YAML 1.2, not PyYAML's 1.1: ``5e-6`` is a number, ``no`` is a text, dates are texts,
a key given twice is refused, and so are anchors and tags.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from metareward.errors import UserError

Key = tuple[str | int, ...]
PRESETS = ("pocket", "self-rewarding", "meta-rewarding")
PRESET_FOLDER = Path(__file__).parent / "recipes"
# The kind of a section that names none.
_DEFAULT_KINDS: Mapping[str | int, str] = {"engine": "local"}


@dataclass(frozen=True)
class Tree:
    """Nested values, and where each key was given: ``origins[("answers", "k")] == "my.yaml:12"``."""

    values: Mapping[str | int, object]
    origins: Mapping[Key, str]

    def origin(self, key: Key) -> str | None:
        """Where ``key`` was given, or something inside it, or the section round it; None for a key nobody gave."""
        inward = (given for given in self.origins if given[: len(key)] == key)
        outward = (key[:size] for size in range(len(key), 0, -1))
        return next((self.origins[each] for each in (key, *inward, *outward) if each in self.origins), None)


def dotted(key: Key) -> str:
    """``("iterations", 1, "rho")`` as a user writes it: ``iterations.1.rho``."""
    return ".".join(str(part) for part in key)


def preset_path(name: str) -> Path:
    """The packaged file of preset ``name``, one of `PRESETS`."""
    return PRESET_FOLDER / f"{name}.yaml"


def nearest_preset(word: str) -> str:
    """Half a sentence that points from a mistyped name to the presets."""
    near = difflib.get_close_matches(word, PRESETS, n=1)
    return f"the nearest preset is {near[0]!r}" if near else f"the presets are {', '.join(PRESETS)}"


def recipe_path(name_or_path: str) -> Path:
    """The file of a preset's name or a path; UserError naming the nearest preset when there's no such file."""
    if name_or_path in PRESETS:
        return preset_path(name_or_path)
    path = Path(name_or_path)
    if path.is_file():
        return path
    what = "this is a folder, not a recipe file" if path.is_dir() else "no such recipe file"
    raise UserError(f"{name_or_path}: {what}; {nearest_preset(path.stem)}")


def read_layers(path: Path, overrides: Sequence[str], otherwise: Mapping[str | int, object]) -> Tree:
    """The recipe's file over what it extends, and each ``key=value`` of ``overrides`` over both.

    ``otherwise`` holds the values of top-level keys that no file gives, so that an override can change a part of them.
    """
    files = _read_extended(path, ())
    tree = Tree({**otherwise, **files.values}, files.origins)
    for override in overrides:
        tree = lay_over(tree, read_override(override))
    return tree


def _read_extended(path: Path, seen: tuple[Path, ...]) -> Tree:
    tree = read_tree(path)
    base = tree.values.get("extends")
    own = Tree({key: value for key, value in tree.values.items() if key != "extends"}, tree.origins)
    if base is None:
        return own
    where = tree.origin(("extends",))
    if not isinstance(base, str):
        raise UserError(f"{where}: extends: {shown(base)}: expected a preset's name ({', '.join(PRESETS)}) or a file")
    try:
        inner = recipe_path(base if base in PRESETS else str(path.parent / base))
    except UserError as error:
        raise UserError(f"{where}: extends: {error}") from None
    if inner.resolve() in {each.resolve() for each in (*seen, path)}:
        raise UserError(f"{where}: extends: {shown(base)}: this recipe ends up extending itself")
    below = _read_extended(inner, (*seen, path))
    # A run is called after the recipe that was asked for, never after what it extends.
    unnamed = Tree({key: value for key, value in below.values.items() if key != "name"}, below.origins)
    return lay_over(unnamed, own)


def lay_over(base: Tree, top: Tree) -> Tree:
    """``top`` over ``base``: sections merge, an empty section changes nothing, any other value replaces.

    A section of another ``kind`` (an engine's, a benchmark's) replaces the one below it: its other keys differ.
    """
    return Tree(_merge(base.values, top.values), {**base.origins, **top.origins})


def _merge(base: Mapping[str | int, object], top: Mapping[str | int, object]) -> dict[str | int, object]:
    merged = dict(base)
    for key, value in top.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            other_kind = "kind" in value and value["kind"] != below.get("kind", _DEFAULT_KINDS.get(key))
            merged[key] = dict(value) if other_kind else _merge(below, value)
        elif not (isinstance(below, Mapping) and value is None):
            merged[key] = value
    return merged


def read_override(text: str) -> Tree:
    """``iterations.1.rho=0.2`` as a tree of one value; the part after ``=`` is YAML."""
    place, equals, value = text.partition("=")
    parts = place.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"--set {text}: expected key=value with a dotted key, such as answers.k=7")
    key: Key = tuple(_key(part) for part in parts)
    found = _parse(value, f"--set {text}", numbered=False)
    nested: object = found.values["value"]
    for part in reversed(key):
        nested = {part: nested}
    assert isinstance(nested, dict)
    return Tree(nested, {key: f"--set {text}"})


def label(path: Path) -> str:
    """How a recipe file is called in messages: its path, or ``preset pocket``."""
    return f"preset {path.stem}" if path.parent == PRESET_FOLDER else str(path)


def read_tree(path: Path) -> Tree:
    """One recipe file. UserError with the line for broken YAML, a key given twice, or a list at the top."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text (byte {error.start}); a recipe is a YAML text file") from None
    tree = _parse(text, label(path), numbered=True)
    root = tree.values["value"]
    if root is not None and not isinstance(root, dict):
        raise UserError(f"{path}: expected keys with values, such as 'seed: 0', at the top; found {shown(root)}")
    return Tree(root or {}, tree.origins)


def shown(value: object) -> str:
    """A value as YAML would have it, cut to a readable length, on one line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2 and without anchors and tags."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.NodeEvent) and (event.anchor is not None or _tagged(event)):
            problem = "anchors (&name, *name) and tags (!name) are not used in recipes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]
        return super().compose_node(parent, index)


def _tagged(event: yaml.NodeEvent) -> bool:
    return isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None


_SCALARS = (
    ("null", r"~|null|", "~n\0"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]{0,17})", "-+0123456789"),
    ("float", r"[-+]?(?:[0-9][0-9_]*\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", "-+.0123456789"),
)
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"), ["" if c == "\0" else c for c in _first]
    )


def _parse(text: str, source: str, numbered: bool) -> Tree:
    """The document under the key ``value``, with the origin of every key inside it."""
    origins: dict[Key, str] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else _build(loader, node, (), _Labels(source, numbered, origins))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and numbered else ""
        raise UserError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{source}: not a recipe: brackets are nested too deeply") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    return Tree({"value": value}, origins)


@dataclass(frozen=True)
class _Labels:
    """Turns a node's mark into the place shown to the user, and collects the places."""

    source: str
    numbered: bool
    origins: dict[Key, str]

    def of(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.numbered else self.source


def _build(loader: _Loader, node: yaml.Node, key: Key, labels: _Labels) -> object:
    if isinstance(node, yaml.MappingNode):
        return dict(_entries(loader, node, key, labels))
    if isinstance(node, yaml.SequenceNode):
        return [_build(loader, item, (*key, index), labels) for index, item in enumerate(node.value)]
    return loader.construct_object(node, deep=True)


def _entries(loader: _Loader, node: yaml.MappingNode, key: Key, labels: _Labels) -> Iterator[tuple[str | int, object]]:
    given: dict[str | int, int] = {}
    for key_node, value_node in node.value:
        name = _key(str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?")
        inside = (*key, name)
        if name in given:
            first = f" (first in line {given[name]})" if labels.numbered else ""
            raise UserError(f"{labels.of(key_node)}: {dotted(inside)}: this key is given twice{first}; keep one")
        given[name] = key_node.start_mark.line + 1
        labels.origins[inside] = labels.of(key_node)
        yield name, _build(loader, value_node, inside, labels)


def _key(text: str) -> str | int:
    """Iterations are numbered, so a key of digits is a number, also where JSON or ``--set`` makes it a text."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else text


# --- What is wrong with a recipe, in one line: the place, the key, the value, and what was expected there.


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
    "union_tag_invalid": "a kind that is one of {expected_tags}",
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
        return (*detail["loc"], *detail["ctx"]["key"])
    inside: list[str | int] = []
    node: object = tree.values
    for place, part in enumerate(detail["loc"]):
        children = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(children, Mapping) and part in children:
            node = children[part]
        elif isinstance(node, Mapping) and _is_kind(part, node, inside):
            continue
        else:
            return (*inside, *detail["loc"][place:]) if detail["type"] == "missing" or not inside else tuple(inside)
        inside.append(part)
    return tuple(inside)


def _is_kind(part: str | int, section: Mapping[str | int, object], inside: Key | list[str | int]) -> bool:
    """Whether ``part`` of a location is the kind that pydantic tried, which is no key."""
    return part == section.get("kind", _DEFAULT_KINDS.get(inside[-1]) if inside else None)


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
    """The description of a missing key; of a key that several kinds have, that of a kind which must be given it."""
    same = [field for place, field in fields(schema) if place == _general(key)]
    field = next((each for each in same if each.is_required()), next(iter(same), None))
    return (field.description if field else None) or "a value"


def _nearest(key: Key, schema: type[BaseModel]) -> str:
    """The key that was probably meant: a sibling if one is close, else a key of that name in another section."""
    known = [place for place, _ in fields(schema)]
    general = _general(key)
    if general in known:
        return "not a setting of this kind"
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
        for section in sections_of(field):
            repeated = get_origin(field.annotation) not in (None, Union, UnionType)
            yield from fields(section, (*above, name, *(("*",) if repeated else ())))


def sections_of(field: FieldInfo) -> tuple[type[BaseModel], ...]:
    """The models that a field may hold, itself or in a mapping or list: one a kind for a union; none if it is plain."""
    return tuple(_models(field.annotation))


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
