"""The text of a prompt trace."""

from dataclasses import replace
from pathlib import Path

from fake_run import fake_record, start, write_records

from metareward.report.prompt_trace import find_trace
from metareward.report.trace_text import trace_text
from metareward.storage.run_dir import RunDir
from metareward.types import PreferencePair, PromptRecord


def test_the_text_has_everything_that_was_generated(whole: RunDir) -> None:
    traces = (find_trace(whole, fake_record(1, number).prompt.id) for number in range(8))
    trace = next(trace for trace in traces if isinstance(trace.judge, PreferencePair))
    text = " ".join(trace_text(trace, width=400).split())
    for written in texts(trace.record):
        assert " ".join(written.split()) in text
    assert "CHOSEN" in text and "REJECTED" in text and "Battle matrix" in text


def texts(record: PromptRecord) -> list[str]:
    judgments = [j.text for c in record.candidates_K for j in c.judgments_N]
    metas = [m.text for m in record.dispute.meta] if record.dispute else []
    return [*(m.content for m in record.prompt.messages), *(c.text for c in record.candidates_K), *judgments, *metas]


def test_the_text_cannot_control_a_terminal_nor_be_read_as_markup(tmp_path: Path) -> None:
    run = start(tmp_path / "run")
    record = fake_record(1, 0)
    nasty = "\x1b]0;owned\x07 [bold red]x[/] [/nothing] \u202eevil"
    write_records(run, 1, [replace(record, candidates_K=(replace(record.candidates_K[0], text=nasty),), dispute=None)])
    text = trace_text(find_trace(run, record.prompt.id))
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "␛]0;owned␇ [bold red]x[/] [/nothing] ⟨U+202E⟩evil" in text


def test_lines_are_no_wider_than_asked(whole: RunDir) -> None:
    text = trace_text(find_trace(whole, fake_record(1, 1).prompt.id), width=90)
    assert max(map(len, text.split("\n"))) <= 90
