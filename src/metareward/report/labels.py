"""Readable labels of codes: drop reasons, outcomes of reading, verdicts."""

from __future__ import annotations

from metareward.method.scores import AnswerScore
from metareward.types import Reading, Scored, Tied, Truncated, Unparsed, Verdict, Won

_DROPS = {
    "too_few_valid_answers": "fewer than two answers with enough readable judgments",
    "answers_truncated": "fewer than two answers that the token limit didn't cut off",
    "all_scores_equal": "all answers scored the same",
    "tiers_overlap": "upper and lower score tiers overlap (rho of 1/2 or more)",
    "margin_too_small": "the judge isn't sure enough that the scores differ",
    "chosen_answer_too_long": "chosen answer over the length limit",
    "no_dispute": "the meta-judge compared no judgments",
    "no_variance": "the judgments of each answer all gave the same score",
    "too_few_judgments": "too few readable judgments of one answer",
    "too_few_battles": "too few readable meta-judgments",
    "all_ratings_equal": "all judgments have the same Elo rating",
    "same_judgment_text": "chosen and rejected judgment have the same text",
    "chosen_judgment_too_long": "chosen judgment over the length limit",
}

_READINGS = {
    "scored": "readable",
    "missing": "no score found",
    "out_of_range": "outside the scale",
    "ambiguous": "ambiguous",
    "truncated": "truncated",
}


def drop_label(reason: str) -> str:
    """Why a pair was dropped; an unknown reason (of a newer version) is shown as its code."""
    return _DROPS.get(reason, reason.replace("_", " "))


def reading_code_label(code: str) -> str:
    """The label of one key of ``readings`` in ``pairs/summary.json``."""
    return _READINGS.get(code, code.replace("_", " "))


def characters(text: str) -> str:
    """``1,204 characters``."""
    return f"{len(text):,} character{'' if len(text) == 1 else 's'}"


def format_rating(rating: float) -> str:
    """An Elo rating, always with its sign, and with a true minus."""
    return f"{rating:+.2f}".replace("-", "−")


def reading_label(reading: Reading) -> str:
    """The score of a judgment, or why it has none."""
    if isinstance(reading, Scored):
        return f"{reading.score:g}"
    return _READINGS["truncated" if isinstance(reading, Truncated) else reading.reason]


def score_label(score: AnswerScore) -> str:
    """An answer's score with its standard error, if that is known."""
    return f"{score.mean:.2f}" + ("" if score.uncertainty is None else f" ± {score.uncertainty:.2f}")


def verdict_label(verdict: Verdict) -> str:
    """The judgment that won, a tie, or why there is no verdict."""
    match verdict:
        case Won(winner):
            return f"judgment {winner} wins"
        case Tied():
            return "tie"
        case Truncated():
            return _READINGS["truncated"]
        case Unparsed("missing"):
            return "no winner named"
        case Unparsed(reason):
            return _READINGS[reason]


# Control characters can control a terminal, bidirectional overrides reorder a line, tag characters hide instructions.
# Escaping for HTML is separate and happens in the templates.
