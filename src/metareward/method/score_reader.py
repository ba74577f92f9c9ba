"""Reads the score that a judgment ends in, as a careful person would, or says why there is none.

Every label of the verdict's format is a mention (`VerdictFormat.anchors`). What follows it is a number with an optional
scale and explanation; the words before it tell the verdict (``Final score``) from a criterion's (``Relevance score``).
The last mention decides, if no other one contradicts it. In doubt there is no score: a model is trained against this
reader, so a lenient guess would be exploited, and a guess at half of the good answers' scores would bias the mean.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from metareward.method.label_context import (
    LINE,
    MOST_MENTIONS,
    Context,
    begins_sentence,
    is_hedged,
    is_revised,
    label_context,
    sentence_before,
)
from metareward.method.verdict_format import LEAD_BELOW, Anchor, VerdictFormat
from metareward.text import fold
from metareward.types import Reading, Reason, Scored, Unparsed

# The value: a number, perhaps the result of a sum, with units, a scale and a percentage behind it.
_LEAD = re.compile(LEAD_BELOW)
_NUMBER = re.compile(r"[+\-−–]?(?:\d+(?:[.,]\d+)*|\.\d+)")
_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d+)?|\.\d+)")
_MARKS = r"[ \t*_`\"'“”‘’()\[\]{}【】「」『』$⭐🌟★]*+(?:\\[()\[\]]|\\text\{)?"
_SUM = re.compile(rf"((?:\s*[+\-−–]\s*\d+(?:\.\d+)?)+){_MARKS}=(?:{_MARKS})(\d+(?:\.\d+)?)")
_TERM = re.compile(r"([+\-−–]?)\s*(\d+(?:\.\d+)?)")
_OF = r"(?:/|(?:out[ ]+of|of|von|sur|su|из|de)(?![^\W_]*[^\W\d_]))"
_POSSIBLE = r"(?:[ \t]*(?:a|the|possible|maximum|max|total|of))*"
_DETAIL = re.compile(
    rf"{_MARKS}(?:"
    rf"{_OF}{_POSSIBLE}{_MARKS}(?P<scale>\d+(?:\.\d+)?)"
    r"|(?:满分|滿分|満点)[ \t]*(?P<full>\d+)"
    r"|(?:[ \t,=(]|or(?![^\W_])|i\.e\.)*+(?P<percent>\d+(?:\.\d+)?)[ \t\\]*%"
    r"|(?P<unit>(?:possible[ ])?points?(?:\(s\))?(?![^\W\d_])|pts?(?![^\W_])\.?|stars?(?![^\W_])|分|点|点数|"
    r"punkten?(?![^\W_])|puntos?(?![^\W_])|pontos?(?![^\W_])|punti(?![^\W_])|балл\w*|점|(?<![(\[])criteri(?:a|on)(?![^\W_])))"
)
_NOTHING = re.compile(r"[\s*_`\"'“”‘’«»()\[\]{}【】「」『』$|.。!>~\\✅🎉⭐🌟★☆]*(?:</?[a-z_/|][^<>\n]*>[\s*_`.|]*)*")

# What may follow a number without taking it back: a reason or a remark.
_REMARK = re.compile(
    r"[ \t*_\"'”’)\]]*(?:[.,;!。，；（(\[—…]|:(?!\d)|[ ](?:[-–]|--)[ ]|"
    r"(?:because|since|as|for|due|given|based|considering|with|meaning|reflecting|indicating|showing|overall|all|the|"
    r"this|it|which|met|are[ ]met|of[ ]course|car|parce|puisque|porque|weil|da|denn|perche|потому|"
    r"under|by|in|per|on|but|though|well|to[ ](?:this|the)|justification|"
    r"reason|"
    r"(?:very[ ])?(?:good|great|nice|solid|excellent|fair|poor|weak|average|decent)(?=[ *_]*(?:[.,;:!)]|\Z))|"
    r"is[ ](?:fair|appropriate|justified|warranted|reasonable|right|deserved|given|assigned|awarded|the|my|what|"
    r"because|due|based|suitable|fitting|correct|therefore))(?![^\W_])|因|[^\W\d_a-z])"
)
_TAKEN_BACK = re.compile(
    r"[\s*_\"'”’)\]]*(?:[?+^/×½¼¾~≈]|[ _.~≈|&;,]*\d|[-–](?![ -]|\Z)|[-–—−][ ]*\d|"
    r":[ ]?\d+(?![ ]*(?:points?[ ])?for\b)|[到至或]|"
    r"(?:[.,;:(\s—–-]*(?:or|maybe|perhaps|possibly|max|maximum|minus|plus|no(?=[,.;:!]|[ ]wait)|wait|hmm|actually|"
    r"rather)|"
    r"[,(]?[ ]*(?:if|unless))(?![^\W_]))"
)
# Several amounts, "4 for relevance and 3 for clarity": none of them is the score.
_AMOUNTS = re.compile(r"[\s*_]*(?:points?[ ]*)?for\b.*?\d[ ]*(?:points?[ ]+)?for\b")

# Numbers in a remark. One that stands like a score, and is another one, is doubt.
_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "zero": 0}
_BARE = (
    rf"(?<![a-z0-9_.+=/$-])(?<![<>≥≤] )(?P<number>\d+(?:\.\d+)?|(?:{'|'.join(_WORDS)})(?![^\W_]))"
    r"(?=[*_\"'”’)\]}$]*[ \t]*(?:[,;:!?()\]]|\.(?!\d)|\Z|\n|/|out of|if\b|after\b|would|could|is\b|seems|because|since|"
    r"as\b|instead|then|stars?|points?(?![ \t]+(?:for|each|per|in|on|is|are|was|were|has|have|been|deducted|lost|"
    r"missing|off|taken))))"
)
_NUMBER_LIKE_A_SCORE = re.compile(_BARE)
_ENUMERATED = re.compile(
    r"(?:criteri\w+|points?|steps?|items?|parts?|sections?|questions?|numbers?|no\.|#)[ ]?"
    r"\(?\d(?:[ ,&\d–-]|and|to|through)*|\(\d\)(?=[ ][a-z])"
)
_BENIGN = re.compile(
    r"(?:\b(?:not(?: quite| yet| really)?|than|from|previously|almost|close to|nearly|short of|miss\w*|lack\w*|"
    r"considered|need\w*|first thought|get|earn|reach|(?:short|enough|ready) for|why not|deduct\w*|subtract\w*)|"
    r"\b(?:if|with|had|to)\b[^.]{0,80}\b(?:would|could|might)(?: have)? be(?:en)?)(?: an?| the)?[ *_]+\Z"
)
_SAME_SCALE = re.compile(r"(?<![\d.])(?P<number>\d+(?:\.\d+)?)\s*(?:/|out of)\s*(?P<scale>\d+(?:\.\d+)?)")
_ADDED = re.compile(r"(?<![\d.])\d+(?:\.\d+)?(?:[ ]*\+[ ]*\d+(?:\.\d+)?)+(?![\d.]|[ ]*\+|[ ]*=)")
_RESULT = re.compile(r"=[ *_]*(?P<number>\d+(?:\.\d+)?)")
_DEDUCTED = re.compile(
    r"(?:deduct\w*|subtract\w*|tak(?:e|es|ing|en) off|less|minus|reduced by|lowered by|knock\w* off)[ ]+"
    r"(?:an? |only |just )?(?P<number>\d+(?:\.\d+)?)"
)
_LOST = re.compile(
    r"(?:lost|los(?:es|ing)|missing|misses)[ ]+(?:only |just )?(?P<one>\d)\b(?! of)|"
    r"(?P<other>\d) points? (?:is |are |was |were |has been )?(?:off|deducted|lost|missing|subtracted|taken)"
)
_OTHER_SCALE = re.compile(
    r"\bscale (?:of|from) (?:\d+ ?(?:to|-|–) ?)?(?P<top>\d+)|(?P<points>\d+)[ -]point scale|out of (?P<ten>ten)\b"
)
_NUMBER_BELOW = re.compile(r"\s*[*_(]*(?P<number>\d+(?:\.\d+)?)[*_)]*[ ]*(?:\n|\Z)")
_TOO_HIGH = re.compile(
    r"\b(?:it|that|this|which)(?:['’]s| is| was| seems)(?: \w+){0,2} too "
    r"(?:high|low|generous|harsh|kind|lenient|strict)\b"
)
# Second thoughts in the lines below.
_SECOND_THOUGHT = re.compile(
    r"(?:\b(?:actually|reflection|second thoughts?|reconsider\w*|correction|instead|rather|i mean|i meant|sorry|wait|"
    r"hmm|no(?=[,.;:!])|should be|should have been|fairer|better|make (?:it|that)|chang\w+|revis\w+|adjust\w*|lower\w*|"
    r"rais\w+|bump\w*|updat\w+|upgrad\w+|downgrad\w+|final answer is|edit|i['’]d say)\b|[→]|[-=]>)[^.!?\n\d]{0,60}?"
    + _BARE.replace(r"as\b", r"as\b|for\b")
)

# Who states a score in a sentence such as "I give it a score of 4".
_SUBJECT = r"(?:(?:it|this|that|the|your)(?:[ ](?:\w+[ ])?(?:answer|response|reply|output|one))?[ ])"
_GIVEN = re.compile(
    rf"(?:\b(?:give|gives|gave|assign|assigns|assigned|award|awards|awarded|rate|grade|settle on|go with)[ ]{_SUBJECT}?"
    r"|(?<!first )(?<!second )(?<!other )(?<!similar )\b(?:answer|response|reply|it|this)[ ](?:\w+[ ]){0,2}?"
    r"(?:deserves|earns|gets|receives|merits|warrants|has|obtains)[ ]|\b(?:resulting in|leads to|results in|for)[ ])"
    r"(?:an?[ ]|the[ ]|my[ ])?[*_]*(?:(?:final|total|overall)[ ])*[*_]*\Z"
)
_OF_A_CRITERION = re.compile(
    r"[*_ ]*(?:(?:/|out of)[ ]*\d+)?[*_ ]*(?:points?)?[ ]*for (?!this|the|its|being|that|your|it\b)"
)


@dataclass(frozen=True, slots=True)
class _Value:
    """What follows a label: a number or the reason why there is none, where it stands, and whether it stands alone."""

    outcome: float | Reason
    start: int = 0
    end: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class _Mention:
    """A label with its value. ``prose``: a sentence such as "the score is 4"."""

    anchor: Anchor
    context: Context
    value: _Value
    prose: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The reading of a text, and the span of the score's number in the text given; None if there is no score."""

    reading: Reading
    span: tuple[int, int] | None = None


def find_score(text: str, verdict: VerdictFormat, min_score: float, max_score: float) -> Found:
    """The score of a complete judgment, in [min_score, max_score]. Never raises; linear in the text's length."""
    folded = fold(text)
    # "Total points: 4" holds two labels of one value.
    found = verdict.anchors(folded.text, MOST_MENTIONS + 1)
    anchors = list({anchor.separator: anchor for anchor in reversed(found)}.values())[::-1]
    if len(found) > MOST_MENTIONS:
        return Found(Unparsed("ambiguous"))
    ends = [*(anchor.start for anchor in anchors[1:]), len(folded.text)]
    positions = folded.positions() if anchors else ()
    mentions = [
        _mention(folded.text, anchor, begins_sentence(folded, positions, anchor), end, min_score, max_score)
        for anchor, end in zip(anchors, ends, strict=False)
    ]
    last = _decisive(folded.text, mentions)
    if not isinstance(last, _Mention):
        return Found(Unparsed(last))
    score = last.value.outcome
    if not isinstance(score, float):
        return Found(Unparsed(score))
    limits = [mention.value.outcome for mention in mentions if mention.context.role == "limit"]
    start = folded.text.rfind("\n", 0, last.anchor.start) + 1
    line = folded.text[max(start, last.anchor.start - LINE) : last.value.end + LINE].split("\n", 1)[0]
    limits += [float(found["top"] or found["points"] or "-1") for found in _OTHER_SCALE.finditer(line)]
    if any(isinstance(limit, float) and limit != max_score for limit in limits) or "out_of_range" in limits:
        return Found(Unparsed("out_of_range"))
    line_end = folded.text.find("\n", last.value.end)
    below = _NUMBER_BELOW.match(folded.text, line_end) if line_end >= 0 else None
    if below and float(below["number"]) != score:
        return Found(Unparsed("ambiguous"))
    if line_end >= 0 and _has_second_thoughts(folded.text[line_end:], score):
        return Found(Unparsed("ambiguous"))
    return Found(Scored(score), (positions[last.value.start], positions[last.value.end - 1] + 1))


def _decisive(text: str, mentions: Sequence[_Mention]) -> _Mention | Reason:
    """The mention whose value is the verdict, or why there is none."""
    stated = [
        each
        for each in mentions
        if not each.prose and each.context.role in ("total", "plain") and not _is_void(text, each)
    ]
    prose = [each for each in mentions if each.prose and _is_assertion(text, each)]
    other = [each for each in mentions if each.prose and each not in prose and each.value.outcome != "missing"]
    unclear = any(not is_hedged(text, each.anchor.start, each.value.end) for each in other)
    if not stated:
        values = {each.value.outcome for each in prose}
        if prose and len(values) == 1 and not unclear:
            return prose[-1]
        criteria = any(isinstance(each.value.outcome, float) for each in mentions)
        return "ambiguous" if prose or criteria else "missing"
    last, *earlier = reversed(stated)
    if not isinstance(last.value.outcome, float):
        return last
    if any(each.value.outcome != last.value.outcome for each in prose if each.anchor.start > last.anchor.start):
        return "ambiguous"
    rivals = [each for each in earlier if _contradicts(each, last)]
    if rivals:
        between = text[rivals[0].value.end : last.anchor.start]
        return last if last.value.alone and is_revised(between) else "ambiguous"
    if last.anchor.form == "loose" and any(
        isinstance(each.value.outcome, float) and each.value.outcome != last.value.outcome for each in mentions
    ):
        return "ambiguous"
    plain = [each for each in stated if each.context.role == "plain" and isinstance(each.value.outcome, float)]
    if last.context.role == "plain" and (
        len(plain) > 2 or len({each.context.heading for each in plain if each.context.heading}) > 1
    ):
        return "ambiguous"  # criteria that happen to have the same score
    return last


def _contradicts(earlier: _Mention, last: _Mention) -> bool:
    """Whether an earlier mention has another score that the last one doesn't include."""
    value = earlier.value.outcome
    if value in ("missing", "ambiguous") or value == last.value.outcome:
        return False
    return last.context.role == "plain" or earlier.context.role == "total"


def _is_void(text: str, mention: _Mention) -> bool:
    """Whether ``Overall:`` or ``Points:`` begins an explanation."""
    word = text[mention.anchor.start : mention.anchor.word_end]
    return mention.value.outcome == "missing" and word in ("overall", "total", "points", "sum")


def _is_assertion(text: str, mention: _Mention) -> bool:
    """Whether a sentence about a score states the verdict."""
    known = mention.context.role in ("total", "plain") and isinstance(mention.value.outcome, float)
    if not known or mention.anchor.form != "copula":
        return False
    start, end = mention.anchor.start, mention.value.end
    before = sentence_before(text, start)
    copula = text[mention.anchor.word_end : mention.anchor.end].split()
    given = "of" not in copula or _GIVEN.search(before) is not None
    given = given and not _OF_A_CRITERION.match(text, end)
    return given and "was" not in copula and not is_hedged(text, start, end)


# One mention.


def _mention(text: str, anchor: Anchor, begins: bool, limit: int, min_score: float, max_score: float) -> _Mention:
    context, value = (
        label_context(text, anchor, begins),
        _value(text, anchor, max(limit, anchor.end), min_score, max_score),
    )
    prose = anchor.form == "copula" or (anchor.form == "loose" and not (context.starts and value.alone))
    if text[anchor.separator] == "=":  # perhaps an assignment in code
        is_last = value.alone and "\n" not in text[value.end :].rstrip()
        prose = not is_last or text.count("```", 0, anchor.start) % 2 == 1
    return _Mention(anchor, context, value, prose)


def _value(text: str, anchor: Anchor, limit: int, min_score: float, max_score: float) -> _Value:
    """The number behind a label, with everything that its line says about it."""
    lead = _LEAD.match(text, anchor.end)
    start = lead.end() if lead else anchor.end
    number = _NUMBER.match(text, start)
    if number is None or start >= limit:
        return _Value("missing")
    end, value = number.end(), _plain_number(number[0])
    added = _SUM.match(text, end)
    if added:
        terms = _TERM.findall(number[0] + added[1])
        total = sum(-float(term) if sign in ("-", "−", "–") else float(term) for sign, term in terms)
        start, end = added.span(2)
        value = float(added[2]) if abs(total - float(added[2])) < 1e-9 else None
    scales, percents, behind = _details(text, end)
    if text[end:behind].count("/") > 1 and "</" not in text[end:behind]:
        return _Value("ambiguous")  # 3/4/5
    line_end = text.find("\n", behind, behind + LINE)
    tail = text[behind : min(limit, line_end if line_end >= 0 else behind + LINE)]
    alone = _NOTHING.fullmatch(tail) is not None
    if "\n" in text[anchor.separator : start] and (not alone or tail.startswith(". ")):
        return _Value("missing")  # the first item of a list
    following = text[end : end + 1]
    if following.isascii() and following.isalpha() and behind == end:
        return _Value("missing")  # 4th
    if value is None or (following and unicodedata.category(following) == "No"):  # 4½
        return _Value("ambiguous")
    if "%" in text[end : end + 2].strip() or any(scale != max_score for scale in scales + _numbers(anchor.scale)[-1:]):
        return _Value("out_of_range")
    if not min_score <= value <= max_score:
        return _Value("out_of_range")
    if any(abs(percent / 100 * max_score - value) > 1e-6 for percent in percents):
        return _Value("ambiguous")
    explained = not alone and not _is_enclosed(text, anchor, text[anchor.end : start], behind)
    if explained and _is_doubtful(tail, value, max_score):
        return _Value("ambiguous")
    return _Value(value, start, end, alone)


def _plain_number(text: str) -> float | None:
    """The number, None if it is not a plain one; -0 is 0."""
    plain = text.replace("−", "-").replace("–", "-")
    return float(plain) + 0.0 if _PLAIN.fullmatch(plain) else None


def _details(text: str, end: int) -> tuple[list[float], list[float], int]:
    """The scales and percentages behind a number that ends at ``end``, and where they end."""
    scales: list[float] = []
    percents: list[float] = []
    while (detail := _DETAIL.match(text, end)) is not None and detail.end() > end:
        scale = detail["scale"] or detail["full"]
        scales += [float(scale)] if scale else []
        percents += [float(detail["percent"])] if detail["percent"] else []
        end = detail.end()
    return scales, percents, end


def _numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def _is_enclosed(text: str, anchor: Anchor, lead: str, end: int) -> bool:
    """Whether a tag, a brace or a JSON comma ends the value at ``end``, so that what follows is not about it."""
    rest = text[end : end + 10].lstrip(" \t*\"'`")
    if anchor.form == "tag":
        return rest.startswith("<")
    is_key = text.startswith(('"', "'"), anchor.word_end)
    return is_key and "[" not in lead and rest.startswith((",", "}"))


def _is_doubtful(tail: str, score: float, max_score: float) -> bool:
    """Whether the rest of a score's line is no remark, takes the score back or names another one."""
    if _has_second_thoughts(tail, score) or _TAKEN_BACK.match(tail) or not _REMARK.match(tail) or _AMOUNTS.match(tail):
        return True
    if any(score != float(found["number"]) <= max_score for found in _RESULT.finditer(tail)):
        return True
    scaled = (found for found in _SAME_SCALE.finditer(tail) if float(found["scale"]) == max_score)
    if any(float(found["number"]) != score for found in scaled):
        return True
    if any(sum(_numbers(found[0])) != score for found in _ADDED.finditer(tail)):
        return True
    if any(float(found["number"]) + score != max_score for found in _DEDUCTED.finditer(tail)):
        return True
    if any(float(found["one"] or found["other"]) + score > max_score for found in _LOST.finditer(tail)):
        return True
    remark = _ENUMERATED.sub(" ", tail)
    bare = [(_number(found["number"]), found.start()) for found in _NUMBER_LIKE_A_SCORE.finditer(remark)]
    others = [start for number, start in bare if number != score]
    parts = sum(number for number, _ in bare) == score  # "(relevance 1, coverage 1)"
    return not parts and any(not _BENIGN.search(remark[max(0, start - 120) : start]) for start in others)


def _has_second_thoughts(text: str, score: float) -> bool:
    """Whether what follows a score changes it."""
    thoughts = (_number(found["number"]) for found in _SECOND_THOUGHT.finditer(text))
    return any(number != score for number in thoughts) or _TOO_HIGH.search(text) is not None


def _number(text: str) -> float:
    return float(_WORDS[text]) if text.isalpha() else float(text)
