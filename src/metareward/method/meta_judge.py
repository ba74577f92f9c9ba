"""The meta-judge's prompt and the parser of its verdicts (Meta-Rewarding section 2.2).

Two judgments of one answer are shown as Judgment A and Judgment B. A verdict names the winner's index instead of its
position, so that no later step has to match verdicts to judgments by order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metareward.method.judge import ChatMessages, Finish, as_dicts, single_turn
from metareward.method.label_context import (
    LINE,
    MOST_MENTIONS,
    Context,
    begins_sentence,
    is_hedged,
    is_revised,
    label_context,
)
from metareward.method.template import Template, conversation, load_template, render, with_system
from metareward.method.verdict_format import LEAD_BELOW, SCORES, Anchor, Kind, VerdictFormat, winner_format
from metareward.text import fold
from metareward.types import Message, Messages, Prompt, Tied, Truncated, Unparsed, Verdict, Won


@dataclass(frozen=True, slots=True)
class MetaRubric:
    """How judgments are compared: the meta-judge's prompt text, whether scores are hidden, and a system prompt.

    When the meta-judge sees the scores, the higher one wins nearly always (Meta-Rewarding table 5: 97.68 % in the
    second iteration); ``hide_scores`` removes them from the judgments. ``kind`` and ``words`` say how the prompt asks
    for the winner; no words: `WINNER_WORDS`. ``scores``: how the judge's rubric writes the scores that are hidden.
    """

    template: Template
    hide_scores: bool = False
    system_prompt: str | None = None
    kind: Kind = "label"
    words: tuple[str, ...] = ()
    scores: VerdictFormat = SCORES

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
        scores: VerdictFormat = SCORES,
    ) -> MetaRubric:
        """The rubric with the packaged text of that name (``metajudge``), or with the ``.txt`` file at that path.

        Raises `UserError` when there is no such text or when it lacks a slot.
        """
        return cls(load_template(name_or_path), hide_scores, system_prompt, kind, tuple(words), scores)

    @property
    def verdict(self) -> VerdictFormat:
        """How the winner is written, read and masked."""
        return winner_format(self.kind, self.words)

    def messages(self, prompt: str, answer: str, first: str, second: str) -> ChatMessages:
        """The meta-judge's prompt about two judgments of ``answer``, as dicts of ``role`` and ``content``."""
        return as_dicts(self.render(single_turn(prompt), answer, first, second))

    def render(self, prompt: Prompt, answer: str, first: str, second: str) -> Messages:
        """The meta-judge's prompt about the judgments ``first`` (shown as A) and ``second`` (shown as B)."""
        judgments = [remove_scores(text, self.scores) if self.hide_scores else text for text in (first, second)]
        texts = (conversation(prompt.messages), answer, *judgments)
        # Masked, so that a meta-judge that quotes one of these texts gives no verdict by it.
        shown = map(self.verdict.mask, texts)
        slots = dict(zip(("question", "answer", "judgment_a", "judgment_b"), shown, strict=True))
        return with_system(self.system_prompt, (Message("user", render(self.template, slots)),))

    def read(self, text: str, finish: Finish = "stop", first: int = 0, second: int = 1) -> Verdict:
        """The verdict of a meta-judgment: `Won` with the ``winner``'s index, `Tied`, or an outcome with a ``reason``.

        ``first`` and ``second`` are the indices of the judgments shown as A and B.
        """
        if finish == "length":
            return Truncated()
        found = find_winner(text, self.verdict)
        if isinstance(found, Unparsed):
            return found
        return Tied() if found == "tie" else Won(first if found == "a" else second)


# Reading the winner.

_LEAD = re.compile(LEAD_BELOW)
_MARK = r"[\s*_`\"'“”‘’()\[\]{}【】「」『』$]"
_NAMED = re.compile(rf"(?:the\s+)?judge?ments?{_MARK}*-?(?P<letter>[a-z]|\d+)(?![^\W_])")
_LETTER = re.compile(rf"(?P<letter>[ab])(?={_MARK}*(?:[.!,;:]|\Z|\n|<|\||(?:because|since|as|for)\b))")
_TIE = re.compile(
    r"(?:(?:it|this)(?:['’]s|\s+is)\s+)?(?:an?\s+)?"
    r"(?:tied?|draw|neither|none|both|equal(?:ly)?|no\s+winner)(?![^\W_])"
)
_NOTHING = re.compile(rf"(?:[.!。>|]|{_MARK}|</?[a-z/_][^<>\n]*>)*")
_TAKEN_BACK = re.compile(
    rf"[ \t*_]*judge?ments?(?![^\W_])|{_MARK}*(?:[?/&+=~]|[<>][ ]*\w|,?[ ]*(?:or|and|nor|would|could|might|may|should|"
    r"seems?|unless|maybe|perhaps|possibly|not really|was|versus|vs|no)(?![^\W_]))"
)
_TIE_WORD = re.compile(r"(?<![^\W_])(?:tied?|draw)(?![^\W_])")
# "a" names Judgment A after "judgment", or where no word follows, so that it can't be an article.
_NAMES = {
    "a": rf"(?:judge?ments?{_MARK}*a(?![^\W_])|(?<![^\W_'’])a(?![^\W_])(?!{_MARK}+[a-z]))",
    "b": r"(?<![^\W_'’])b(?![^\W_])",
}
_SWITCH = (
    r"(?:or|rather|actually|maybe|perhaps|possibly|instead|correction|no|reflection|thought|so|thus|therefore|better(?=[:,])|"
    r"should be|would be|could be|might be|winner|choose|prefer|go with|change\w*|switch\w*|wait|hmm)"
)
_PLAIN_WORD = r"(?!than|over|not|beats?|outperforms?|unlike|vs|versus|against)[^\W_]{1,12}"
_BETTER = (
    r"(?:judge?ment[ ]+)?(?:is|was|seems|would be|might be|wins)\b(?:[ ]+(?!not\b|less\b|no\b|than\b)\w+){0,4}?[ ]*\b"
    r"(?:better|best|winner|accurate|preferable|superior|stronger|closer|right|correct|sounder|wins?)\b"
)
_NOT_CONCEDED = r"(?<!although )(?<!though )(?<!while )(?<!whereas )"
_OTHERS = {
    letter: (
        re.compile(rf"\b{_SWITCH}\b[^\w\n]{{1,4}}(?:{_PLAIN_WORD}[^\w\n]{{1,3}}){{0,4}}?{name}"),
        re.compile(rf"{_NOT_CONCEDED}{name}{_MARK}*{_BETTER}(?![^.\n]{{0,40}}\bthan{_MARK}+{name})"),
        re.compile(
            rf"[,;][ ](?:and[ ])?(?:judge?ments?{_MARK}+)?{name}{_MARK}*"
            r"(?:\Z|[.,;]|(?:by|for|in|on|with|if|regarding)\b)"
        ),
    )
    for letter, name in _NAMES.items()
}

Named = Literal["a", "b", "tie"]


@dataclass(frozen=True, slots=True)
class _Mention:
    """A label with the judgment that it names, or the reason why it names none; ``end``: where the name ends."""

    anchor: Anchor
    context: Context
    outcome: Named | Unparsed
    end: int
    alone: bool


def find_winner(text: str, verdict: VerdictFormat) -> Named | Unparsed:
    """The judgment that a complete meta-judgment names: ``a``, ``b`` or ``tie``. Never raises; linear in its length.

    The last mention decides. It may be followed by reasons ("because it's better than Judgment B"), not by another
    verdict; an earlier mention of another judgment must have been taken back in between, or be a criterion's.
    """
    folded = fold(text)
    found = verdict.anchors(folded.text, MOST_MENTIONS + 1)
    anchors = list({anchor.separator: anchor for anchor in reversed(found)}.values())[::-1]
    if len(found) > MOST_MENTIONS:
        return Unparsed("ambiguous")
    limits = [*(anchor.start for anchor in anchors[1:]), len(folded.text)]
    positions = folded.positions() if anchors else ()
    begins = [begins_sentence(folded, positions, anchor) for anchor in anchors]
    mentions = [_mention(folded.text, *each) for each in zip(anchors, begins, limits, strict=False)]
    verdicts = [each for each in mentions if each.context.role in ("total", "plain")]
    prose = [each for each in verdicts if each.anchor.form == "copula"]
    verdicts = [each for each in verdicts if each.anchor.form != "loose" or (each.context.starts and each.alone)]
    stated = [each for each in verdicts if each not in prose and not _is_void(folded.text, each)]
    if not stated:
        prose = [each for each in prose if not is_hedged(folded.text, each.anchor.start)]
        same = len({each.outcome for each in prose}) == 1
        return prose[-1].outcome if same else Unparsed("ambiguous" if mentions else "missing")
    *earlier, last = stated
    if isinstance(last.outcome, Unparsed):
        return last.outcome
    after = [each for each in prose if each.anchor.start > last.anchor.start and each.outcome != last.outcome]
    rivals = [each for each in earlier if each.outcome != last.outcome and not isinstance(each.outcome, Unparsed)]
    rivals = [each for each in rivals if last.context.role == "plain" or each.context.role == "total"]
    revised = last.alone and rivals and is_revised(folded.text[rivals[-1].end : last.anchor.start])
    if after or (rivals and not revised):
        return Unparsed("ambiguous")
    plain = [each for each in stated if each.context.role == "plain" and not isinstance(each.outcome, Unparsed)]
    headings = {each.context.heading for each in plain if each.context.heading}
    if last.context.role == "plain" and (len(plain) > 2 or len(headings) > 1):
        return Unparsed("ambiguous")  # criteria that the same judgment wins
    if is_revised(folded.text[last.end :]) and _switches(folded.text[last.end :], last.outcome):
        return Unparsed("ambiguous")
    return last.outcome


def _is_void(text: str, mention: _Mention) -> bool:
    """Whether ``Verdict:`` begins an explanation."""
    word = text[mention.anchor.start : mention.anchor.word_end]
    return mention.outcome == Unparsed("missing") and word in ("verdict", "preference")


def _mention(text: str, anchor: Anchor, begins: bool, limit: int) -> _Mention:
    lead = _LEAD.match(text, anchor.end)
    start = lead.end() if lead else anchor.end
    named = _NAMED.match(text, start) or _LETTER.match(text, start)
    found = named or _TIE.match(text, start)
    context = label_context(text, anchor, begins)
    if found is None or start >= max(limit, anchor.end):
        return _Mention(anchor, context, Unparsed("missing"), start, False)
    line_end = text.find("\n", found.end(), found.end() + LINE)
    tail = text[found.end() : min(max(limit, found.end()), line_end if line_end >= 0 else found.end() + LINE)]
    alone = _NOTHING.fullmatch(tail) is not None
    outcome = _outcome(named["letter"] if named else None, tail, alone)
    if "\n" in text[anchor.separator : start] and not alone:
        outcome = Unparsed("missing")
    return _Mention(anchor, context, outcome, found.end(), alone)


def _outcome(letter: str | None, tail: str, alone: bool) -> Named | Unparsed:
    """What a label with this name and this rest of its line says; ``letter`` is None for a word for a tie."""
    if letter is None:
        names = [re.search(name, tail) is not None for name in _NAMES.values()]
        return "tie" if alone or names[0] == names[1] else Unparsed("ambiguous")
    if letter not in ("a", "b"):
        return Unparsed("out_of_range")
    named: Named = "a" if letter == "a" else "b"
    if not alone and (_TAKEN_BACK.match(tail) or _TIE_WORD.search(tail) or _switches(tail, named)):
        return Unparsed("ambiguous")
    return named


def _switches(text: str, named: Named) -> bool:
    """Whether ``text``, which follows a verdict, names the other judgment in its place."""
    if named == "tie":
        return any(pattern.search(text) for patterns in _OTHERS.values() for pattern in patterns)
    return any(pattern.search(text) for pattern in _OTHERS["b" if named == "a" else "a"])


# Hiding scores.


def remove_scores(text: str, verdict: VerdictFormat = SCORES) -> str:
    """``text`` without the scores that could be read from it: a label and its line, or in a sentence the number."""
    folded = fold(text)
    anchors = verdict.anchors(folded.text)
    if not anchors:
        return text
    positions = [*folded.positions(), len(text)]
    parts, end = [], 0  # what is kept; how far the folded text is dealt with
    for anchor in anchors:
        if anchor.start < end:
            continue
        start, stop = _cut(folded.text, anchor)
        parts.append(text[positions[end] : positions[max(start, end)]])
        if anchor.form == "copula" and stop > start:
            parts.append(" …")
        end = stop
    return "".join([*parts, text[positions[end] :]]).rstrip()


_VALUE_LINE = re.compile(rf"{LEAD_BELOW}[+\-−–]?\.?\d[^\n]*")
_QUALIFIERS = re.compile(r"(?:\b(?:the|my|final|total|overall)[ \t*_]+)*[ \t#>\-*_`\"'(\[{$|<]*\Z")
_AMOUNT = re.compile(rf"{LEAD_BELOW}[\d.,]+(?:[ ]*(?:/|out of)[ ]*\d+)?")


def _cut(text: str, anchor: Anchor) -> tuple[int, int]:
    """The span of a folded text in which an anchor's score stands."""
    if anchor.form == "copula":
        amount = _AMOUNT.match(text, anchor.end)
        return anchor.end, amount.end() if amount else anchor.end
    before = _QUALIFIERS.search(text, max(0, anchor.start - 80), anchor.start)
    line_end = text.find("\n", anchor.end)
    below = _VALUE_LINE.match(text, anchor.end)
    stop = below.end() if below else line_end if line_end >= 0 else len(text)
    return before.start() if before else anchor.start, stop
