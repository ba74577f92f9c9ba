"""Writes what can be generated of the documents (``make docs``); test_docs.py checks that nothing of it is stale.

docs/cli.md and docs/recipes.md are generated whole. In the others it is what stands between two markers: the tree of
files keeps the order and the words that a person gave it and only gains and loses lines.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer.main
from typer.core import TyperGroup
from typer.testing import CliRunner

from annotate import COUNTED
from annotate_page import tables
from metareward.cli.main import app
from metareward.config.schema import PAPER_ITERATIONS, Recipe, load_recipe
from metareward.config.yaml_file import PRESETS, dotted, fields, sections_of
from metareward.settings import Section

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "metareward"
# The packages and modules of metareward, lowest layer first: each imports only from itself and from those before it.
LAYERS = (
    "errors",
    "types",
    "seeds",
    "settings",
    "method",
    "storage",
    "engines",
    "pocket",
    "generation",
    "data",
    "training",
    "evaluation",
    "config",
    "report",
    "pipeline",
    "cli",
)
WIDTH = "96"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def documents() -> dict[Path, str]:
    """Every document that is generated, whole or in part, and what it should hold."""
    return {
        ROOT / "docs/cli.md": cli_page(),
        ROOT / "docs/recipes.md": recipes_page(),
        ROOT / "CONTRIBUTING.md": _filled(ROOT / "CONTRIBUTING.md", {"tree": tree}),
        ROOT / "docs/pocket.md": _filled(
            ROOT / "docs/pocket.md", {"model": model_table, "phases": phases_table, "faults": faults_table}
        ),
        ROOT / "docs/performance.md": _filled(
            ROOT / "docs/performance.md", {kind: lambda _, kind=kind: tables(kind) for kind in COUNTED}
        ),
    }


def _filled(path: Path, parts: Mapping[str, Any]) -> str:
    text = path.read_text(encoding="utf-8")
    for name, write in parts.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        inside, end, after = rest.partition(f"<!-- /{name} -->")
        assert start and end, f"{path.name}: the markers <!-- {name} --> and <!-- /{name} --> are gone"
        text = f"{before}{start}{write(inside)}{end}{after}"
    return text


# --- the command line ---

_CLI_HEAD = """\
# The commands

What `--help` says, for every command. Written by `make docs`; change the words in
[cli.py](../src/metareward/cli.py). A mistake of yours is one line on standard error and exit code 2; Ctrl-C is one line
and 130.
"""


def cli_page() -> str:
    """docs/cli.md: the help text of every command, at one width."""
    sections = (f"\n## {words}\n\n```text\n{_help(words)}\n```\n" for words in commands())
    return _CLI_HEAD + "".join(sections)


def commands() -> Iterator[str]:
    """Every command as it is typed, ``metareward`` itself first."""
    yield from _commands(typer.main.get_command(app), "metareward")


def _commands(command: Any, words: str) -> Iterator[str]:
    yield words
    if isinstance(command, TyperGroup):
        for name in command.list_commands(typer.Context(command)):
            yield from _commands(command.get_command(typer.Context(command), name), f"{words} {name}")


def _help(words: str) -> str:
    shape = {"COLUMNS": WIDTH, "TERM": "dumb", "NO_COLOR": "1"}
    told = CliRunner().invoke(app, [*words.split()[1:], "--help"], env=shape)
    assert told.exit_code == 0, words
    lines = _COLOURS.sub("", told.output).splitlines()
    return "\n".join(line.rstrip() for line in lines).strip("\n")


# --- recipes ---

_RECIPES_HEAD = """\
# Recipes

Every key of a recipe, its default and what it means. Written by `make docs` from
[schema.py](../src/metareward/config/schema.py). The defaults are the published setting of Meta-Rewarding
(arXiv 2407.19594); where a line names no paper, the papers leave it open.

A recipe is a YAML file that says only what differs from what it `extends`, which is one of the presets
[meta-rewarding](../src/metareward/config/recipes/meta-rewarding.yaml),
[self-rewarding](../src/metareward/config/recipes/self-rewarding.yaml) and
[pocket](../src/metareward/config/recipes/pocket.yaml), or another file. `metareward init mine.yaml` writes one with
every key in it; `--set key=value` changes one key of one command. Unknown keys are refused with the nearest known one.
Paths are relative to the folder in which the command runs.

```yaml
extends: pocket
seed: 7
judgments:
  n: 5
iterations:
  1: {rho: 0.2}
  4: drop # three iterations instead of four
```
"""


def recipes_page() -> str:
    """docs/recipes.md: a table for each section, then what the presets change."""
    plain = [(name, field) for name, field in Recipe.model_fields.items() if not sections_of(field)]
    schema = Recipe.model_json_schema()
    parts = [_RECIPES_HEAD, "\n## At the top\n\n", _table(plain, schema["properties"])]
    for key, field in fields(Recipe):
        for section in sections_of(field):
            inside = schema["$defs"][section.__name__]["properties"]
            about = (len(sections_of(field)) == 1 and field.description) or (section.__doc__ or "").splitlines()[0]
            name = dotted(key)
            title = {"iterations": "iterations.1, iterations.2, …"}.get(name, name)
            if len(sections_of(field)) > 1:
                title += f", kind {section.model_fields['kind'].default}"
            plain = [(name, each) for name, each in section.model_fields.items() if not sections_of(each)]
            parts.append(f"\n## {title}\n\n{about}\n\n{_table(plain, inside)}")
    return "".join([*parts, _paper_iterations(), _changes()])


_GIVEN = {"name": "the file's name"}


def _table(fields: list[tuple[str, Any]], properties: Mapping[str, Any]) -> str:
    rows = [("key", "default", "values", "meaning")]
    for name, field in fields:
        default = _code(field.default) if not field.is_required() else _GIVEN.get(name, "must be given")
        rows.append((f"`{name}`", default, _values(properties[name]), field.description or ""))
    return _markdown(rows)


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = ("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body]) + "\n"


def _code(value: object) -> str:
    return "empty" if value in (None, "") else f"`{value if isinstance(value, str) else json.dumps(value)}`"


_LIMITS = (
    ("minimum", "at least"),
    ("exclusiveMinimum", "above"),
    ("maximum", "at most"),
    ("exclusiveMaximum", "below"),
)
_TYPES = {"integer": "whole number", "number": "number", "boolean": "true or false", "string": "text", "null": "empty"}


def _values(schema: Mapping[str, Any]) -> str:
    """What a JSON schema allows, in words."""
    if "anyOf" in schema:
        return " or ".join(_values(each) for each in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{each}`" for each in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list of {_values(schema['items'])}s"
    limits = [f"{words} {schema[name]:g}" for name, words in _LIMITS if name in schema]
    return f"{_TYPES[schema['type']]} {' and '.join(limits)}".strip()


def _paper_iterations() -> str:
    keys = ("rho", "max_answer_chars", "judge_pairs", "max_judgment_chars", "stop_after_epoch")
    rows: list[tuple[str, ...]] = [("iteration", *(f"`{key}`" for key in keys))]
    rows += [(str(t), *(_code(each.get(key)) for key in keys)) for t, each in PAPER_ITERATIONS.items()]
    return f"\nA recipe that names no iterations has the paper's four (appendix A.3):\n\n{_markdown(rows)}"


_NONE = "no such iteration"


def _changes() -> str:
    given = ["model=to-be-given", "prompts.source=to-be-given"]
    plain = dict(_flat(load_recipe("meta-rewarding", given)))
    others = {name: dict(_flat(load_recipe(name, [] if name == "pocket" else given))) for name in PRESETS}
    del others["meta-rewarding"]
    every = {**plain, **dict.fromkeys(k for each in others.values() for k in each)}
    keys = [key for key in every if key != ("name",) and key[0] != "benchmarks"]  # the presets' own are in their files
    rows: list[tuple[str, ...]] = [("key", "meta-rewarding", *others)]
    for key in keys:
        cells = [_cell(each, key) for each in (plain, *others.values())]
        if len(set(cells) - {_NONE}) > 1:
            rows.append((f"`{dotted(key)}`", *cells))
    head = "\n## What the presets say\n\n`meta-rewarding` is the defaults, written out. Where the others differ:\n\n"
    return head + _markdown(rows)


def _cell(settings: Mapping[tuple[str | int, ...], object], key: tuple[str | int, ...]) -> str:
    if key not in settings:
        return _NONE
    return "must be given" if settings[key] == "to-be-given" else _code(settings[key])


def _flat(section: Section, above: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], object]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        inner = value.items() if isinstance(value, Mapping) else [(None, value)]
        for number, each in inner:
            key = (*above, name) if number is None else (*above, name, number)
            yield from _flat(each, key) if isinstance(each, Section) else [(key, each)]


# --- the tree of files ---


def tree(_: str) -> str:
    """Every file of the package under its package, lowest layer first, with the first sentence of its docstring."""
    lines: list[str] = []
    for layer in LAYERS:
        place = PACKAGE / layer
        if not place.is_dir():
            lines.append(f"{layer + '.py':<42} {_first_sentence(place.with_suffix('.py'))}")
            continue
        lines += ["", f"{layer + '/':<42} {_first_sentence(place / '__init__.py')}"]
        for path in sorted(place.rglob("*.py")):
            if path.name != "__init__.py":
                lines.append(f"  {path.relative_to(PACKAGE).as_posix():<40} {_first_sentence(path)}")
    return "```text\n" + "\n".join(lines) + "\n```\n"


def _first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return re.split(r"(?<=[.:?])\s", " ".join(docstring.partition("\n\n")[0].split()))[0].rstrip(".:")


# --- the pocket world ---


def faults_table(_: str) -> str:
    """The rate of each fault in the demonstrations of the last phase, read from build.py without importing torch."""
    from metareward.pocket.demonstrations import FaultRates

    source = (PACKAGE / "pocket/demonstrations.py").read_text(encoding="utf-8")
    rates = _keywords(_assigned(ast.parse((PACKAGE / "pocket/build.py").read_text(encoding="utf-8")), "FAULTY"))
    assert set(rates) <= set(FaultRates.__dataclass_fields__)
    rows: list[tuple[str, ...]] = [("role", "fault", "rate", "meaning")]
    role = ""
    for line in source.partition("class FaultRates")[2].partition("\n\n\n")[0].splitlines():
        heading, field = re.match(r"    # the (.+)", line), re.match(r"    (\w+): float = 0\.0  # (.+)", line)
        role = heading[1] if heading else role
        if field:
            rows.append((role, f"`{field[1]}`", f"{rates.get(field[1], 0):g}", field[2]))
    return _markdown(rows)


def model_table(_: str) -> str:
    """The size of the pocket model."""
    module = ast.parse((PACKAGE / "pocket/build.py").read_text(encoding="utf-8"))
    shape = _defaults(module, "Shape")
    rows = [("of the model", "size"), *((name.replace("_", " "), f"{value:,}") for name, value in shape.items())]
    rows.append(("parameters", f"{_parameters(shape):,}"))
    return _markdown(rows)


def phases_table(_: str) -> str:
    """The training of the pocket model, one row per phase."""
    module = ast.parse((PACKAGE / "pocket/build.py").read_text(encoding="utf-8"))
    names = [ast.unparse(node.target) for node in _fields(module, "Phase")]
    plan = next(node for node in _fields(module, "BuildPlan") if ast.unparse(node.target) == "phases")
    rows: list[tuple[str, ...]] = [("phase", "demonstrations", "of actor, judge, meta-judge", "steps", "peak rate")]
    for phase in ast.unparse(plan.value or plan).strip("()").split(","):
        said = dict(zip(names, map(ast.unparse, _assigned(module, phase.strip()).args), strict=False))
        mix = ast.parse(said["task_mix"], mode="eval").body
        assert isinstance(mix, ast.Call)
        shown = {"CLEAN": "right", "FAULTY": "with faults", "HASTIER": "with faults, 78 % hasty"}[
            ast.unparse(mix.args[0])
        ]
        shares = ", ".join(f"{100 * share:.0f} %" for share in ast.literal_eval(mix.args[1]))
        steps, rate = int(ast.literal_eval(said["steps"])), ast.literal_eval(said["learning_rate"])
        rows.append((ast.literal_eval(said["name"]), shown, shares, f"{steps:,}", f"{rate:g}"))
    return _markdown(rows)


def _parameters(shape: Mapping[str, int]) -> int:
    """Of a Llama with tied embeddings and as many key as query heads."""
    hidden, layers, inner = shape["hidden"], shape["layers"], shape["intermediate"]
    return shape["vocabulary"] * hidden + layers * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden) + hidden


def _assigned(module: ast.Module, name: str) -> ast.Call:
    for node in module.body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            assert isinstance(node.value, ast.Call)
            return node.value
    raise AssertionError(f"build.py assigns no {name}")


def _keywords(call: ast.Call) -> dict[str, float]:
    return {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}


def _defaults(module: ast.Module, name: str) -> dict[str, int]:
    """The fields of a dataclass that have a default, with it."""
    return {ast.unparse(each.target): ast.literal_eval(each.value) for each in _fields(module, name) if each.value}


def _fields(module: ast.Module, name: str) -> list[ast.AnnAssign]:
    found = next(node for node in module.body if isinstance(node, ast.ClassDef) and node.name == name)
    return [node for node in found.body if isinstance(node, ast.AnnAssign)]


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
