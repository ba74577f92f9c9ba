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
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from metareward.errors import UserError
from metareward.storage.run_dir import RunDir

Key = tuple[str | int, ...]
PRESETS = (
    "pocket", "smollm2", "self-rewarding", "self-rewarding-lc", "meta-rewarding", "llama3-8b-8gpu", "llama3-8b-1gpu",
    "small-24gb",
)  # fmt: skip
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


def nearest_preset(word: str) -> str:
    """Half a sentence that points from a mistyped name to the presets."""
    near = difflib.get_close_matches(word, PRESETS, n=1)
    return f"the nearest preset is {near[0]!r}" if near else f"the presets are {', '.join(PRESETS)}"


def recipe_path(name_or_path: str) -> Path:
    """The file of a preset's name or a path; of a run folder the run's recipe, with every ``--set`` of its starts.
    UserError naming the nearest preset when there's no such file.
    """
    if name_or_path in PRESETS:
        return PRESET_FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.is_dir():
        run = RunDir(path)
        run.require()
        return run.resolved
    raise UserError(f"{name_or_path}: no such recipe file or run folder; {nearest_preset(path.stem)}")


def run_of(name_or_path: str) -> RunDir | None:
    """The run that a name stands for: a run folder's, or that of its recipe file; None for any other recipe."""
    path = Path(name_or_path)
    run = RunDir(path if path.is_dir() else path.parent)
    if name_or_path in PRESETS or not run.resolved.is_file():
        return None
    return run if path.is_dir() or path in (run.recipe, run.resolved) else None


def default_folder(name_or_path: str, name: str) -> Path:
    """Where a recipe runs unless told: in the run folder that it is of, else in ``runs/<name>``."""
    run = run_of(name_or_path)
    return Path("runs") / name if run is None else run.path


_OVERRIDE = "# --set "


def recipe_text(name_or_path: str, overrides: Sequence[str] = ()) -> str:
    """The recipe as the user gave it: its file, with all overrides as comments above it, a run's own first."""
    run = run_of(name_or_path)
    path = recipe_path(name_or_path) if run is None or not run.recipe.is_file() else run.recipe
    earlier = stored_overrides(path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[len(earlier) :]
    given = (json.dumps(each) if "\n" in each else each for each in (*earlier, *overrides))
    return "".join([*(f"{_OVERRIDE}{each}\n" for each in given), *lines])


def stored_overrides(path: Path) -> tuple[str, ...]:
    """The overrides at the head of a run folder's ``recipe.yaml``; those of any other file are comments."""
    run = run_of(str(path))
    if run is None or path != run.recipe:
        return ()
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith(_OVERRIDE):
            break
        override = line.removeprefix(_OVERRIDE)
        with suppress(ValueError):  # written by `recipe_text` for one of several lines
            override = json.loads(override) if override.startswith('"') else override
        found.append(override)
    return tuple(found)


def read_layers(path: Path, overrides: Sequence[str], otherwise: Mapping[str | int, object]) -> Tree:
    """The recipe's file over what it extends, and each ``key=value`` of ``overrides`` over both. Those that a run's
    ``recipe.yaml`` was started with come before them.

    ``otherwise`` holds the values of top-level keys that no file gives, so that an override can change a part of them.
    """
    files = _read_extended(path, ())
    tree = Tree({**otherwise, **files.values}, files.origins)
    for override in (*stored_overrides(path), *overrides):
        place, equals, value = override.partition("=")
        parts = place.strip().split(".")
        if not equals or not all(parts):
            raise UserError(f"--set {override}: expected key=value with a dotted key, such as answers.k=7")
        key = tuple(map(_key, parts))
        found = _parse(value, f"--set {override}", numbered=False).values["value"]
        for part in reversed(key):
            found = {part: found}
        assert isinstance(found, dict)
        tree = lay_over(tree, Tree(found, {key: f"--set {override}"}))
    return tree


def _read_extended(path: Path, seen: tuple[Path, ...]) -> Tree:
    """One recipe file over those that it extends. UserError with the line for what isn't a recipe."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text (byte {error.start}); a recipe is a YAML text file") from None
    tree = _parse(text, label(path), numbered=True)
    values = {} if tree.values["value"] is None else tree.values["value"]
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected keys with values, such as 'seed: 0', at the top; found {shown(values)}")
    base = values.get("extends")
    own = Tree({key: value for key, value in values.items() if key != "extends"}, tree.origins)
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


def label(path: Path) -> str:
    """How a recipe file is called in messages: its path, or ``preset pocket``."""
    return f"preset {path.stem}" if path.parent == PRESET_FOLDER else str(path)


def shown(value: object) -> str:
    """A value as YAML would have it, cut to a readable length, on one line."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2, without anchors and tags, noting where each key was given.

    ``origins`` holds these places: the ``source``, with the line if ``numbered``.
    """

    def __init__(self, text: str, source: str, numbered: bool) -> None:
        super().__init__(text)
        self.source, self.numbered = source, numbered
        self.origins: dict[Key, str] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tagged = isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None
        if isinstance(event, yaml.NodeEvent) and (event.anchor is not None or tagged):
            problem = "anchors (&name, *name) and tags (!name) are not used in recipes"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)  # type: ignore[arg-type]
        return super().compose_node(parent, index)

    def build(self, node: yaml.Node, key: Key) -> object:
        """The value of ``node``, which was given for ``key``."""
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*key, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return self.construct_object(node, deep=True)
        values: dict[str | int, object] = {}
        lines: dict[str | int, int] = {}
        for key_node, value_node in node.value:
            name = _key(str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?")
            line = key_node.start_mark.line + 1
            place = f"{self.source}:{line}" if self.numbered else self.source
            if name in lines:
                first = f" (first in line {lines[name]})" if self.numbered else ""
                raise UserError(f"{place}: {dotted((*key, name))}: this key is given twice{first}; keep one")
            lines[name], self.origins[*key, name] = line, place
            values[name] = self.build(value_node, (*key, name))
        return values


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


@lru_cache
def _parse(text: str, source: str, numbered: bool) -> Tree:
    """The document under the key ``value``, with the origin of every key inside it.

    Remembered, and never changed: the runs of an experiment read the same files and overrides again and again.
    """
    try:
        loader = _Loader(text, source, numbered)
        node = loader.get_single_node()
        return Tree({"value": None if node is None else loader.build(node, ())}, loader.origins)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark and numbered else ""
        raise UserError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UserError(f"{source}: not a recipe: brackets are nested too deeply") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None


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
    "list_type": "a list, such as [one, two]",
    "invalid_key": "the name of a section or a setting, such as answers.k",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
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
    urgency = {"extra_forbidden": 0, "missing": 2, "mismatch": 3}
    details = sorted(error.errors(include_url=False), key=lambda detail: urgency.get(detail["type"], 1))
    first, known = details[0], list(fields(schema))
    key = _place(first, tree)
    where = tree.origin(key) or source
    if first["type"] == "extra_forbidden":
        return UserError(f"{where}: {dotted(key)}: unknown key; {_nearest(key, [place for place, _ in known])}")
    general = _general(key, [place for place, _ in known])
    same = [field for place, field in known if place == general]
    # Of a key that several kinds have, the field of a kind which must be given it.
    field = next((each for each in same if each.is_required()), next(iter(same), None))
    # An empty value of a required key is what ``init`` leaves behind: it's a missing one, not a wrong one.
    empty = first["input"] is None and bool(same) and same[-1].is_required()
    if first["type"] == "missing" or empty:
        return UserError(f"{source}: {dotted(key)}: must be given: {(field and field.description) or 'a value'}")
    about = [each for each in details if _place(each, tree) == key]
    kinds = (
        "iterations numbered 1, 2, 3 and so on"  # only iterations have keys of their own
        if each["loc"][-1:] == ("[key]",)
        else _EXPECTED.get(each["type"], each["msg"]).format(**each.get("ctx", {}))
        for each in about
    )
    expected = " or ".join(dict.fromkeys(kinds))
    given = first["ctx"]["value"] if first["type"] == "mismatch" else first["input"]
    no_value = first["loc"][-1:] == ("[key]",) or (first["type"] == "mismatch" and given is None)
    value = "" if no_value else f"{shown(given)}: "
    said = where.startswith(f"--set {dotted(key)}=")
    return UserError(f"{where}: {'' if said else f'{dotted(key)}: {value}'}expected {expected}")


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
        elif isinstance(node, Mapping) and (
            node.get("kind") == "auto" or part == node.get("kind", _DEFAULT_KINDS.get(inside[-1] if inside else ""))
        ):
            continue  # the kind that pydantic tried, which is no key
        else:
            return (*inside, *detail["loc"][place:]) if detail["type"] == "missing" or not inside else tuple(inside)
        inside.append(part)
    return tuple(inside)


def _nearest(key: Key, known: Sequence[Key]) -> str:
    """The key that was probably meant: a sibling if one is close, else a key of that name in another section."""
    general = _general(key, known)
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


def _general(key: Key, known: Sequence[Key]) -> Key:
    """A key of any iteration, benchmark or gate as a key of all: ``iterations.*.rho``."""
    general: Key = ()
    for part in key:
        of_all = isinstance(part, int) or ((*general, part) not in known and _is_repeated(general, known))
        general = (*general, "*" if of_all else part)
    return general


def _is_repeated(section: Key, known: Sequence[Key]) -> bool:
    """Whether the keys of ``section`` are names or numbers of its own."""
    return any(place[: len(section) + 1] == (*section, "*") for place in known)


def fields(schema: type[BaseModel], above: Key = ()) -> Iterator[tuple[Key, FieldInfo]]:
    """Every key of a recipe, sections before what is in them, iterations and benchmarks once under ``iterations.*``."""
    for name, field in schema.model_fields.items():
        yield (*above, name), field
        for section in sections_of(field.annotation):
            repeated = get_origin(field.annotation) not in (None, Union, UnionType)
            yield from fields(section, (*above, name, *(("*",) if repeated else ())))


def sections_of(annotation: object) -> tuple[type[BaseModel], ...]:
    """The models that a field may hold, itself or in a mapping or list: one a kind for a union; none if it is plain."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(model for inner in get_args(annotation) for model in sections_of(inner))
