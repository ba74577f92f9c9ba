"""Length-controlled win rates of odd annotation files, against the official package.

``tests/golden/alpaca_official.json`` holds what ``get_length_controlled_winrate`` of alpaca_eval 0.6.6 (scikit-learn
1.9.1) returns for these made-up files and gamed rows. liblinear stops early, so other versions of it can choose another
C: the numbers hold for the pinned version.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest

from metareward.evaluation.alpaca_eval.data import BASELINE, Annotation, Annotations, Gamed
from metareward.evaluation.alpaca_eval.score import UNOFFICIAL, evaluate

EXPECTED = json.loads((Path(__file__).parents[2] / "golden" / "alpaca_official.json").read_text(encoding="utf-8"))
PROMPTS = 150
Rows = list[tuple[int, float | None, int, int]]  # number, preference in [1, 2], characters of baseline and model


def plain(seed: int, count: int = PROMPTS, liking: float = 1.0, quality: float = -0.5) -> Rows:
    """A judge that likes length and has a mind of its own."""
    draw = random.Random(f"alpaca {seed}")
    rows: Rows = []
    for number in range(count):
        base, own = draw.randint(200, 3000), draw.randint(50, 4000)
        logit = quality + liking * (own - base) / 1000 + draw.gauss(0, 1.5)
        rows.append((number, round(1 + 1 / (1 + 2.718281828459045**-logit), 10), base, own))
    return rows


def odd_files() -> dict[str, Rows]:
    """Annotation files as they come, by name."""
    draw, base = random.Random("odd files"), plain(1)
    shuffled, few = list(base), plain(8, 3)
    draw.shuffle(shuffled)
    return {
        "plain": base,
        "second plain": plain(2, liking=0.2, quality=0.5),
        "likes brevity": plain(3, liking=-2.0),
        "strong model": plain(4, quality=3.0),
        "weak model": plain(5, quality=-4.0),
        "ties only, lengths differ": [(n, 1.5, b, o) for n, _, b, o in base],
        "half ties": [(n, 1.5 if n % 2 else p, b, o) for n, p, b, o in base],
        "historic zeros for draws": [(n, 0.0 if n % 3 == 0 else p, b, o) for n, p, b, o in base],
        "labels instead of shares": [(n, 2.0 if p and p > 1.5 else 1.0, b, o) for n, p, b, o in base],
        "all won": [(n, 2.0, b, o) for n, _, b, o in base],
        "all lost": [(n, 1.0, b, o) for n, _, b, o in base],
        "gaps": [row for row in base if row[0] % 7],
        "only the last third": base[100:],
        "shuffled": shuffled,
        "reversed": base[::-1],
        "unreadable ones": [(n, None if n % 5 == 0 else p, b, o) for n, p, b, o in base],
        "all but two unreadable": [(n, p if n in (3, 90) else None, b, o) for n, p, b, o in base],
        "two rows": plain(6, 2),
        "three rows": few,
        "ten rows": plain(9, 10),
        "one difference of length": [(n, p, 700, 500) for n, p, _, _ in base],
        "equal lengths but one": [(n, p, 700, 700 if n else 300) for n, p, _, _ in base],
        "empty outputs": [(n, p, b, 0) for n, p, b, _ in base],
        "very long outputs": [(n, p, b, o * 1000) for n, p, b, o in base],
        "one outlier": [(n, p, b, 10**7 if n == 4 else o) for n, p, b, o in base],
        # Three that choose another C where each of the ten fits starts its own random state.
        "first of another C": plain(20, liking=-1.0, quality=-1.0),
        "second of another C": plain(24, liking=1.0, quality=1.0),
        "third of another C": plain(35, liking=-1.0, quality=2.0),
        "model longer in every row": [(n, p, b, b + 10 + n) for n, p, b, _ in base],
    }


def gamed_rows() -> list[tuple[int, float, float, float]]:
    """Number, preference in [0, 1], scaled length difference and difficulty of 2 x PROMPTS rows."""
    draw = random.Random("gamed")
    hard = [round(draw.gauss(0, 1), 6) for _ in range(PROMPTS)]
    rows = []
    for shift in (-1.0, 1.0):
        for number in range(PROMPTS):
            length = round(draw.gauss(shift, 1), 6)
            share = 1 / (1 + 2.718281828459045 ** (0.9 * length - 0.4 * hard[number] + draw.gauss(0, 1)))
            rows.append((number, round(share, 8), length, hard[number]))
    return rows


FILES, GAMED = odd_files(), gamed_rows()


def test_there_are_at_least_20_files_and_each_has_its_numbers() -> None:
    assert len(FILES) >= 20
    assert FILES.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", FILES)
def test_an_odd_file_has_the_official_package_s_numbers(name: str) -> None:
    gamed = Gamed(*(np.array(column) for column in list(zip(*GAMED, strict=True))[1:]))
    difficulty = np.array([hard for _, _, _, hard in GAMED[:PROMPTS]])
    rows = tuple(
        Annotation(n, None if p is None else 0.5 if p == 0 else p - 1, base, own) for n, p, base, own in FILES[name]
    )
    (each,) = evaluate([Annotations("m", BASELINE, "", rows)], difficulty, gamed)
    assert each.method == UNOFFICIAL and each.controlled is not None
    assert each.controlled.win_rate == pytest.approx(EXPECTED[name]["length_controlled_winrate"], abs=1e-9)
    assert each.controlled.standard_error == pytest.approx(EXPECTED[name]["lc_standard_error"], abs=1e-9)
    assert each.raw.win_rate == pytest.approx(EXPECTED[name]["win_rate"], abs=1e-9)
