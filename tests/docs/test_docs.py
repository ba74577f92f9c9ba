"""The documents are true: their commands parse and the cheap ones run, their links, names, keys and titles exist."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from regenerate import PACKAGE, ROOT, commands, documents
from run_folders import llama_folder, small_run, write_prompts
from whole_runs import invoke, parse

from metareward.config.schema import GateSettings, Recipe, load_recipe
from metareward.config.yaml_file import PRESETS, fields
from metareward.method.gates import GATES
from metareward.pipeline.arms import load_experiment
from metareward.pocket.demonstrations import ALL_ITEMS
from metareward.pocket.tasks import FAMILIES, parse_instruction
from metareward.pocket.world import CRITERIA, check_answer
from metareward.types import DropReason

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in DOCUMENTS]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(document, content) of every fenced block in this language."""
    for name in NAMES:
        for content in re.findall(rf"^```{language}\n(.*?)^```", read(name), re.DOTALL | re.MULTILINE):
            yield name, content.replace("\\\n", " ")


def words_of(block: str, program: str) -> list[list[str]]:
    """The command lines of ``program`` in a block, without the environment set before them."""
    lines = (re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in block.splitlines())
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{program} ")]


def prose(name: str) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", read(name), flags=re.DOTALL | re.MULTILINE)


# --- generated pages ---


@pytest.fixture(scope="module")
def generated() -> dict[Path, str]:
    return documents()


@pytest.mark.parametrize(
    "name",
    [
        *("docs/cli.md", "docs/recipes.md", "CONTRIBUTING.md", "docs/pocket.md", "docs/judge-health.md"),
        *("docs/performance.md", "docs/real-model.md"),
    ],
)
def test_generated_pages_are_fresh(generated: dict[Path, str], name: str) -> None:
    assert read(name) == generated[ROOT / name], "run: make docs"


def test_every_command_is_described() -> None:
    page = read("docs/cli.md")
    assert all(f"\n## {words}\n" in page for words in commands())


# --- commands ---


def _command_blocks() -> list[tuple[str, str]]:
    return [(name, block) for name, block in blocks("sh") if words_of(block, "metareward")]


# Their blocks go on from each other: test_tutorials.py runs them.
_TUTORIALS = "docs/tutorials/"


@pytest.mark.parametrize(("name", "block"), _command_blocks())
def test_commands_parse(name: str, block: str) -> None:
    for words in words_of(block, "metareward"):
        parse(list(words))


# Options of other programs, of tests/support/mutants.py, and of the benchmarks' peers, that the documents name.
_OTHER_PROGRAMS = {
    "--logdir",
    "--rest",
    "--survivors",
    "--tests",
    "--no-enable-chunked-prefill",
    "--generation-config",
    "--help",
    "--local-dir",
    "--no-deps",
}


def _options() -> set[str]:
    """Every option of every command of metareward."""
    return {option for text in (read("docs/cli.md"),) for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)}


@pytest.mark.parametrize("name", NAMES)
def test_named_options_exist(name: str) -> None:
    named = {option for code in re.findall(r"`([^`\n]+)`", prose(name)) for option in re.findall(r"--[a-z-]+", code)}
    assert named - _options() - _OTHER_PROGRAMS == set()


CHEAP = ("plan", "init", "status", "show", "pairs", "report", "pocket sample")


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("run") / "run").path


@pytest.mark.parametrize(("name", "block"), [e for e in _command_blocks() if not e[0].startswith(_TUTORIALS)])
def test_cheap_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, a_run: Path, name: str, block: str
) -> None:
    """In a folder with models, prompts, and a run of scripted answers for the demo's, whose first prompt is p000."""
    monkeypatch.chdir(tmp_path)
    for model in ("mine", "smollm2"):
        llama_folder(tmp_path / "models" / model, layers=1, hidden=64, whole=True)
    write_prompts(tmp_path / "prompts.jsonl", 20_000)
    shutil.copytree(a_run, tmp_path / "runs/pocket-1")
    for words in words_of(block, "metareward"):
        if " ".join(words).startswith(CHEAP):
            told = invoke(["p000" if word.startswith("pocket-0") else word for word in words])
            assert told.exit_code == 0, (words, told.exception)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))
    used = {words[0] for _, block in blocks("sh") for words in words_of(block, "make")}
    used |= {name for each in NAMES for name in re.findall(r"`make ([\w-]+)", prose(each))}
    assert {"demo", "test", "docs"} <= used
    assert used <= targets


# --- recipes and code ---


@pytest.mark.parametrize(("name", "block"), list(blocks("yaml")))
def test_recipes_in_documents_load(tmp_path: Path, name: str, block: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(block.replace("extends: mine.yaml", "extends: pocket"), encoding="utf-8")
    if "\narms:" in block:
        assert load_experiment(path, tmp_path / "out").runs()
    else:
        assert load_recipe(str(path)).name == "mine"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_that_ship_load(path: Path) -> None:
    assert load_experiment(path, Path("out")).runs()


@pytest.mark.parametrize("preset", PRESETS)
def test_packaged_recipes_load(preset: str) -> None:
    given = [] if preset in ("pocket", "smollm2") else ["model=m", "prompts.source=p"]
    assert load_recipe(preset, given).name == preset


@pytest.mark.parametrize(
    ("name", "block"), [e for e in blocks("python") if not e[0].startswith(("docs/api.md", _TUTORIALS))]
)
def test_code_in_documents_runs(name: str, block: str) -> None:
    exec(compile(block, name, "exec"), {})


_KEY = re.compile(rf"`((?:{'|'.join(Recipe.model_fields)})\.[\w.*]+)`")
_FILES = {"md", "py", "json", "jsonl", "sqlite", "yaml", "txt", "parquet", "html"}


@pytest.mark.parametrize("name", NAMES)
def test_recipe_keys_exist(name: str) -> None:
    known = {".".join(map(str, key)) for key, _ in fields(Recipe)} | {f"{section}.*" for section in Recipe.model_fields}
    known |= {f"judge_health.{gate}.{key}" for gate in GATES for key in GateSettings.model_fields}
    named = {re.sub(r"\.\d+\b", ".*", key) for key in _KEY.findall(read(name)) if key.rsplit(".")[-1] not in _FILES}
    assert named - known == set()


# --- links ---


def _links(name: str) -> list[tuple[str, str]]:
    """(text, target) of every link and picture that points into the repository."""
    found = re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", prose(name))
    return [(text, target) for text, target in found if not target.startswith(("http:", "https:"))]


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_resolve(name: str) -> None:
    for _, target in _links(name):
        place, _, anchor = target.partition("#")
        path = (ROOT / name).parent / place if place else ROOT / name
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path), target


def test_pictures_are_small_and_described() -> None:
    shown = [(text, (ROOT / name).parent / target) for name in NAMES for text, target in _links(name)]
    pictures = {path.resolve(): text for text, path in shown if path.suffix == ".png"}
    assert set(pictures) == set((ROOT / "docs/images").iterdir())
    assert all(len(text.split()) >= 4 for text in pictures.values())
    assert [path.name for path in pictures if path.stat().st_size > 150_000] == []


def _code_links() -> list[tuple[str, str, str]]:
    """(document, dotted name, file) of every link of the form ``[module.name](….py)``."""
    links = [(name, text, target) for name in NAMES for text, target in _links(name)]
    return [link for link in links if link[2].endswith(".py") and re.fullmatch(r"[a-z_]+(?:\.\w+)+", link[1])]


def _defines(body: list[ast.stmt], name: str) -> list[ast.stmt] | None:
    """What is inside the function, class or constant ``name``; None when there is none."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name:
            return node.body
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if name in map(ast.unparse, targets):
                return []
    return None


@pytest.mark.parametrize(("name", "text", "target"), _code_links())
def test_linked_code_exists(name: str, text: str, target: str) -> None:
    path = (ROOT / name).parent / target
    module, *inside = text.split(".")
    assert path.stem == module or (path.name == f"{module}.py")
    if inside == ["py"]:
        return
    body: list[ast.stmt] | None = ast.parse(path.read_text(encoding="utf-8")).body
    for part in inside:
        body = _defines(body or [], part)
        assert body is not None, f"{target} defines no {part}"


_USERS_OWN = ("models/", "runs/")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_named_files_exist(name: str) -> None:
    """Every `folder/file` in backticks, and every package in the README's list: in the package or the repository."""
    named = re.findall(r"`([\w.*-]+/[\w./*-]*)`", prose(name)) + re.findall(r"^(\w+/) ", read(name), re.MULTILINE)
    paths = [each for each in named if not each.startswith(_USERS_OWN)]
    assert len(paths) >= 11
    assert [each for each in paths if not any(any(root.glob(each)) for root in (PACKAGE, ROOT))] == []


def test_links_in_the_code_s_comments_resolve() -> None:
    sources = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")]
    assert [
        each for text in sources for each in re.findall(r"docs/[\w/.-]+\.md", text) if not (ROOT / each).exists()
    ] == []


# --- what the report and the reduction call things ---


def test_report_sections_exist() -> None:
    page = (PACKAGE / "report/page.html.j2").read_text(encoding="utf-8")
    named = {title for name in NAMES for title in re.findall(r"Report, \*(.+?)\*", " ".join(read(name).split()))}
    assert len(named) >= 5
    assert named - set(re.findall(r"<h2>(.+?)</h2>", page)) == set()


def test_the_run_folder_has_these_names() -> None:
    layout = read("docs/running.md").partition("```text\n")[2].partition("```")[0]
    columns = (re.split(r"  +", line.strip())[0] for line in layout.splitlines())
    names = {name for column in columns for name in re.findall(r"[\w.-]+\.\w+", column)}
    sources = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert len(names) > 12
    assert {name for name in names if f'"{name}"' not in sources} == set()


def _first_cells(name: str, title: str) -> list[str]:
    """The first cells of the table under a heading."""
    section = read(name).partition(f" {title}\n")[2].partition("\n#")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_every_drop_reason_is_explained() -> None:
    assert sorted(_first_cells("docs/running.md", "Why a prompt gave no pair")) == sorted(get_args(DropReason))


# --- decisions ---


def test_decisions_are_numbered_and_have_four_parts() -> None:
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(path.name[:4]) for path in pages] == list(range(1, len(pages) + 1))
    for number, path in enumerate(pages, 1):
        text = path.read_text(encoding="utf-8")
        assert text.startswith(f"# {number}. "), path.name
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
            "Rejected",
        ]


# --- the pocket world ---


def _families() -> list[tuple[str, str, str]]:
    table = read("docs/pocket.md").partition("## The instructions")[2].partition("\n## ")[0]
    return re.findall(r"^\| (\w+) \| (.+?\.) \| (.+?) \|$", table, re.MULTILINE)


def test_every_family_is_shown() -> None:
    assert [family for family, _, _ in _families()] == [family.name for family in FAMILIES]


@pytest.mark.parametrize(("family", "instruction", "answer"), _families())
def test_answers_of_the_families_are_right(family: str, instruction: str, answer: str) -> None:
    assert parse_instruction(instruction).family == family
    assert check_answer(instruction, answer).score == 5
    assert set(answer.split(", ")) <= set(ALL_ITEMS)


def test_every_criterion_is_explained() -> None:
    assert _first_cells("docs/pocket.md", "The three roles") == list(CRITERIA)
