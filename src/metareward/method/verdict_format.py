"""The format of a verdict as data: how a judge writes its score, or a meta-judge the winner.

One pattern finds every place from which a reader may take a verdict (`VerdictFormat.anchors`): a label (``Score: 4``,
``**评分**：4``, ``the score is 4``, ``### Score`` above ``4``), a tag (``<score>4</score>``), a JSON key
(``{"score": 4}``), and with their kinds ``\\boxed{4}`` and ``[[4]]``. `VerdictFormat.mask` breaks the same places in
the texts that a judge sees, so that quoting them gives no verdict. Both look at the folded text (`fold`), without
invisible characters and in plain characters of full-width and circled ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from metareward.errors import UserError
from metareward.method.template import LOOKALIKE_BRACKET, LOOKALIKE_COLON
from metareward.text import fold

Kind = Literal["label", "tag", "json", "boxed", "brackets"]

# Of the readers of scores and winners: raised when a text is read differently, as the records name what read them.
READER_VERSION = 1

_SCORE_WORDS = (
    "Score|Rating|Grade|Total|Points|Overall|Sum|评分|分数|得分|总分|打分|評分|分數|總分|スコア|点数|評点|점수|총점|평점|"
    "Punktzahl|Gesamtpunktzahl|Punkte|Bewertung|Note globale|Note finale|Note totale|Puntuación|Puntaje|Calificación|"
    "Pontuação|Punteggio|Оценка|Балл"
)
SCORE_WORDS = tuple(_SCORE_WORDS.split("|"))
_WINNER_WORDS = (
    "Winner|Verdict|Preference|Better judgment|Best judgment|Preferred judgment|More accurate judgment|"
    "Better judgement|Best judgement|Preferred judgement|More accurate judgement|胜者|获胜者|胜出者|勝者|승자|"
    "Gewinner|Sieger|Ganador|Gagnant|Vincitore|Vencedor|Победитель"
)
WINNER_WORDS = tuple(_WINNER_WORDS.split("|"))
LETTERS = ("A", "B")
JUDGMENTS = ("Judgment A", "Judgment B")

# What a value begins with, after `LEAD`; the weak separators (``is``, a line end, a table's bar) need one behind them.
SCORE_VALUE = r"[+\-−–]?\.?\d"
WINNER_VALUE = (
    r"(?:the[ \t]+)?judge?ments?(?![^\W_])|[ab](?=[\s*_`\"'”’)\]}.,!;|]*(?:[\n.,!;|]|\Z))"
    r"|(?:(?:a|it['’]?s|it is)[ \t]+)*(?:tied?|draw|neither|none|both|equal(?:ly)?|no[ \t]+winner)(?![^\W_])"
)


# The pattern of an anchor. Runs of marks are possessive, so that the time is linear in the text's length.

_HTML = r"</?(?!judge?ment)[a-z][^<>\n]{0,60}>"
# Markdown, quotes and closing brackets between a label and its separator.
_GAP = rf"(?:[ \t*_`\"'“”‘’«»)\]}}】」』]|{_HTML})*+"
# The same and opening brackets, TeX and table bars, between a separator and the value; line ends, too.
LEAD = (
    rf"(?:\n[ \t]*>|[\s*_`\"'“”‘’«»()\[\]{{}}【】「」『』|:=⭐🌟✅]|{_HTML}"
    r"|\\(?:boxed|text(?:bf)?|math(?:bf|rm))[ \t]*\{|\\[()\[\]]|\$(?=[^\n]{0,40}\$)"
    r"|<(?=[ \t]*(?:[\d.]+|judge?ment[ \t]*\w)[ \t]*>))*+"
)
# The value below a heading or below the header of a table.
LEAD_BELOW = rf"{LEAD}(?:-{{2,}}[-|: \n]*+{LEAD})?"
_LINE_LEAD = LEAD.replace(r"\n[ \t]*>|[\s", r"[ \t")
_PAREN = rf"(?:[(\[](?P<scale>[^()\[\]\n:∶]{{0,40}})[)\]]{_GAP})?"
_POST = (
    "is|as|was|for|of|to|the|this|that|given|awarded|assigned|earned|obtained|received|total|final|overall|points?|"
    "score|answer|response|reply|assistant|rubric|my|your|its|based|on|out|finale?|totale?|general|global|"
    "globale|complessivo|insgesamt|gesamt|after|review|revision|reconsideration|adjustment|comparison|therefore|thus|would|be|should|will|equals?|calculated|follows"
)
_POSTS = rf"(?P<post>(?:(?:{_POST})(?![^\W_]){_GAP}){{0,8}})"
_COPULA = (
    r"(?:is|was|of|equals?|would[ ]+be|will[ ]+be|should[ ]+be|comes?[ ]+to|adds?[ ]+up[ ]+to|amounts?[ ]+to|"
    r"stands?[ ]+at|goes[ ]+to|ist|est|es|lautet)(?![^\W_])"
    r"(?:[ \t]+(?:therefore|thus|then|hence|exactly|only|just|equal[ ]+to|clearly|an?(?=[ \t]+\S))(?![^\W_]))*+|为|是"
)


_GLUED = ("final", "total", "overall")  # finalScore


@lru_cache(maxsize=64)
def _patterns(words: tuple[str, ...], value: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A pattern of what label words begin with, and one of a label word with the separator behind it.

    Groups of the second: ``word``; ``scale``, the text in brackets behind it; ``colon``, ``copula``, ``loose`` or
    ``tag``, of which one matched and ends where the value begins.
    """
    folded = sorted({fold(word).text for word in words}, key=len, reverse=True)
    heads = "|".join(sorted({re.escape(word.split()[0]) for word in folded} | set(_GLUED), key=len, reverse=True))
    labels = "|".join(_label(word) for word in folded)
    # A text that ends before the value is masked, too: the judge's own words may follow.
    weak = rf"(?={_LINE_LEAD}(?:{value}|\Z))"
    below = rf"[ \t|]*\n(?={LEAD_BELOW}(?:{value}|\Z))"
    separator = (
        rf"{_GAP}(?:{_PAREN}{_POSTS}{_PAREN.replace('scale', 'late')}(?P<colon>:|=(?!=))"
        rf"|{_POSTS.replace('post', 'before')}(?P<copula>{_COPULA}){weak}"
        rf"|{_PAREN.replace('scale', 'aside')}"
        rf"(?P<loose>[|]{weak}|(?:[-–—]{{1,2}}|[-=]+>|→)[ \t]{weak}|{below}))"
        r"|(?P<tag>(?:[ \t][^<>\n]{0,60})?/?>)"
    )
    return re.compile(heads), re.compile(rf"(?P<word>{labels})(?:{separator})")


def _label(word: str) -> str:
    """A label word as a pattern; words of scripts that have no spaces need no boundaries."""
    text = r"[ \t_]+".join(re.escape(part) for part in word.split())
    if ord(word[0]) >= 0x1100:
        return text
    return rf"(?<![^\W_])(?<!\w-)(?:{'|'.join(_GLUED)})?{text}(?![^\W_])"


_TAG_OPEN = re.compile(r"<[ \t]*(?:[\w-]{0,30}[ \t_-])?\Z")
_BOXED = re.compile(r"\\boxed[ \t]*\{")
_BRACKETS = re.compile(r"\[(?=[ \t]*\[)")


@dataclass(frozen=True, slots=True)
class Anchor:
    """A place in the folded text from which a verdict may be read.

    ``start``: the label's first character, of a tag its bracket; ``word``, ``word_end``: where the label word stands;
    ``separator``: where the separator is; ``end``: where the value begins. ``form``: ``colon`` (also ``=``),
    ``copula`` (``is``), ``loose`` (a line end, a table's bar or a dash), ``tag``, ``enclosed`` (``\\boxed{``, ``[[``).
    ``scale``: the text in brackets between label and separator; ``post``: the words there.
    """

    start: int
    word: int
    word_end: int
    separator: int
    end: int
    form: Literal["colon", "copula", "loose", "tag", "enclosed"]
    scale: str = ""
    post: str = ""


@dataclass(frozen=True, slots=True)
class VerdictFormat:
    """How a verdict is written and read.

    ``kind``: what the rubric asks for. ``words``: the labels, the first of which is written; labels, tags and JSON keys
    of all of them are read whatever the kind, ``\\boxed{}`` and ``[[]]`` alone only with their kinds. ``values``: the
    texts of the values that can be written, such as ``0`` to ``5``. ``value``: the pattern with which values begin.
    """

    kind: Kind = "label"
    words: tuple[str, ...] = SCORE_WORDS
    values: tuple[str, ...] = ("0", "1", "2", "3", "4", "5")
    value: str = SCORE_VALUE

    def __post_init__(self) -> None:
        """Raise `UserError` for a word that can't be found in a text."""
        for word in self.words:
            if not any(char.isalpha() for char in fold(word).text):
                raise UserError(f"verdict_format.words: {word!r} has no letter; fix: name a label such as Score")

    @property
    def prefix(self) -> str:
        """What stands before the value at the end of a judgment: ``Score:``, ``<score>``, ``{"score":``, ..."""
        word, key = self.words[0], "_".join(self.words[0].lower().split())
        return {"label": f"{word}:", "tag": f"<{key}>", "json": f'{{"{key}":', "boxed": r"\boxed{", "brackets": "[["}[
            self.kind
        ]

    @property
    def choices(self) -> tuple[str, ...]:
        """What may follow ``prefix``, one text a value: `` 4``, ``4</score>``, `` 4}``, ``4}``, ``4]]``."""
        key = "_".join(self.words[0].lower().split())
        before, after = {
            "label": (" ", ""),
            "tag": ("", f"</{key}>"),
            "json": (" ", "}"),
            "boxed": ("", "}"),
            "brackets": ("", "]]"),
        }[self.kind]
        quote = '"' if self.kind == "json" and not all(value.isdecimal() for value in self.values) else ""
        return tuple(f"{before}{quote}{value}{quote}{after}" for value in self.values)

    @property
    def settings(self) -> dict[str, object]:
        """What decides how verdicts are read and masked, for fingerprints."""
        return {"kind": self.kind, "words": list(self.words)}

    def anchors(self, folded: str, most: int | None = None) -> list[Anchor]:
        """The places of a folded text from which a verdict may be read, in order; no more labels than ``most``."""
        heads, pattern = _patterns(self.words, self.value)
        found: list[Anchor] = []
        head = heads.search(folded)
        while head is not None and (most is None or len(found) < most):
            match = pattern.match(folded, head.start())
            anchor = _anchor(match) if match else None
            if anchor is not None:
                found.append(anchor)
            head = heads.search(folded, head.start() + 1)
        enclosing = {"boxed": _BOXED, "brackets": _BRACKETS}.get(self.kind)
        if enclosing is not None:
            spans = (match.span() for match in enclosing.finditer(folded))
            found += [Anchor(start, start, end, start, end, "enclosed") for start, end in spans]
            found.sort(key=lambda anchor: anchor.start)
        return found

    def mask(self, text: str) -> str:
        """``text`` so that no verdict can be read from any part of it: look-alikes break every anchor.

        ``Score: 5`` becomes ``Score∶ 5``, ``the score is 5`` becomes ``the score∶ is 5``, ``<score>`` becomes
        ``‹score>``. A text without anchors is unchanged.
        """
        masked = self._broken(text)
        while masked != text:  # what breaks one label may set another one free: "点数Score = 5"
            text, masked = masked, self._broken(masked)
        return masked

    def _broken(self, text: str) -> str:
        """``text`` with every anchor broken."""
        folded = fold(text)
        anchors = self.anchors(folded.text)
        positions = folded.positions() if anchors else ()
        edits: dict[int, tuple[int, str]] = {}  # by position: how many characters are replaced, and by what
        for anchor in anchors:
            if anchor.form in ("tag", "enclosed"):
                lookalike = {"<": LOOKALIKE_BRACKET, "\\": "⧵", "[": "⁅"}[folded.text[anchor.start]]
                edits[positions[anchor.start]] = (1, lookalike)
            elif anchor.form == "colon" and folded.text[anchor.separator] == ":":
                edits[positions[anchor.separator]] = (1, LOOKALIKE_COLON)
            else:
                edits.setdefault(positions[anchor.word_end - 1] + 1, (0, LOOKALIKE_COLON))
        parts, end = [], 0
        for position, (replaced, lookalike) in sorted(edits.items()):
            parts += [text[end:position], lookalike]
            end = position + replaced
        return "".join([*parts, text[end:]])


def _anchor(match: re.Match[str]) -> Anchor | None:
    """The anchor of a match of `_anchor_pattern`; None when the word is not a tag's name although ``>`` follows."""
    word_start, word_end = match.span("word")
    if match["tag"] is not None:
        opening = _TAG_OPEN.search(match.string, max(0, word_start - 40), word_start)
        if opening is None:
            return None
        return Anchor(opening.start(), word_start, word_end, opening.start(), match.end("tag"), "tag")
    form = _FORMS[match.lastgroup or ""]
    scale = match["scale"] or match["late"] or match["aside"] or ""
    post = match["post"] or match["before"] or ""
    return Anchor(word_start, word_start, word_end, match.start(form), match.end(form), form, scale, post)


_FORMS: dict[str, Literal["colon", "copula", "loose"]] = {"colon": "colon", "copula": "copula", "loose": "loose"}

SCORES = VerdictFormat()
WINNERS = VerdictFormat(words=WINNER_WORDS, values=JUDGMENTS, value=WINNER_VALUE)


@lru_cache(maxsize=64)
def score_format(kind: Kind, words: tuple[str, ...], min_score: float, max_score: float) -> VerdictFormat:
    """The format of a score in [min_score, max_score]; the whole scores in that range can be written."""
    values = range(-int(-min_score // 1), int(max_score // 1) + 1)
    return VerdictFormat(kind, words or SCORE_WORDS, tuple(map(str, values)))


@lru_cache(maxsize=64)
def winner_format(kind: Kind, words: tuple[str, ...]) -> VerdictFormat:
    """The format of a meta-judge's winner, one of two judgments."""
    values = LETTERS if kind in ("boxed", "brackets") else JUDGMENTS
    return VerdictFormat(kind, words or WINNER_WORDS, values, WINNER_VALUE)
