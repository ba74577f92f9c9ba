"""Model against model, as it is shown."""

from __future__ import annotations

import io
import json
from pathlib import Path

from fake_run import fake_run
from rich.console import Console

from metareward.evaluation.win_rates import Duel
from metareward.report.facts import Evaluation
from metareward.report.tables import contests, contests_text
from metareward.report.write import write_report

WON = Duel("M0", "oracle", 62.54, 55.0, 70.01, 58.0, 3.24, 100, 30, 20, 2, 0.00001)
OWN = Duel("M0", "itself", 50.0, 40.0, 60.0, None, None, 0, 0, 3, 0, None)


def evaluation(*duels: Duel) -> Evaluation:
    return Evaluation("M2", 3, 1.0, {}, {}, duels)


def test_every_duel_is_a_row() -> None:
    first, second = contests([evaluation(WON, OWN)])
    assert first == (
        ("M2 against M0", "the oracle", "62.5 (55.0–70.0)", "58.0 ± 3.2", "100", "20", "30", "2", "p < 0.001")
    )
    assert second[1:4] == ("M2 itself", "50.0 (40.0–60.0)", "–") and second[-1] == "–"


def test_the_terminal_shows_what_was_fought_against_m0() -> None:
    assert contests_text([evaluation()]) is None
    later = Duel("M1", "oracle", 51.0, 45.0, 57.0, 50.0, 3.0, 10, 9, 1, 0, 1.0)
    table, stream = contests_text([evaluation(WON, later)]), io.StringIO()
    Console(file=stream, width=100).print(table)
    assert "M2 against M0" in stream.getvalue() and "against M1" not in stream.getvalue()


def test_the_page_has_them(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    path = run.iteration(1).evaluation / "model.json"
    told = json.loads(path.read_text())
    fields = {name: getattr(WON, name) for name in WON.__dataclass_fields__}
    path.write_text(json.dumps({**told, "duels": [fields]}))
    write_report(run)
    page = run.report.read_text()
    assert "M1 against M0" in page and "62.5 (55.0–70.0)" in page and 'href="#contests"' in page
