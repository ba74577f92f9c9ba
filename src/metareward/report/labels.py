"""Codes in plain words: why a pair was dropped, how a reading or a verdict ended."""

from __future__ import annotations

import unicodedata

from metareward.types import Reading, Scored, Tied, Truncated, Unparsed, Verdict, Won

_DROPS = {
    "too_few_valid_answers": "too few answers with enough readable judgments",
    "all_scores_equal": "all answers scored the same",
    "tiers_overlap": "the best and the worst tier overlap, as rho is 1/2 or more",
    "chosen_answer_too_long": "chosen answer over the length limit",
    "no_dispute": "no answer in dispute",
    "no_variance": "the judge agreed with itself on every answer",
    "too_few_judgments": "too few readable judgments of the disputed answer",
    "too_few_battles": "too few readable meta-judgments",
    "all_ratings_equal": "all judgments rated the same",
    "same_judgment_text": "chosen and rejected judgment read the same",
    "chosen_judgment_too_long": "chosen judgment over the length limit",
}

_READINGS = {
    "scored": "readable",
    "missing": "no score found",
    "out_of_range": "outside the scale",
    "contradictory": "contradicts itself",
    "truncated": "cut off",
}


def drop_words(reason: str) -> str:
    """Why a pair was dropped; a reason from a newer version reads as its code."""
    return _DROPS.get(reason, reason.replace("_", " "))


def reading_count_words(code: str) -> str:
    """The name of one outcome in the summary's ``readings``."""
    return _READINGS.get(code, code.replace("_", " "))


def signed(value: float) -> str:
    """A rating: always with its sign, and a true minus."""
    return f"{value:+.2f}".replace("-", "−")


def reading_words(reading: Reading) -> str:
    """A judgment's outcome: the score, or why there is none."""
    if isinstance(reading, Scored):
        return f"{reading.score:g}"
    return _READINGS["truncated" if isinstance(reading, Truncated) else reading.reason]


def verdict_words(verdict: Verdict) -> str:
    """A meta-judgment's outcome, naming the judgment that won."""
    match verdict:
        case Won(winner):
            return f"judgment {winner} wins"
        case Tied():
            return "tie"
        case Truncated():
            return "cut off"
        case Unparsed("missing"):
            return "no winner named"
        case Unparsed(reason):
            return _READINGS[reason]


# --- Model text made safe to look at: what a screen would hide or obey is spelled out.
#
# Control characters could drive a terminal, bidi controls reorder a line, tag characters hide an instruction.
# Escaping for HTML is another matter and stays with the template.


_KEPT = frozenset("\n\t\u200c\u200d")  # line ends, tabs, and the two joiners that scripts and emoji need
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def visible(text: str) -> str:
    """``text`` with every hidden character spelled out: ``\\x00`` as ``␀``, a bidi override as ``⟨U+202E⟩``."""
    return "".join(_shown(char) for char in text.replace("\r\n", "\n"))


def _shown(char: str) -> str:
    if char in _KEPT or not _hidden(char):
        return char
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    return "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"


def _hidden(char: str) -> bool:
    # The supplementary variation selectors are marks, not controls, but draw nothing and can smuggle bytes.
    return unicodedata.category(char) in _HIDDEN_CATEGORIES or 0xE0100 <= ord(char) <= 0xE01EF
