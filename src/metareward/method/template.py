"""Prompt templates: text files with ``{slots}``, rendered so that judged text can't break out of its slot.

The actor is trained on the judge's scores, so an answer that could close its slot and continue as the prompt would be
found and rewarded. `render` therefore replaces slots in one pass and escapes slot text: ``<`` of the template's own
tags (``</answer>``) and of chat control tokens (``<|end|>``) becomes the look-alike ``‹``, and ``:`` after the
template's own labels (``Answer:``) becomes ``∶``. Text without delimiters is unchanged. `fill` does not escape:
published benchmark scores were made with plain substitution.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from metareward.errors import UserError
from metareward.types import Messages

LOOKALIKE_BRACKET = "‹"
LOOKALIKE_COLON = "∶"

_PROMPTS = resources.files("metareward").joinpath("method", "prompts")
_SLOT = re.compile(r"\{(\w+)\}")
# White space and invisible characters, which a model ignores inside a tag.
_BLANK = r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*"
_LINE_START = r"(?<![^\n\r\x0b\x0c\x85\u2028\u2029])"
_TAG_NAME = re.compile(r"</?\s*([A-Za-z][\w.-]*)[^<>\n]*>")
_LABEL = re.compile(r"^[ \t]*([^\W_][\w ]{0,39}?)[ \t]*:[ \t]*(?=\n?\{\w+\}|$)", re.MULTILINE)
_CONTROL_TOKEN = r"[<＜](?=\|\w[\w-]*\|[>＞])"


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt text with ``{slots}``. ``sha256`` is that of ``text`` in UTF-8 and belongs in fingerprints."""

    name: str
    text: str
    sha256: str

    def require(self, *slots: str) -> None:
        """Raise `UserError` naming every slot that the text lacks."""
        if missing := _missing(self.text, slots):
            raise UserError(f"prompt text {self.name!r} lacks {missing}: add it where the text belongs")


def load_template(name_or_path: str) -> Template:
    """The packaged text of that name, or the file at a path that ends in ``.txt``.

    Raises `UserError` when there is no such text, naming the nearest ones, or when the file is not UTF-8 text.
    """
    name, path = name_or_path, Path(name_or_path)
    if name_or_path.endswith(".txt"):
        name = path.stem
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"prompt text {path}: not UTF-8 (byte {error.start}): save the file as UTF-8") from error
        except FileNotFoundError as error:
            siblings = sorted(other.name for other in path.parent.glob("*.txt"))
            raise UserError(f"no prompt text at {path}: {_nearest(path.name, siblings)}") from error
        except OSError as error:
            raise UserError(f"prompt text {path}: can't be read ({error.strerror}): name a text file") from error
    elif name in packaged_names():
        text = _PROMPTS.joinpath(f"{name}.txt").read_text(encoding="utf-8")
    else:
        nearest = _nearest(name, packaged_names())
        raise UserError(f"no prompt text named {name!r}: {nearest}, or give a path that ends in .txt")
    text = text.rstrip("\n")  # the last newline belongs to the file, not to the prompt
    return Template(name, text, hashlib.sha256(text.encode()).hexdigest())


def packaged_names() -> tuple[str, ...]:
    """The names of the packaged prompt texts, sorted."""
    names = (file.name for file in _PROMPTS.iterdir())
    return tuple(sorted(name.removesuffix(".txt") for name in names if name.endswith(".txt")))


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known)
    return f"there is {', '.join(near)}" if near else "there are no .txt files in that folder"


def _missing(text: str, slots: Iterable[str]) -> str:
    present = set(_SLOT.findall(text))
    return ", ".join(f"{{{slot}}}" for slot in slots if slot not in present)


def render(template: Template, slots: Mapping[str, str]) -> str:
    """The template's text with every ``{name}`` of ``slots`` replaced by its escaped text, in one pass.

    Other braces, in the template or in slot text, are kept.
    """
    return fill(template.text, {name: escape(text, template) for name, text in slots.items()})


def fill(text: str, slots: Mapping[str, str]) -> str:
    """``text`` with every ``{name}`` of ``slots`` replaced verbatim, in one pass; other braces are kept."""
    return _SLOT.sub(lambda slot: slots.get(slot[1], slot[0]), text)


def require(text: str, where: str, *slots: str) -> None:
    """Raise `UserError` naming every slot that a benchmark's prompt ``text``, loaded from ``where``, lacks."""
    if missing := _missing(text, slots):
        raise UserError(f"{where}: the prompt text lacks {missing}; fix: name the benchmark's own file")


def escape(text: str, template: Template) -> str:
    """``text`` with the delimiters of ``template`` and chat control tokens replaced by look-alikes."""
    brackets, labels = _delimiters(template.text)
    text = brackets.sub(LOOKALIKE_BRACKET, text)
    return text if labels is None else _escape_colons(text, labels)


def escape_label(text: str, label: str) -> str:
    """``text`` with a look-alike colon on every line that begins with ``label`` and a colon, Markdown or not."""
    return _escape_colons(text, _label_pattern((label,)))


def conversation(messages: Messages) -> str:
    """A prompt as one text: the text of a single turn, or several turns with role labels.

    Role labels inside a turn are escaped, so that a turn can't contain further turns.
    """
    if len(messages) == 1:
        return messages[0].content
    roles = _label_pattern(("System", "User", "Assistant"))
    return "\n\n".join(f"{turn.role.capitalize()}: {_escape_colons(turn.content, roles)}" for turn in messages)


@lru_cache(maxsize=64)
def _delimiters(text: str) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """Patterns for the opening bracket of the tags in ``text`` and for its labels up to their colon."""
    tags = sorted({re.escape(name) for name in _TAG_NAME.findall(text)})
    tag = rf"[<＜](?={_BLANK}(?:/{_BLANK})?(?:{'|'.join(tags)})(?![\w-]))" if tags else None
    brackets = re.compile("|".join(filter(None, [tag, _CONTROL_TOKEN])), re.IGNORECASE)
    labels = tuple(sorted(set(_LABEL.findall(text))))
    return brackets, _label_pattern(labels) if labels else None


@lru_cache(maxsize=64)
def _label_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    """A label at the start of a line, Markdown or not; group 1 is all but the colon."""
    words = "|".join(r"\s+".join(map(re.escape, label.split())) for label in labels)
    return re.compile(rf"({_LINE_START}[ \t*_#>]*(?:{words})[ \t*_]*)[:：]", re.IGNORECASE)


def _escape_colons(text: str, labels: re.Pattern[str]) -> str:
    return labels.sub(rf"\1{LOOKALIKE_COLON}", text)
