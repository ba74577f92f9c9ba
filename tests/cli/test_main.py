from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from run_folders import llama_folder, small_run, write_prompts
from whole_runs import GROUP, invoke, parse

from metareward.cli.main import main
from metareward.config.schema import load_recipe

ROOT = Path(__file__).parents[2]
COMMANDS = [
    "run",
    "plan",
    "status",
    "show",
    "view",
    "pairs",
    "report",
    "init",
    "pocket",
    "pocket build",
    "pocket sample",
]
COMMANDS += ["evaluate", "evaluate alpaca-eval", "evaluate arena-hard", "evaluate mt-bench", "evaluate judge-quality"]
COMMANDS += ["list", "compare", "experiment", "push", "verify", "launch"]
COMMANDS += [
    "seed",
    "seed build",
    "prompts",
    "prompts propose",
    "sft",
    "model",
    "check-judge",
]


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """What a shell would get back from ``metareward`` with these words."""
    monkeypatch.setattr(sys, "argv", ["metareward", *words])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_explains_itself(command: str) -> None:
    told = invoke([*command.split(), "--help"])
    assert told.exit_code == 0
    assert "Usage:" in told.output


def test_there_are_no_other_commands() -> None:
    listed = [name for name in COMMANDS if " " not in name]
    assert sorted(GROUP.list_commands(typer.Context(GROUP))) == sorted(listed)  # type: ignore[attr-defined]


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "--version") == 0
    assert re.fullmatch(r"metareward \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, metareward.cli.main; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy", "scipy", "pydantic", "pyarrow", "matplotlib"} & set(loaded)


def test_a_run_draws_nothing_until_it_reports() -> None:
    code = "import sys, metareward.pipeline.loop; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "matplotlib", "sklearn"} & set(loaded)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("plan pokket", "pokket: no such recipe file or run folder; the nearest preset is 'pocket'"),
        ("plan pocket --set answer.k=3", "--set answer.k=3: answer: unknown key; the nearest known one is answers"),
        ("run pocket --set answers.k=three", "--set answers.k=three: expected a whole number"),
        ("run pocket --set answers.k", "--set answers.k: expected key=value with a dotted key, such as answers.k=7"),
        ("run typo.yaml", "typo.yaml:2: anwsers: unknown key; the nearest known one is answers"),
        ("run broken.yaml", "broken.yaml:2: not valid YAML: "),
        ("run wrong.yaml", 'wrong.yaml:2: seed: "one": expected a whole number'),
        ("plan meta-rewarding", "preset meta-rewarding: model: must be given: M0: a Hugging Face model folder"),
        ("status nowhere", "nowhere: this is no run folder"),
        ("status no\x1bwhere", "no␛where: this is no run folder"),
        ("show nowhere --prompt a", "nowhere: this is no run folder"),
        ("report nowhere", "nowhere: this is no run folder"),
        ("pairs nowhere", "nowhere: this is no run folder (there is no such folder)"),
        ("plan pocket --like nowhere", "nowhere: this is no run folder"),
        ("run runs/nowhere", "runs/nowhere: no such recipe file or run folder"),
        ("run .", ".: this is no run folder (resolved.json is missing); fix: name one, such as runs/NAME"),
        ("view . --export page.html --select fliped=1", "'fliped' is no field of a selection; fix: use t, q, within"),
        ("view . --select t=2", "view: --select and --prompt are for --export"),
        ("view . --export-pairs pairs.jsonl --select t=2", "view: --select and --prompt are for --export"),
        ("init --preset pokket", "--preset pokket: no such preset; the nearest preset is 'pocket'"),
        ("init typo.yaml", "typo.yaml: there already, and is kept"),
    ],
)
def test_a_user_s_mistake_is_one_line_and_2(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, line: str
) -> None:
    (here / "typo.yaml").write_text("extends: pocket\nanwsers: {k: 3}\n")
    (here / "broken.yaml").write_text("seed: [\n")
    (here / "wrong.yaml").write_text("extends: pocket\nseed: one\n")
    before = sorted(here.iterdir())
    assert call(monkeypatch, *words.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"metareward: {line}") and captured.err.count("\n") == 1
    assert sorted(here.iterdir()) == before


@pytest.mark.parametrize("words", ["plan", "run pocket --nonsense", "nonsense", "status a b", "plan pocket --rate x"])
def test_words_that_make_no_command_are_refused(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    assert call(monkeypatch, *words.split()) == 2


@pytest.mark.parametrize(("ignored", "blow"), [(False, signal.SIGINT), (True, signal.SIGTERM)])
def test_an_end_from_outside_is_one_line_and_130(ignored: bool, blow: signal.Signals) -> None:
    """A background job of a shell script starts with Ctrl-C ignored; it can still be ended."""
    begin = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); " if ignored else ""
    endless = [
        sys.executable,
        "-c",
        f"{begin}from metareward.cli.main import main; main()",
        "pocket",
        "sample",
        "--count",
        "300000",
    ]
    with subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        time.sleep(0.1)
        process.send_signal(blow)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "metareward: stopped; what is finished is kept, and the same command goes on from there\n"


def test_a_reader_that_goes_away_is_no_mistake() -> None:
    command = [
        sys.executable,
        "-c",
        "from metareward.cli.main import main; main()",
        "pocket",
        "sample",
        "--count",
        "300000",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


def test_plan_prints_the_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    llama_folder(tmp_path / "m")
    write_prompts(tmp_path / "p.jsonl", 20_000)
    given = ("--set", "model=m", "--set", "prompts.source=p.jsonl")
    assert call(monkeypatch, "plan", "llama3-8b-8gpu", "--machine", "8x80", *given) == 0
    assert "550,000" in capsys.readouterr().out


def test_init_then_plan(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "init", "mine.yaml") == 0
    assert load_recipe("mine.yaml", ["name=pocket"]) == load_recipe("pocket")
    assert call(monkeypatch, "plan", "mine.yaml") == 0
    assert "mine: at most" in capsys.readouterr().out


def test_status_pairs_show_and_report_of_a_run(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run(here / "run")
    assert call(monkeypatch, "status", "run") == 0
    assert "1 of 4 iterations done" in capsys.readouterr().out
    assert call(monkeypatch, "pairs", "run", "--set", "iterations.1.rho=0.2") == 0
    assert "written to run/rebuilt/" in capsys.readouterr().out
    assert call(monkeypatch, "pairs", "run", "--out", "elsewhere") == 0
    assert (here / "elsewhere/iter-1/pairs/actor.parquet").is_file()
    assert call(monkeypatch, "show", "run", "--prompt", "p001", "--iteration", "1") == 0
    assert "What is the capital of country 1?" in capsys.readouterr().out
    assert call(monkeypatch, "report", "run") == 0
    assert run.report.is_file()


def test_pocket_sample_shows_all_roles(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(monkeypatch, "pocket", "sample", "--count", "40") == 0
    shown = capsys.readouterr().out
    assert all(f"[{part}]" in shown for part in ("actor", "judge", "meta_judge"))


def documented() -> Iterator[str]:
    """Every command line in the documents, with lines that end in a backslash joined."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"^```[a-z]*\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                if line.lstrip("$ ").startswith("metareward "):
                    yield line.lstrip("$ ")


@pytest.mark.parametrize("line", [*documented(), "metareward plan pocket --set seed=1"])
def test_the_commands_in_the_documents_parse(line: str) -> None:
    parse(shlex.split(line, comments=True)[1:])


@pytest.mark.parametrize(
    "line", ["plan", "plan pocket --sett a=1", "nonsense", "pocket build", "pocket sample --count 0"]
)
def test_the_parser_of_the_test_above_would_notice(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)missing|no such|at least|greater|range"):
        parse(line.split())
