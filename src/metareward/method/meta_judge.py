"""The meta-judge's prompt and the parser of its verdicts (Meta-Rewarding section 2.2).

Two judgments of one answer are shown as Judgment A and Judgment B. A verdict names the winner's index instead of its
position, so that no later step has to match verdicts to judgments by order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from metareward.method.judge import (
    MARK,
    MARKS,
    SCORE,
    ChatMessages,
    Finish,
    anchor,
    as_dicts,
    last_tail,
    single_turn,
    strip_tags,
    with_system,
)
from metareward.method.template import Template, conversation, load_template, render
from metareward.method.verdict_format import Kind, VerdictFormat, winner_format
from metareward.types import Message, Messages, Prompt, Tied, Truncated, Unparsed, Verdict, Won

WINNER = anchor("winner")


@dataclass(frozen=True, slots=True)
class MetaRubric:
    """How judgments are compared: the meta-judge's prompt text, whether scores are hidden, and a system prompt.

    When the meta-judge sees the scores, the higher one wins nearly always (Meta-Rewarding table 5: 97.68 % in the
    second iteration); ``hide_scores`` removes them from the judgments. ``kind`` and ``words`` say how the prompt asks
    for the winner; no words: `WINNER_WORDS`.
    """

    template: Template
    hide_scores: bool = False
    system_prompt: str | None = None
    kind: Kind = "label"
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise `UserError` when the text lacks a slot."""
        self.template.require("question", "answer", "judgment_a", "judgment_b")

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        hide_scores: bool = False,
        system_prompt: str | None = None,
        kind: Kind = "label",
        words: Sequence[str] = (),
    ) -> MetaRubric:
        """The rubric with the packaged text of that name (``metajudge``), or with the ``.txt`` file at that path.

        Raises `UserError` when there is no such text or when it lacks a slot.
        """
        return cls(load_template(name_or_path), hide_scores, system_prompt, kind, tuple(words))

    @property
    def verdict(self) -> VerdictFormat:
        """How the winner is written, read and masked."""
        return winner_format(self.kind, self.words)

    def messages(self, prompt: str, answer: str, first: str, second: str) -> ChatMessages:
        """The meta-judge's prompt about two judgments of ``answer``, as dicts of ``role`` and ``content``."""
        return as_dicts(self.render(single_turn(prompt), answer, first, second))

    def render(self, prompt: Prompt, answer: str, first: str, second: str) -> Messages:
        """The meta-judge's prompt about the judgments ``first`` (shown as A) and ``second`` (shown as B)."""
        judgments = [remove_scores(text) if self.hide_scores else text for text in (first, second)]
        texts = (conversation(prompt.messages), answer, *judgments)
        # Masked, so that a meta-judge that quotes one of these texts gives no verdict by it.
        shown = map(self.verdict.mask, texts)
        slots = dict(zip(("question", "answer", "judgment_a", "judgment_b"), shown, strict=True))
        return with_system(self.system_prompt, (Message("user", render(self.template, slots)),))

    def read(self, text: str, finish: Finish = "stop", first: int = 0, second: int = 1) -> Verdict:
        """The verdict of a meta-judgment: `Won` with the ``winner``'s index, `Tied`, or an outcome with a ``reason``.

        ``first`` and ``second`` are the indices of the judgments shown as A and B.
        """
        return parse_verdict(text, finish, first, second)


_ORNAMENT = " \t\u00a0#>-*_`\"'([{$"
_QUALIFIERS = re.compile(r"(?:\b(?:the|my|final|total|overall)\b[ \t*_]*)+$", re.IGNORECASE)
_NUMBER_LINE = re.compile(rf"{MARK}*[+\-−–]?\.?\d")


def remove_scores(text: str) -> str:
    """``text`` without what follows each ``Score:`` on its line, or on the next line if the number is there."""
    if not SCORE.search(text):
        return text
    kept: list[str] = []
    awaiting = False  # the last "Score:" had no number on its line
    for line in text.splitlines(keepends=True):
        found = SCORE.search(line)
        if found:
            before = _QUALIFIERS.sub("", line[: found.start()].rstrip(_ORNAMENT)).rstrip(_ORNAMENT)
            kept.append(f"{before}\n" if before else "")
            awaiting = _is_blank(line[found.end() :])
        elif not (awaiting and _NUMBER_LINE.match(strip_tags(line))):
            kept.append(line)
            awaiting = awaiting and _is_blank(line)
        else:
            awaiting = False
    return "".join(kept).rstrip()


def _is_blank(line: str) -> bool:
    return not strip_tags(line).strip(f"{MARKS}\r\n")


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
# "a" names Judgment A after "judgment", or where no word follows, so that it can't be an article.
_NAMES_A = re.compile(rf"(?i:{_NAME}){MARK}*[Aa](?![^\W_])|(?<![^\W_])[Aa](?![^\W_])(?!\s+[a-z])")
_NAMES_B = re.compile(r"(?<![^\W_])[Bb](?![^\W_])")


def parse_verdict(text: str, finish: Finish = "stop", first: int = 0, second: int = 1) -> Verdict:
    """The final verdict of a meta-judgment: ``first`` was shown as A, ``second`` as B. Never raises.

    Accepted after the last ``Winner:``: ``Judgment A``, ``**Judgement B**``, ``[B]``, also alone on the next line; a
    line that begins with a word for a tie (``tie``, ``draw``, ``neither``, ``both``) is `Tied`. Otherwise `Unparsed`:
    ``contradictory`` when the line names both judgments, or a tie and a judgment; ``out_of_range`` for a judgment that
    was not shown (``Judgment C``); else ``missing``. `Truncated` when the token limit cut the text off.
    """
    if finish == "length":
        return Truncated()
    tail = last_tail(text, WINNER)
    if tail is None:
        return Unparsed("missing")
    named = _LETTER.fullmatch(tail.text) or _NAMED.match(tail.text)
    found = named or _TIE.match(tail.text)
    if found is None:
        return Unparsed("missing")
    rest = tail.text[found.end() :]
    if named and named[1].upper() not in ("A", "B"):
        return Unparsed("out_of_range")
    if tail.must_be_alone and not _NOTHING.fullmatch(rest):
        return Unparsed("missing")
    if named:
        is_a = named[1].upper() == "A"
        other = _NAMES_B if is_a else _NAMES_A
        contradictory = other.search(rest) or _TIE_WORD.search(rest)
        return Unparsed("contradictory") if contradictory else Won(first if is_a else second)
    one_named = (_NAMES_A.search(rest) is None) != (_NAMES_B.search(rest) is None)
    return Unparsed("contradictory") if one_named else Tied()
