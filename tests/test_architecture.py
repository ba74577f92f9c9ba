"""The package's structure: imports go down only, no import cycle, bounded files and functions, full annotation."""

from __future__ import annotations

import ast
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from regenerate import LAYERS

import metareward

SOURCE = Path(metareward.__file__).parent
# Imported inside functions, because they take seconds or are optional.
HEAVY = (
    *("torch", "transformers", "tokenizers", "trl", "datasets", "accelerate", "safetensors", "peft"),
    *("matplotlib", "tensorboard", "vllm", "sklearn", "scipy", "huggingface_hub", "httpx2", "pyarrow"),
    *("if_verifiable", "langdetect", "nltk", "punkt", "krippendorff"),
    *("ray", "fcntl"),
    *("wandb", "mlflow", "trackio"),
)
# Modules that import torch, trl or transformers at the top: they are imported inside functions, too.
HEAVY_PACKAGES = ("metareward.training.", "metareward.engines.local.")
IMPURE = ("asyncio", "torch", "sqlite3", "pydantic")
MOST_FILES, MOST_TOP_LEVEL, LONGEST_FILE, LONGEST_FUNCTION = 194, 18, 500, 60


@dataclass(frozen=True)
class Import:
    """``module`` imports ``name``, ``inside`` a function or not."""

    module: str
    name: str
    line: int
    inside: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


def module_name(path: Path) -> str:
    """``metareward.pocket.world`` of a file; a package is named without ``__init__``."""
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


@lru_cache(maxsize=1)
def trees() -> dict[str, ast.Module]:
    """The syntax tree of every module. Made by the first test that needs it: all workers import this file."""
    return {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}


def _imports(module: str, node: ast.AST, inside: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(module, alias.name, node.lineno, inside) for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"{module}:{node.lineno}: imports name the whole path"
        full = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (Import(module, n if n in MODULES else str(node.module), node.lineno, inside) for n in full)
    inside |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _imports(module, child, inside)


@lru_cache(maxsize=1)
def imports() -> list[Import]:
    """Every import."""
    return [each for module, tree in trees().items() for each in _imports(module, tree, False)]


def ours() -> list[Import]:
    """Imports of our own modules."""
    return [each for each in imports() if each.name in MODULES]


def layer(module: str) -> int:
    """The place of a module's package in LAYERS; the public names of `metareward` itself come last."""
    name = [*module.split("."), ""][1]
    return LAYERS.index(name) if name else len(LAYERS)


def functions() -> Iterator[tuple[str, int]]:
    """(place, lines) of every function and method, decorators left out."""
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def lengths() -> dict[str, int]:
    """Lines of every file but the packages' ``__init__``."""
    return {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }


def test_every_package_has_a_layer() -> None:
    names = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert names - {"__init__"} == set(LAYERS)


def test_imports_go_down_only() -> None:
    assert ("metareward.evaluation.worlds", "metareward.pocket.world") in {(each.module, each.name) for each in ours()}
    assert [str(each) for each in ours() if layer(each.name) > layer(each.module)] == []


def test_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for each in ours():
        graph[each.module].add(each.name)
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError, naming the cycle


def test_engines_and_training_are_independent() -> None:
    crossing = [each for each in ours() if each.module.startswith("metareward.training.")]
    # A model is trained on the tokens that it was given.
    allowed = ("metareward.engines.process_group", "metareward.engines.device", "metareward.engines.chat")
    assert [str(e) for e in crossing if e.name.startswith("metareward.engines.") and e.name not in allowed] == []


def test_the_method_is_pure() -> None:
    method = [
        each for each in imports() if layer(each.module) <= LAYERS.index("method") and ".settings" not in each.module
    ]
    assert [str(each) for each in method if each.name.partition(".")[0] in IMPURE] == []


def test_imports_stand_at_the_top() -> None:
    """Inside functions stand only heavy packages, and what a command of the command line or a public name needs."""
    heavy = [e for e in imports() if e.name.partition(".")[0] in HEAVY or e.name.startswith(HEAVY_PACKAGES)]
    lazy = (
        "metareward",
        "metareward.cli.main",
        "metareward.cli.data",
        "metareward.cli.evaluate",
        "metareward.cli.launch",
        "metareward.cli.runs",
    )
    assert [str(each) for each in imports() if each.inside and each not in heavy and each.module not in lazy] == []


def test_size_of_the_package() -> None:
    lines = lengths()
    assert len(lines) <= MOST_FILES
    assert len(LAYERS) <= MOST_TOP_LEVEL
    assert 120 <= statistics.median(lines.values()) <= 300
    assert {module: n for module, n in lines.items() if n > LONGEST_FILE} == {}


def test_size_of_functions() -> None:
    found = sorted(functions(), key=lambda each: each[1])
    assert 15 <= found[int(0.9 * len(found))][1] <= 35
    assert [each for each in found if each[1] > LONGEST_FUNCTION] == []


@pytest.mark.parametrize("name", sorted({path.parent for path in MODULES.values()} - {SOURCE}))
def test_packages_say_what_belongs_there(name: Path) -> None:
    docstring = ast.get_docstring(ast.parse((name / "__init__.py").read_text(encoding="utf-8")))
    assert docstring and len(docstring) > 20


def test_everything_is_annotated() -> None:
    bare = []
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                missing = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
                if missing or node.returns is None:
                    bare.append(f"{module}.{node.name} {missing}")
    assert bare == []
