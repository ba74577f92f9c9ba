"""Progress: bars on a terminal, few plain lines elsewhere, totals that end as what was really done."""

import io
import os
import pty
from dataclasses import dataclass

from rich.console import Console

from metareward.generation.progress import (
    SILENT,
    BarProgress,
    LineProgress,
    SilentProgress,
    final_totals,
    terminal_progress,
)

TOTAL = {"prompts": 10, "answers": 70, "judgments": 770}


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def lines() -> tuple[LineProgress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock(100.0)
    return LineProgress(stream, 5.0, clock), stream, clock


def test_at_most_one_line_in_five_seconds() -> None:
    progress, stream, clock = lines()
    progress.start("generating", TOTAL)
    for _ in range(200):
        clock.now += 0.1
        progress.advance("judgments", 1)
    assert 3 <= stream.getvalue().count("\n") <= 4


def test_a_line_tells_counts_rates_and_the_time_left() -> None:
    progress, stream, clock = lines()
    progress.start("generating", TOTAL)
    progress.advance("answers", 7)
    progress.advance("judgments", 7)
    clock.now += 10
    progress.advance("judgments", 70)
    progress.advance("answers", 7)
    clock.now += 10
    progress.advance("answers", 0)
    first, second = stream.getvalue().splitlines()
    assert first == (
        "generating: prompts 0/10 (0.0/s), answers 7/70 (0.7/s), judgments 77/770 (7.7/s), more than 1 min 39 s left"
    )
    assert second == (
        "generating: prompts 0/10 (0.0/s), answers 14/70 (0.7/s), judgments 77/770 (3.9/s), about 3 min 18 s left"
    )


def test_the_time_left_counts_a_kind_from_when_it_began_and_prompts_not_at_all() -> None:
    progress, stream, clock = lines()
    progress.start("evaluating", {"prompts": 64, "answers": 100, "judgments": 200})
    for done in range(1, 52):  # answers first, two seconds each; then the first judgments
        clock.now += 2
        progress.advance("answers", 1)
        progress.advance("judgments", 10 * (done == 46))
        progress.advance("prompts", int(done == 47))
        progress.advance("judgments", 10 * (done == 50))
    last = stream.getvalue().splitlines()[-3:]
    assert [line.rpartition(", ")[2] for line in last] == [
        "more than 1 min 50 s left",  # judgments haven't begun
        "more than 1 min 44 s left",
        "about 3 min 00 s left",
    ], last


def test_a_stage_gone_through_ends_with_what_it_took() -> None:
    progress, stream, clock = lines()
    progress.start("generating", TOTAL)
    progress.advance("prompts", 10)
    progress.advance("judgments", 500)
    clock.now += 3700
    progress.finish()
    assert stream.getvalue() == (
        "generating: prompts 10/10 (0.0/s), answers 0/0 (0.0/s), judgments 500/500 (0.1/s), ended after 1 h 01 min\n"
    )


def test_a_stage_that_was_stopped_keeps_its_totals() -> None:
    assert final_totals({"prompts": 9, "answers": 63}, {"prompts": 10, "answers": 70}) == {"prompts": 10, "answers": 70}
    assert final_totals({"steps": 9}, {"steps": 10}) == {"steps": 10}


def test_unknown_roles_and_empty_steps_do_no_harm() -> None:
    progress, stream, clock = lines()
    progress.advance("answers", 1)
    progress.start("[evaluating]", {"prompts": 0})
    clock.now += 6
    progress.advance("prompts", 0)
    progress.advance("answers", 1)
    progress.finish()
    progress.advance("prompts", 1)
    assert stream.getvalue().splitlines() == [
        "[evaluating]: prompts 0/0 (0.0/s), about 0 s left",
        "[evaluating]: prompts 0/0 (0.0/s), ended after 6 s",
    ]


def test_more_than_was_expected_raises_the_total() -> None:
    progress, stream, clock = lines()
    progress.start("s", {"prompts": 2})
    clock.now += 6
    progress.advance("prompts", 3)
    assert "prompts 3/3 (0.5/s), about 0 s left" in stream.getvalue()


def test_one_progress_serves_many_stages() -> None:
    progress, stream, clock = lines()
    for stage in ("first", "second"):
        progress.start(stage, {"prompts": 1})
        clock.now += 1
        progress.advance("prompts", 1)
        progress.finish()
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == ["first", "second"]
    assert stream.getvalue().count("prompts 1/1 (1.0/s)") == 2


def test_bars_show_every_role_and_end_final_totals() -> None:
    stream = io.StringIO()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=100))
    for _ in range(2):
        progress.start("[evaluating]", TOTAL)
        progress.advance("prompts", 10)
        progress.advance("judgments", 500)
        progress.advance("nobody", 1)
        progress.finish()
        progress.finish()
    progress.advance("prompts", 1)
    text = stream.getvalue()
    assert text.count("[evaluating]") == 2
    assert "10/10" in text and "500/500" in text and "0/0" in text


def test_a_stream_that_is_no_terminal_gets_lines() -> None:
    assert isinstance(terminal_progress(io.StringIO()), LineProgress)


def test_a_terminal_gets_bars() -> None:
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(follower, "w") as terminal:
        assert isinstance(terminal_progress(terminal), BarProgress) == (
            os.environ.get("TERM") not in ("dumb", "unknown")
        )


def test_silence() -> None:
    SILENT.start("s", TOTAL)
    SILENT.advance("prompts", 1)
    SILENT.finish()
    assert isinstance(SILENT, SilentProgress)
