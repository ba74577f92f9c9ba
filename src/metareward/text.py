"""Text of models, servers and users made safe: to show, to put on one line, to encode as UTF-8, to search (`fold`);
YAML documents."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

_ESCAPED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t\u200c\u200d")  # line ends, tabs, and the two joiners that scripts and emoji need


def escape_control(text: str) -> str:
    """``text`` with every invisible character escaped: ``\\x00`` as ``␀``, a bidirectional override as ``⟨U+202E⟩``."""
    if _PLAIN.fullmatch(text):
        return text
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


def parse_yaml(text: str) -> object:
    """The YAML document in ``text``: plain values only. Raises `ValueError` with the reason in one line.

    Aliases (``*name``) are refused: a few lines of them stand for more values than a machine holds.
    """
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("not valid YAML: aliases (*name) aren't read")
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {one_line(str(error))}") from None
    except RecursionError:
        raise ValueError("not valid YAML: brackets are nested too deeply") from None


def replace_surrogates(text: str) -> str:
    """``text`` with every lone surrogate as "?": UTF-8 can't hold them, but some servers send them."""
    return text.encode("utf-8", "replace").decode()


# Folding: the text without what an eye or a model overlooks.


@dataclass(frozen=True, slots=True)
class Folded:
    """The folded ``text`` of ``source``, in lower case."""

    text: str
    source: str

    def positions(self) -> Sequence[int]:
        """For each character of ``text`` its index in ``source``."""
        if len(self.text) == len(self.source) and _PLAIN.fullmatch(self.source):
            return range(len(self.text))
        return [index for index, char in enumerate(self.source) for _ in _FOLDING[ord(char)]]


_LINE_ENDS = frozenset("\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")
# Ignored when shown, but by category letters or unassigned (Unicode: Default_Ignorable_Code_Point).
_IGNORED = frozenset([0x115F, 0x1160, 0x2065, 0x3164, 0xFFA0, *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000)])
_PLAIN = re.compile(r"[\n\t -~]*")
_EXPANDED = ("<wide>", "<narrow>", "<circle>", "<font>", "<small>", "<square>", "<compat>", "<vertical>")


class _Folding(dict[int, str]):
    """What each code point becomes; filled on demand."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold_character(chr(code))
        return folded


def _fold_character(char: str) -> str:
    """One character folded: "" if it is ignored when shown."""
    if char in _LINE_ENDS:
        return "\n"
    if char.isspace():
        return "\t" if char == "\t" else " "
    category = unicodedata.category(char)
    if category in ("Cf", "Cc", "Mn", "Me") or ord(char) in _IGNORED:
        return ""
    if category == "Nd":
        return str(unicodedata.decimal(char))
    decomposed = unicodedata.decomposition(char)
    if not decomposed or (decomposed.startswith("<") and not decomposed.startswith(_EXPANDED)):
        lower = char.lower()  # ½ and ² stay what they are
        return lower if len(lower) == 1 else "".join(map(_fold_character, lower))
    letters = unicodedata.normalize("NFKD", char)
    return "".join(map(_fold_character, letters)) if letters != char else char.lower()


_FOLDING = _Folding()


def fold(text: str) -> Folded:
    """``text`` in lower case, without invisible characters and accents, full-width and circled characters plain.

    Digits of all scripts are 0 to 9, every kind of line end is a line feed, every other white space a space.
    """
    return Folded(text.lower() if _PLAIN.fullmatch(text) else text.translate(_FOLDING), text)
