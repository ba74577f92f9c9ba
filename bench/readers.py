"""How often do readers of judgments read the score right? On tests/golden/endings.jsonl, which has the right readings.

The readers of other projects are their published patterns, reimplemented in a few lines; no code of theirs runs. Their
rubrics ask for "Score: <points>" as ours does, except distilabel's, whose pattern reads "Rating:"; here it reads
"Score:". Prints a table and writes bench/results/readers.json, which `make docs` puts into docs/judge.md.

    python bench/readers.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from metareward.method.judge import Rubric
from metareward.types import Scored

ROOT = Path(__file__).parents[1]
ENDINGS = ROOT / "tests" / "golden" / "endings.jsonl"
RESULTS = ROOT / "bench" / "results" / "readers.json"
SCORES = (0, 1, 2, 3, 4, 5)
RUBRIC = Rubric.load("judge")
Reader = Callable[[str], float | None]


def ours(text: str) -> float | None:
    """The reader of this project."""
    reading = RUBRIC.read(text)
    return reading.score if isinstance(reading, Scored) else None


def nemo_aligner(text: str) -> float | None:
    """NeMo-Aligner, pull request 321: the first match, anything that `float` takes, kept if it is on the scale."""
    found = re.search(r"(?i)(?:Score|Points): ([0-9\.]+)", text)
    try:
        score = float(found[1]) if found else None
    except ValueError:
        return None
    return score if score is not None and 0 <= score <= 5 else None


def lucidrains(text: str) -> float | None:
    """self-rewarding-lm-pytorch as meant: a line of its own, whole numbers. Version 0.2.12 raises on every match."""
    found = re.search(r"\nScore: ([0-9\.]+)\n", text)
    return float(found[1]) if found and found[1].isnumeric() else None


def oxen(text: str) -> float | None:
    """Oxen-AI and schauppi, Self-Rewarding-Language-Models: the first match, one digit; -1 when there is none."""
    found = re.search(r"[Ss]core: ([0-5])", text)
    return float(found[1]) if found else None


def distilabel(text: str) -> float | None:
    """distilabel 1.5, UltraFeedback: the first whole number on the first line with the label, on any scale."""
    found = re.search(r"Score: (.+?)(?:\n|$)", text)
    numbers = re.findall(r"\b\d+\b", found[1]) if found else []
    return float(numbers[0]) if numbers else None


READERS: Mapping[str, Reader] = {
    "metareward": ours,
    "NeMo-Aligner (PR 321)": nemo_aligner,
    "Oxen-AI, schauppi": oxen,
    "distilabel UltraFeedback": distilabel,
    "self-rewarding-lm-pytorch": lucidrains,
}


def endings() -> list[dict[str, Any]]:
    """The corpus: ``text``, ``truth`` (None without a verdict), ``source`` and, if the text was cut off, ``finish``."""
    lines = ENDINGS.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def outcomes(reader: Reader, cases: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many of ``cases`` are read right, rejected, read wrong. Of those without a verdict a rejection is right."""
    counts = {"right": 0, "rejected": 0, "wrong": 0}
    for case in cases:
        read = reader(case["text"])
        counts["right" if read == case["truth"] else "rejected" if read is None else "wrong"] += 1
    return counts


def measure() -> dict[str, Any]:
    """The outcomes of every reader: of endings with a verdict overall and by true score, and of those without one."""
    cases = [case for case in endings() if "finish" not in case]
    with_verdict = [case for case in cases if case["truth"] is not None]
    without = [case for case in cases if case["truth"] is None]
    return {
        name: {
            "with a verdict": outcomes(reader, with_verdict),
            "by score": {
                str(score): outcomes(reader, (case for case in with_verdict if case["truth"] == score))
                for score in SCORES
            },
            "without a verdict": outcomes(reader, without),
        }
        for name, reader in READERS.items()
    }


def page() -> str:
    """The tables of docs/judge.md, from the stored results."""
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    first = next(iter(results.values()))
    with_verdict, without = (sum(first[f"{kind} a verdict"].values()) for kind in ("with", "without"))
    head = [
        "reader",
        f"read right, of {with_verdict} with a verdict",
        "rejected",
        "read wrong",
        f"read anyway, of {without} without a verdict",
        "rejected by true score 0, 1, 2, 3, 4, 5",
    ]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for name, result in results.items():
        counts = result["with a verdict"]
        shares = (_percent(counts[kind], with_verdict) for kind in ("right", "rejected", "wrong"))
        by_score = (
            _percent(each["rejected"], sum(each.values())).removesuffix(" %") for each in result["by score"].values()
        )
        anyway = _percent(result["without a verdict"]["wrong"], without)
        rows.append([name, *shares, anyway, ", ".join(by_score) + " %"])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def main() -> None:
    """Measure, write, print."""
    RESULTS.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
    print(page())


if __name__ == "__main__":
    main()
