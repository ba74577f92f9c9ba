"""What a label in a judgment is about, by the words around it: the verdict, one criterion of several, a limit.

``Final score: 4`` is a verdict, ``Relevance score: 1`` and a ``Score: 1`` under the heading "Relevance" are a
criterion's, ``Maximum score: 5`` is a limit, ``Previous score: 3`` is none of these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from metareward.method.verdict_format import Anchor
from metareward.text import Folded, fold

Role = Literal["total", "plain", "criterion", "aside", "limit"]
LINE = 400  # characters of a line that are looked at
MOST_MENTIONS = 60  # a text with more labels is a table or a loop; reading each would be slow for nothing

_TOTAL = (
    "final total overall cumulative combined aggregate summary ultimate revised corrected updated adjusted amended new "
    "最终 最后 最終 总 综合 总体 整体 總 綜合 総合 최종 총"
)
_NEUTRAL = (
    "answer answers answer's response response's reply assistant assistant's model's judge's assigned given awarded "
    "resulting numerical numeric additive so thus therefore hence and is as 的 本 该 此 こ の quality "
    "based on deserves gets earns receives clear"
)
_COMPARED = frozenset(["answer", "response", "assistant", "model", "judgment", "judgement", "option", "candidate"])
_DETERMINERS = "the a an this its our your my i'd his her"
_ASIDE = (
    "initial previous preliminary tentative first old human reference expected average mean base minimum min lowest "
    "partial original earlier provisional baseline"
)
_LIMIT = "maximum max possible perfect highest full 满 最高"
_ROLES: dict[str, str] = {
    fold(word).text: role
    for role, words in (
        ("total", _TOTAL),
        ("neutral", _NEUTRAL),
        ("determiner", _DETERMINERS),
        ("aside", _ASIDE),
        ("limit", _LIMIT),
    )
    for word in words.split()
}
_TOTAL_LABEL = re.compile(rf"final|total|overall|sum\b|gesamt|note|{fold('总分').text}|{fold('總分').text}")
_TOTAL_POST = re.compile(r"\b(?:final|total|overall|finale?|totale?|general|globale?|complessivo|insgesamt|gesamt)\b")
_SUPPOSED = re.compile(
    r"(?<!\bi )\b(?:would|could|might)\b|"
    r"\b(?:please|write|asks?|asked|demands?|requests?|wants?|instruct\w*|end with)\b"
)
_COUNT = re.compile(r"p(?:oi|u|o)n[kt]|балл|点|分")
_COUNTED = re.compile(r"(?:\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten))[ \t]*\Z")
_QUOTED = re.compile(
    r"(?:[^\W\d_]|\b(?:says?|said|claims?|claimed|writes?|wrote|states?|contains?|reads?):)[ ]*[\"“”'‘]\Z"
)
_NAME = re.compile(r"[^\W_]+(?:_[^\W_]+)*_\Z")
_SCALE = re.compile(
    r"(?:[\d\s./–—-]|out|of|to|max(?:imum)?|points?|pts|total|final|overall|scale|from|on|a|the|stars?|분|分|点|满分)*"
)
_CLAUSE = re.compile(r"[.,;:!?，。；：、！？|()\[\]{}→\"“”]|[ ][-–—][ ]|—")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?")
_HTML = re.compile(r"</?[a-z][^<>\n]{0,60}>")
_HEADING = re.compile(r"[\s#*_>|\-–—•\d.)(]*(?P<words>[^\W\d_][\w ,&/'’-]{0,40}?)[\s*_:|\-–—(]*")
_VERDICT_HEADING = re.compile(
    r"\b(?:final|overall|total|verdict|conclusion|result|judge?ment|evaluation|assessment|grad(?:e|ing)|summary|edit|update|correction|revision|(?:answer|response)\Z)"
)
# What stands between a verdict and a later one that takes its place.
_REVISED = re.compile(
    r"reflection|second thought|reconsider|revis|correct(?:ion|ed|ing)\b|actually|\bwait\b|\bhmm|mistake|overlooked|"
    r"change my|closer look|re-?evaluat|re-?read|adjust|deduct|update|\bedit\b|\bwrong\b"
)

# Sentences such as "I give it a score of 4": a verdict only if nothing in them is negated, supposed or someone else's.
_HEDGED = re.compile(
    r"n['’]t\b|\b(?:not|never|no|without|cannot|if|unless|might|could|may|maybe|perhaps|possibly|almost|nearly|close|"
    r"short|between|than|least|most|or|have been|rather|instead|other|another|claims?|says?|said|asks?|"
    r"consider(?:ed|ing) (?:an?|giving)|"
    r"thought|copy|typical|usually|require[sd]?|needs?|higher|lower|previous|initial|maximum|deserve[sd]? to|"
    r"too|supposed|means?|about|around|approximately|roughly|up to|at)\b|[?\"“”~≈]"
)
_END = re.compile(r"[.!?](?:[ \n]|\Z)|\n")


@dataclass(frozen=True, slots=True)
class Context:
    """``role``: what the label is about. ``heading``: the short heading on its line or above it, "" if there is none.

    ``starts``: whether no other word stands before it in its sentence.
    """

    role: Role
    heading: str
    starts: bool


def begins_sentence(folded: Folded, positions: Sequence[int], anchor: Anchor) -> bool:
    """Whether the label is capitalised and the word before it isn't: "It is good Score: 4"."""
    source, at = folded.source, positions[anchor.word]
    before = source[max(0, at - 40) : at].split()
    return source[at].isupper() and bool(before) and (before[-1].islower() or len(before[-1]) == 1)


def label_context(text: str, anchor: Anchor, begins: bool) -> Context:
    """The context of a label in a folded text; ``begins``: see `begins_sentence`."""
    line_start = text.rfind("\n", max(0, anchor.start - LINE), anchor.start) + 1
    if anchor.form == "tag":
        before = text[anchor.start + 1 : anchor.word].replace("-", "_")
    else:
        before = _HTML.sub(" ", text[max(line_start, anchor.start - LINE) : anchor.start])
    role = _role(text[anchor.word : anchor.word_end], anchor, "" if begins else before)
    segment = re.split(r"[,;.]", before)[-1]
    beside = _heading(segment) if before.rstrip(" *_`").endswith((":", "-", "–", "—", "|", "(")) else ""
    if begins and _SUPPOSED.search(_CLAUSE.split(before)[-1]):
        role = "aside"  # a plain copy would earn Score: 1
    if _QUOTED.search(before) and not text.startswith(('"', "'"), anchor.word_end):
        role = "aside"  # the answer says "Score: 5"
    if role == "plain" and beside:
        role = "criterion"  # "Relevance: Score: 1"
    starts = begins or role == "total" or not _WORD.search(before.split(".")[-1])
    return Context(role, beside or _heading(_line_above(text, line_start)), starts)


def is_revised(text: str) -> bool:
    """Whether ``text``, which stands between two verdicts, takes the first one back."""
    return _REVISED.search(text) is not None


def sentence_before(text: str, position: int) -> str:
    """What stands before ``position`` in its sentence."""
    return _END.split(text[max(0, position - LINE) : position])[-1]


def is_hedged(text: str, start: int, end: int | None = None) -> bool:
    """Whether the sentence around a verdict negates or supposes it; without ``end`` only what precedes ``start``."""
    after = "" if end is None else _END.split(text[end : end + LINE], maxsplit=1)[0]
    return _HEDGED.search(sentence_before(text, start)) is not None or _HEDGED.search(after) is not None


def _role(label: str, anchor: Anchor, before: str) -> Role:
    """What a label is about, by the words before it in its clause."""
    if _COUNT.match(label) and _COUNTED.search(before):
        return "criterion"  # "4 points: ..."
    total = bool(_TOTAL_LABEL.match(label) or _TOTAL_POST.search(anchor.post))
    if not _SCALE.fullmatch(anchor.scale):
        return "criterion"  # "Score (relevance): 4"
    name = _NAME.search(before)  # "answer_a_score"
    if name:
        words = name[0].split("_")[:-1]
        known = all(_ROLES.get(word) in ("total", "neutral") for word in words)
        return ("total" if total or "total" in map(_ROLES.get, words) else "plain") if known else _name_role(words)
    words = _WORD.findall(_CLAUSE.split(before)[-1])
    for place, word in enumerate(reversed(words)):
        role = _ROLES.get(word)
        if role == "limit":
            return "limit"
        if role == "aside":
            return "aside"
        total = total or role == "total"
        if role == "determiner":
            named = (
                word == "a" and anchor.form != "copula" and place + 1 < len(words) and words[-place - 2] in _COMPARED
            )
            if named:
                return "criterion"  # "Answer A score: 4"
            break
        if role is None and word.endswith(("'s", "’s")):
            return "criterion"  # "The team's final score is 4"
        if role is None:
            if place == 0 and not word.isdecimal():
                return "criterion"
            break
    return "total" if total else "plain"


def _name_role(words: Sequence[str]) -> Role:
    """The role of a key such as ``max_score`` or ``relevance_score``."""
    return "limit" if "limit" in map(_ROLES.get, words) else "criterion"


def _heading(line: str) -> str:
    """The words of a line that is a short heading, such as ``2. **Clarity**:``; "" if it is none."""
    found = _HEADING.fullmatch(line)
    return "" if found is None or _VERDICT_HEADING.search(found["words"]) else found["words"]


def _line_above(text: str, line_start: int) -> str:
    """The last line before ``line_start`` that isn't blank; "" if it is long."""
    end = len(text[max(0, line_start - LINE) : line_start].rstrip()) + max(0, line_start - LINE)
    start = text.rfind("\n", max(0, end - 80), end) + 1
    return text[start:end] if end - start < 80 else ""
