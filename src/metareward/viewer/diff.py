"""What differs between two texts, word by word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Indel

_PARTS = re.compile(r"\s+|\w+|[^\w\s]")
_MOST = 12_000  # words and gaps of a side: the comparison takes memory by the product of the two


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of text: in both, or only in this side."""

    kind: Literal["both", "only"]
    text: str


def word_diff(one: str, other: str) -> tuple[tuple[Part, ...], tuple[Part, ...]] | None:
    """Both texts in parts, each text whole when its parts are joined; None for texts too long to compare."""
    a, b = _PARTS.findall(one), _PARTS.findall(other)
    if len(a) > _MOST or len(b) > _MOST:
        return None
    left, right = list[Part](), list[Part]()
    for code in Indel.opcodes(a, b):
        kind: Literal["both", "only"] = "both" if code.tag == "equal" else "only"
        for side, words in ((left, a[code.src_start : code.src_end]), (right, b[code.dest_start : code.dest_end])):
            if words:
                side.append(Part(kind, "".join(words)))
    return tuple(left), tuple(right)
