"""The house has floors, and imports go down only (docs: the design). A new file needs a floor, or these tests fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import metareward

SOURCE = Path(metareward.__file__).parent
FLOORS: tuple[str, ...] = (
    "types seeds errors __init__ engines.__init__ training.__init__ pocket.__init__ report.__init__ "
    "benchmarks.__init__ seeding.__init__",
    "render rubric metarubric reasoning expected scores battles pairs agreement monitors",
    "engines.* store rundir records",
    "prompts* unit sweep measuring evaluation measures duels summary pairfiles progress environment runlog training.* "
    "spending billing pocket.* benchmarks.* proposing* seeding.*",
    "recipe* opening presets plan rates choosing trial starter rebuild experiment stages benchmarking* loop status "
    "report.* evaluate_tables evaluate_cli data_runs data_cli cli",
)
# Imported inside functions, because they take seconds or aren't needed by everyone.
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "datasets",
    "accelerate",
    "safetensors",
    "matplotlib",
    "vllm",
    "sklearn",
    "huggingface_hub",
)
# It brings all of these, and must find the environment settled.
HEAVY_OURS = (
    "metareward.training.fit",
    "metareward.training.sft_fit",
    "metareward.training.adapters",
    "metareward.engines.checkpoint",
    "metareward.engines.decoder",
)
IMPURE = ("asyncio", "torch", "sqlite3", "pydantic")


@dataclass(frozen=True)
class Import:
    """``module`` imports ``name``, ``inside`` a function or not."""

    module: str
    name: str
    line: int
    inside: bool


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def floor_of(module: str) -> int:
    """The floor of a module of ours; a name that fits exactly goes before a pattern."""
    for fits in (str.__eq__, fnmatchcase):
        for floor, names in enumerate(FLOORS):
            if any(fits(module, name) for name in names.split()):
                return floor
    raise AssertionError(f"{module} is on no floor: give it one in {Path(__file__).name}")


def imports(module: str) -> Iterator[Import]:
    yield from _walk(module, ast.parse(MODULES[module].read_text(encoding="utf-8")), False)


def _walk(module: str, node: ast.AST, inside: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        for name in _names(node):
            yield Import(module, name, node.lineno, inside)
    inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(module, child, inside)


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    """What is imported, down to the module: ``from metareward.pocket import world`` is metareward.pocket.world."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, "imports name their whole path"
    inner = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if ours(name) in MODULES else str(node.module) for name in inner]


def ours(name: str) -> str:
    """``metareward.pocket.world`` as this file calls it: ``pocket.world``; a package is its ``__init__``."""
    if name == "metareward":
        return "__init__"
    inner = name.removeprefix("metareward.") if name.startswith("metareward.") else ""
    return f"{inner}.__init__" if (SOURCE / inner.replace(".", "/")).is_dir() and inner else inner


ALL = [each for module in MODULES for each in imports(module)]
OURS = [(each, ours(each.name)) for each in ALL if ours(each.name) in MODULES]


def top(name: str) -> str:
    return name.partition(".")[0]


def test_the_walk_finds_the_package() -> None:
    assert len(MODULES) > 60
    assert ("cli", "loop") in {(each.module, name) for each, name in OURS}
    assert ("experiment", "pocket.world") in {(each.module, name) for each, name in OURS}


def test_every_module_is_on_a_floor() -> None:
    for module in MODULES:
        floor_of(module)  # raises, naming it
    with pytest.raises(AssertionError, match="utils is on no floor"):
        floor_of("utils")


def test_no_floor_names_what_isn_t_there() -> None:
    named = [name for names in FLOORS for name in names.split()]
    assert [name for name in named if not any(fnmatchcase(module, name) for module in MODULES)] == []


def test_imports_go_down_only() -> None:
    up = [f"{each.module}:{each.line} imports {name}" for each, name in OURS if floor_of(name) > floor_of(each.module)]
    assert up == []


def test_engines_and_training_know_nothing_of_each_other_or_of_recipes() -> None:
    apart = {"engines": ("training", "recipe"), "training": ("engines", "recipe")}
    wrong = [
        f"{each.module}:{each.line} imports {name}"
        for each, name in OURS
        if any(name.startswith(other) for other in apart.get(top(each.module), ()))
    ]
    assert wrong == []


def test_no_import_cycles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for each, name in OURS:
        graph[each.module].add(name)
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError, naming the cycle


def test_the_method_is_pure() -> None:
    wrong = [
        f"{each.module}:{each.line} imports {each.name}"
        for each in ALL
        if floor_of(each.module) <= 1 and top(each.name) in IMPURE
    ]
    assert wrong == []


def test_imports_stand_at_the_top() -> None:
    """Inside functions stand only what is heavy, and what a command of the command line runs."""
    allowed = {each for each in ALL if top(each.name) in HEAVY or each.name in HEAVY_OURS}
    commands = ("cli", "evaluate_cli", "data_cli")
    wrong = [
        f"{each.module}:{each.line} imports {each.name}"
        for each in ALL
        if each.inside and each not in allowed and each.module not in commands
    ]
    assert wrong == []
