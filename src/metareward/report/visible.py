"""Model text made safe to look at: what a screen would hide or obey is spelled out.

Control characters could drive a terminal, bidi controls reorder a line, tag characters hide an instruction.
Escaping for HTML is another matter and stays with the template.
"""

from __future__ import annotations

import unicodedata

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
