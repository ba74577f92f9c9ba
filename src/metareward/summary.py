"""What became of one iteration's records: the figures of ``pairs/summary.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import fmean

from metareward.monitors import findings, position_statistics, readings_summary
from metareward.pairs import PairSet
from metareward.rubric import Rubric
from metareward.types import PromptRecord


def summarize(t: int, records: Sequence[PromptRecord], pairs: PairSet, rubric: Rubric) -> dict[str, object]:
    """Counts, reasons of drops, position statistics, readings, findings and mean lengths (characters)."""
    reasons: dict[str, Counter[str]] = {"actor": Counter(), "judge": Counter()}
    for drop in pairs.dropped:
        reasons[drop.kind][drop.reason] += 1
    candidates = [answer for record in records for answer in record.candidates_K]
    return {
        "iteration": t,
        "prompts": len(records),
        "actor_pairs": len(pairs.actor),
        "judge_pairs": len(pairs.judge),
        "dropped": {kind: dict(counts) for kind, counts in reasons.items()},
        "weights": asdict(pairs.weights),
        "position": position_statistics(records).as_dict(),
        "readings": readings_summary(records),
        "findings": [asdict(finding) for finding in findings(records, pairs, rubric.low, rubric.high)],
        "chosen_chars": _mean_length(pair.chosen for pair in pairs.actor),
        "rejected_chars": _mean_length(pair.rejected for pair in pairs.actor),
        "answer_chars": _mean_length(answer.text for answer in candidates),
        "judgment_chars": _mean_length(judgment.text for answer in candidates for judgment in answer.judgments_N),
    }


def _mean_length(texts: Iterable[str]) -> float | None:
    lengths = [len(text) for text in texts]
    return fmean(lengths) if lengths else None
