"""The tutorials are true: step by step in one folder, their commands run and print what stands below them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import HTTPCookieProcessor, build_opener

import pytest
from chat_server import Answer, choice, completion, served_beside
from fake_run import fake_run, write_held_out
from regenerate import ROOT
from run_folders import write_prompts
from whole_runs import invoke

from metareward.storage.store import RecordStore

NAMES = ("your-own-model", "swap-the-judge", "read-a-report")
# Not run here: what needs the network.
NOT_RUN = ("pip install", "python3 -m venv")
# A prompt of the demo's second iteration; a smaller one has others.
DEMO_PROMPT = "pocket-00110"
# The demo at a smaller size: two iterations of 40 prompts.
_SIZE = ("prompts.per_iteration=40", "prompts.held_out=32", "iterations.3=drop", "iterations.4=drop")
SMALLER = ("metareward run pocket ", f"metareward run pocket {' '.join(f'--set {each}' for each in _SIZE)} ")


@dataclass(frozen=True)
class Step:
    """A block of a tutorial: a file to write (``name``), or a script with what it ``prints``, as far as shown."""

    language: str
    text: str
    prints: str = ""

    @property
    def name(self) -> str | None:
        """Of a file, which its first line names in a comment."""
        found = re.match(r"# (\w+\.\w+)\n", self.text)
        return found[1] if found and self.language in ("yaml", "python") else None

    @property
    def commands(self) -> list[list[str]]:
        """The command lines of metareward."""
        lines = self.text.replace("\\\n", " ").splitlines() if self.language == "sh" else []
        return [shlex.split(line)[1:] for line in lines if line.startswith("metareward ")]


def steps(name: str) -> list[Step]:
    """The blocks of a tutorial in order; a text block is what the script before it prints."""
    text = (ROOT / f"docs/tutorials/{name}.md").read_text(encoding="utf-8")
    found: list[Step] = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if language == "text":
            assert found[-1].name is None and not found[-1].prints
            found[-1] = Step(found[-1].language, found[-1].text, block)
        else:
            found.append(Step(language, block))
    return found


def missing_lines(shown: str, printed: str) -> list[str]:
    """The shown lines that weren't printed in this order. Numbers and blanks may differ; … stands for other lines."""

    def masked(text: str) -> list[str]:
        lines = (re.sub(r"\d[\d,.]*", "0", re.sub(r"[−-](?=\d)", "", line)) for line in text.splitlines())
        return [" ".join(line.replace("┃", "│").split()) for line in lines if line.strip()]

    rest = iter(masked(printed))
    return [line for line in masked(shown) if line != "…" and line not in rest]


@pytest.mark.parametrize("name", NAMES)
def test_tutorials_are_short(name: str) -> None:
    text = (ROOT / f"docs/tutorials/{name}.md").read_text(encoding="utf-8")
    assert 60 <= len(text.splitlines()) <= 200
    assert sum(bool(step.commands) for step in steps(name)) >= 4


def test_shown_lines_are_found_in_order() -> None:
    assert missing_lines("a 1\n…\nb  2.5 −3", "x\na 7\ny\nz\nb 1,000 4\n") == []
    assert missing_lines("b\na", "a\nb\n") == ["a"]


# --- the cheap commands, without a model ---

CHEAP = ("plan", "status", "show", "report", "compare")


@pytest.fixture(scope="module")
def made_up_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with made-up runs in place of the tutorials' own."""
    folder = tmp_path_factory.mktemp("tutorials")
    first = fake_run(folder / "runs/mine", models=3)
    for t in (0, 1, 2):
        write_held_out(first, t)
    for name in ("slower", "grounded", "pocket-1", "shorter"):
        shutil.copytree(first.path, folder / "runs" / name)
    return folder


def is_cheap(words: list[str]) -> bool:
    return words[0] in CHEAP or (words[0] == "view" and "--export" in words)


@pytest.mark.parametrize("name", NAMES)
def test_cheap_commands_run(made_up_runs: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With the files that the first tutorial writes, in the folder of made-up runs."""
    monkeypatch.chdir(made_up_runs)
    prompt = next(iter(ids(made_up_runs / "runs/mine/iter-2")))
    write_prompts(made_up_runs / "prompts.jsonl", 160)
    for step in [*steps(NAMES[0])[:4], *steps(name)]:
        if step.name:
            (made_up_runs / step.name).write_text(step.text, encoding="utf-8")
        for words in filter(is_cheap, step.commands):
            given = [
                prompt if before == "--prompt" else word for before, word in zip(["", *words], words, strict=False)
            ]
            done = invoke(given)
            assert done.exit_code == 0, (words, done.output, done.exception)
            assert words[0] != "plan" or missing_lines(step.prints, done.output) == []


def ids(iteration: Path) -> list[str]:
    """The prompts that an iteration has records of."""
    with RecordStore.read(iteration / "records.sqlite") as store:
        return [key for key, _ in store.documents()]


# --- every step, with the model that ships ---


def script(text: str, folder: Path) -> str:
    """What a shell prints that runs these lines, with `metareward` and `python` of this environment."""
    paths = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": paths, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(["bash", "-e", "-c", text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (text, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def look_at(words: list[str], folder: Path) -> None:
    """Start the viewer and open its first page."""
    start = [sys.executable, "-c", "from metareward.cli.main import main; main()", *words]
    process = subprocess.Popen(start, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = next(line for line in process.stdout if "http://" in line).split()[-1]
        with build_opener(HTTPCookieProcessor()).open(address, timeout=120) as answer:
            assert "<h1" in answer.read().decode()
    finally:
        process.terminate()
        process.wait()


def run_step(step: Step, text: str, folder: Path) -> None:
    """Write the step's file, or run its lines and compare what they print."""
    if step.name:
        (folder / step.name).write_text(text, encoding="utf-8")
        return
    if step.language == "python":
        text = f"python - <<'END'\n{text}END\n"
    lines = [line.replace(*SMALLER) for line in text.splitlines() if not line.startswith(NOT_RUN)]
    viewed = [line for line in lines if line.startswith("metareward view") and "--export" not in line]
    for line in viewed:
        look_at(shlex.split(line)[1:], folder)
    printed = script("\n".join(line for line in lines if line not in viewed), folder)
    assert missing_lines(step.prints, printed) == [], (text, printed)


def says_four(body: dict[str, Any], _: int) -> Answer:
    return Answer(completion(*(choice("It does what was asked for. Score: 4", i) for i in range(body["n"]))))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("names", [NAMES[:2], NAMES[2:]])
def test_every_step_runs(tmp_path: Path, names: tuple[str, ...]) -> None:
    """As a reader goes through them; the second tutorial goes on in the folder of the first."""
    with served_beside(says_four) as server:
        for step in (step for name in names for step in steps(name) if step.language != "yaml" or step.name):
            text = step.text.replace("http://127.0.0.1:8000", server.url)
            if DEMO_PROMPT in text:
                text = text.replace(DEMO_PROMPT, ids(tmp_path / "runs/pocket-1/iter-2")[0])
            run_step(step, text, tmp_path)
