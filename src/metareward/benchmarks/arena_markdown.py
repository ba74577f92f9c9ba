"""What Arena-Hard's style control counts in an answer: tokens, headers, list items and bold spans.

Code blocks are cut out before the marks are counted. Tokens are upstream's count where the answer's file has it; the
length in characters stands in for it where it hasn't.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_CODE = re.compile(r"```[^`]*```")
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LISTED = (re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE))
_BOLD = (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__"))


@dataclass(frozen=True, slots=True)
class Style:
    """The counts of one answer; ``tokens`` or ``chars`` is None where it isn't known."""

    tokens: float | None
    chars: float | None
    headers: float
    lists: float
    bolds: float


def count_style(text: str, tokens: float | None) -> Style:
    """The style of ``text``."""
    plain = _CODE.sub("", text)
    return Style(
        tokens=tokens,
        chars=len(text),
        headers=_matches(plain, _HEADER),
        lists=_matches(plain, *_LISTED),
        bolds=_matches(plain, *_BOLD),
    )


def _matches(text: str, *patterns: re.Pattern[str]) -> int:
    return sum(len(pattern.findall(text)) for pattern in patterns)
