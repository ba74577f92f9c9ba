"""The meta-judge's question and the reading of its answer (Meta-Rewarding section 2.2).

Two judgments of one answer are shown as Judgment A and Judgment B. A verdict names their indices, not their places, so
that nothing has to be matched up by order later.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from metareward.method.judge import MARK, MARKS, SCORE, Finish, Tail, anchor, last_tail, unwrapped, with_system
from metareward.method.template import LOOKALIKE_COLON, Template, conversation, mask_label, render
from metareward.types import Message, Messages, Prompt, Tied, Truncated, Unparsed, Verdict, Won

WINNER = anchor("winner")


@dataclass(frozen=True, slots=True)
class MetaRubric:
    """How judgments are compared: the meta-judge's prompt text, and whether it sees the scores they end in.

    With the scores in view the higher one comes to win nearly always (Meta-Rewarding Table 5: 97.68 % in the second
    iteration); ``hide_scores`` takes them away.
    """

    template: Template
    hide_scores: bool = False
    system: str | None = None

    def __post_init__(self) -> None:
        """Raise `UserError` when a slot is missing."""
        self.template.require("question", "answer", "judgment_a", "judgment_b")

    def ask(self, prompt: Prompt, answer: str, first: str, second: str) -> Messages:
        """The meta-judge's question about the judgments ``first`` (shown as A) and ``second`` (shown as B)."""
        slots = {
            "question": conversation(prompt.messages),
            "answer": mask_label(answer, "Winner"),
            "judgment_a": self._shown(first),
            "judgment_b": self._shown(second),
        }
        return with_system(self.system, (Message("user", render(self.template, slots)),))

    def _shown(self, judgment: str) -> str:
        return without_winners(without_scores(judgment) if self.hide_scores else judgment)


def without_winners(text: str) -> str:
    """``Winner:`` with a look-alike colon, so that a meta-judge which quotes it doesn't give a verdict by that."""
    return WINNER.sub(lambda found: found[0][:-1] + LOOKALIKE_COLON, text)


_ORNAMENT = " \t\u00a0#>-*_`\"'([{$"
_QUALIFIERS = re.compile(r"(?:\b(?:the|my|final|total|overall)\b[ \t*_]*)+$", re.IGNORECASE)
_NUMBER_LINE = re.compile(rf"{MARK}*[+\-−–]?\.?\d")


def without_scores(text: str) -> str:
    """``text`` without what follows each ``Score:`` on its line, or on the next line when the number stands there."""
    if not SCORE.search(text):
        return text
    kept: list[str] = []
    awaiting = False  # a "Score:" has been passed, but not yet its number
    for line in text.splitlines(keepends=True):
        found = SCORE.search(line)
        if found:
            kept.append(_before_score(line[: found.start()]))
            awaiting = _is_blank(line[found.end() :])
        elif not (awaiting and _NUMBER_LINE.match(unwrapped(line))):
            kept.append(line)
            awaiting = awaiting and _is_blank(line)
        else:
            awaiting = False
    return "".join(kept).rstrip()


def _is_blank(line: str) -> bool:
    return not unwrapped(line).strip(f"{MARKS}\r\n")


def _before_score(line: str) -> str:
    before = _QUALIFIERS.sub("", line.rstrip(_ORNAMENT)).rstrip(_ORNAMENT)
    return f"{before}\n" if before else ""


_NAME = r"judge?ments?"
_NAMED = re.compile(rf"{MARK}*(?:the\s+)?{_NAME}{MARK}*([A-Z]|\d+)(?![^\W_])", re.IGNORECASE)
_LETTER = re.compile(rf"{MARK}*([AB])(?:[.!]|{MARK})*", re.IGNORECASE)
_TIE = re.compile(
    rf"{MARK}*(?:(?:it|this)(?:['’]s|\s+is)\s+)?(?:an?\s+)?"
    r"(?:tied?|draw|neither|none|both|equal(?:ly)?|no\s+winner)(?![^\W_])",
    re.IGNORECASE,
)
_TIE_WORD = re.compile(r"(?<![^\W_])(?:tied?)(?![^\W_])", re.IGNORECASE)
_NOTHING = re.compile(rf"(?:[.!]|{MARK})*")
# "a" is a name after "judgment", or where no word follows that it could be the article of.
_NAMES_A = re.compile(rf"(?i:{_NAME}){MARK}*[Aa](?![^\W_])|(?<![^\W_])[Aa](?![^\W_])(?!\s+[a-z])")
_NAMES_B = re.compile(r"(?<![^\W_])[Bb](?![^\W_])")


def read_verdict(text: str, finish: Finish, first: int, second: int) -> Verdict:
    """The winner that a meta-judge's completion ends in: ``first`` was shown as A, ``second`` as B. Never raises.

    Accepted after the last ``Winner:``: ``Judgment A``, ``**Judgement B**``, ``[B]``, also alone on the next line; a
    line that begins with a word for a tie (``tie``, ``draw``, ``neither``, ``both``) is `Tied`. Otherwise `Unparsed`:
    ``contradictory`` when the line names both judgments, or a tie and a judgment; ``out_of_range`` for a judgment that
    wasn't shown (``Judgment C``); else ``missing``. A text cut off by the token limit is `Truncated`.
    """
    if finish == "length":
        return Truncated()
    tail = last_tail(text, WINNER)
    if tail is None:
        return Unparsed("missing")
    named = _LETTER.fullmatch(tail.text) or _NAMED.match(tail.text)
    if named:
        return _won(tail, named, first, second)
    tie = _TIE.match(tail.text)
    return _tied(tail, tie) if tie else Unparsed("missing")


def _won(tail: Tail, named: re.Match[str], first: int, second: int) -> Verdict:
    letter, rest = named[1].upper(), tail.text[named.end() :]
    if letter not in ("A", "B"):
        return Unparsed("out_of_range")
    if tail.must_be_alone and not _NOTHING.fullmatch(rest):
        return Unparsed("missing")
    other = _NAMES_B if letter == "A" else _NAMES_A
    if other.search(rest) or _TIE_WORD.search(rest):
        return Unparsed("contradictory")
    return Won(first if letter == "A" else second)


def _tied(tail: Tail, tie: re.Match[str]) -> Verdict:
    rest = tail.text[tie.end() :]
    if tail.must_be_alone and not _NOTHING.fullmatch(rest):
        return Unparsed("missing")
    one_named = (_NAMES_A.search(rest) is None) != (_NAMES_B.search(rest) is None)
    return Unparsed("contradictory") if one_named else Tied()
