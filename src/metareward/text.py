"""Text of models, servers and users made safe: to show, to put on one line, to encode as UTF-8."""

from __future__ import annotations

import unicodedata

_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t\u200c\u200d")  # line ends, tabs, and the two joiners that scripts and emoji need


def escape_control(text: str) -> str:
    """``text`` with every invisible character escaped: ``\\x00`` as ``␀``, a bidirectional override as ``⟨U+202E⟩``."""
    escaped = []
    for char in text.replace("\r\n", "\n"):
        code = ord(char)
        # The supplementary variation selectors are marks, but they draw nothing and can carry hidden bytes.
        invisible = unicodedata.category(char) in _ESCAPED_CATEGORIES or 0xE0100 <= code <= 0xE01EF
        if invisible and char not in _KEPT:
            char = chr(0x2400 + code) if code < 0x20 else "␡" if code == 0x7F else f"⟨U+{code:04X}⟩"
        escaped.append(char)
    return "".join(escaped)


def one_line(text: str, limit: int = 300) -> str:
    """``text`` as one printable line: white space as one space, unprintable characters as "?", at most ``limit``."""
    flat = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[: 20 * limit].split()))
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def replace_surrogates(text: str) -> str:
    """``text`` with every lone surrogate as "?": UTF-8 can't hold them, but some servers send them."""
    return text.encode("utf-8", "replace").decode()
