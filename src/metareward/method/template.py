"""Prompt texts are files; the text being judged goes into their slots and can't get out of them.

One pass replaces ``{name}``, and what was put in is never scanned again. The actor is trained on what the judge
makes of its answers, so an answer that could close its own slot and go on in the prompt's voice would be found and
rewarded. Therefore the delimiters of the template itself (its tags such as ``</answer>`` and the labels such as
``Answer:`` that introduce a slot) and the control tokens of chat formats (``<|end|>``) are defanged in slot text:
``<`` becomes the look-alike ``‹`` and ``:`` becomes ``∶``. A reader sees the same text, but it is no delimiter any
more. Text without delimiters comes through byte for byte.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path

from metareward.errors import UserError
from metareward.types import Messages

LOOKALIKE_BRACKET = "‹"
LOOKALIKE_COLON = "∶"

# Spaces and invisible characters, which a reader of a tag passes over.
_BLANK = r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*"
_LINE_START = r"(?<![^\n\r\x0b\x0c\x85\u2028\u2029])"
_TAG_NAME = re.compile(r"</?\s*([A-Za-z][\w.-]*)[^<>\n]*>")
_LABEL = re.compile(r"^[ \t]*([^\W_][\w ]{0,39}?)[ \t]*:[ \t]*(?=\n?\{\w+\}|$)", re.MULTILINE)
_CONTROL_TOKEN = r"[<＜](?=\|\w[\w-]*\|[>＞])"
_PROMPTS = resources.files("metareward").joinpath("method", "prompts")
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt text with ``{slots}``. ``sha256`` is that of ``text`` in UTF-8 and belongs in fingerprints."""

    name: str
    text: str
    sha256: str

    def require(self, *slots: str) -> None:
        """Raise `UserError` naming every slot that the text lacks."""
        present = set(_SLOT.findall(self.text))
        missing = [f"{{{slot}}}" for slot in slots if slot not in present]
        if missing:
            raise UserError(f"prompt text {self.name!r} lacks {', '.join(missing)}: add it where the text belongs")


def load_template(name_or_path: str) -> Template:
    """The packaged text of that name, or the file at a path that ends in ``.txt``.

    Raises `UserError` when there is no such text, naming the nearest ones, or when the file is not UTF-8 text.
    """
    if name_or_path.endswith(".txt"):
        return _template(Path(name_or_path).stem, _read_file(Path(name_or_path)))
    names = packaged_names()
    if name_or_path not in names:
        nearest = _nearest(name_or_path, names)
        raise UserError(f"no prompt text named {name_or_path!r}: {nearest}, or give a path that ends in .txt")
    text = _PROMPTS.joinpath(f"{name_or_path}.txt").read_text(encoding="utf-8")
    return _template(name_or_path, text)


def packaged_names() -> tuple[str, ...]:
    """The names of the prompt texts that come with the package, sorted."""
    files = _PROMPTS.iterdir()
    return tuple(sorted(file.name.removesuffix(".txt") for file in files if file.name.endswith(".txt")))


def render(template: Template, slots: Mapping[str, str]) -> str:
    """The template's text with every ``{name}`` in ``slots`` replaced by its defanged text, in one pass.

    Other braces stay as they are, in the template as well as in slot text.
    """

    def fill(slot: re.Match[str]) -> str:
        text = slots.get(slot[1])
        return slot[0] if text is None else defang(text, template)

    return _SLOT.sub(fill, template.text)


def defang(text: str, template: Template) -> str:
    """``text`` with everything that would be a delimiter in ``template`` made harmless."""
    brackets, labels = _delimiters(template.text)
    text = brackets.sub(LOOKALIKE_BRACKET, text)
    return text if labels is None else _without_colons(text, labels)


def mask_label(text: str, label: str) -> str:
    """``text`` with a look-alike colon on every line that begins with ``label`` and a colon, however marked up."""
    return _without_colons(text, _label_pattern((label,)))


def conversation(messages: Messages) -> str:
    """A prompt as one text: the user's words alone, or, for more than one turn, the turns under their roles.

    A turn can't pretend to hold further turns: labels inside a turn are defanged.
    """
    if len(messages) == 1:
        return messages[0].content
    roles = _label_pattern(("System", "User", "Assistant"))
    return "\n\n".join(f"{turn.role.capitalize()}: {_without_colons(turn.content, roles)}" for turn in messages)


@lru_cache(maxsize=64)
def _delimiters(text: str) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """Patterns for the opening bracket of the template's tags and for its labels up to their colon."""
    tags = sorted({re.escape(name) for name in _TAG_NAME.findall(text)})
    tag = rf"[<＜](?={_BLANK}(?:/{_BLANK})?(?:{'|'.join(tags)})(?![\w-]))" if tags else None
    brackets = re.compile("|".join(filter(None, [tag, _CONTROL_TOKEN])), re.IGNORECASE)
    labels = tuple(sorted(set(_LABEL.findall(text))))
    return brackets, _label_pattern(labels) if labels else None


@lru_cache(maxsize=64)
def _label_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    """A label at the start of a line, however marked up; group 1 is all of it but the colon."""
    words = "|".join(r"\s+".join(map(re.escape, label.split())) for label in labels)
    return re.compile(rf"({_LINE_START}[ \t*_#>]*(?:{words})[ \t*_]*)[:：]", re.IGNORECASE)


def _without_colons(text: str, labels: re.Pattern[str]) -> str:
    return labels.sub(rf"\1{LOOKALIKE_COLON}", text)


def _template(name: str, text: str) -> Template:
    text = text.rstrip("\n")  # the last newline belongs to the file, not to the prompt
    return Template(name, text, hashlib.sha256(text.encode()).hexdigest())


def _read_file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"prompt text {path}: not UTF-8 (byte {error.start}): save the file as UTF-8") from error
    except FileNotFoundError as error:
        here = sorted(other.name for other in path.parent.glob("*.txt"))
        raise UserError(f"no prompt text at {path}: {_nearest(path.name, here)}") from error
    except OSError as error:
        raise UserError(f"prompt text {path}: can't be read ({error.strerror}): name a text file") from error


def _nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known)
    return f"there is {', '.join(near)}" if near else "there are no .txt files in that folder"


# --- Benchmarks' prompt texts are filled byte for byte, because published scores were made so: nothing is defanged.
#
# One pass replaces ``{name}``; what was put in is never scanned again, and other braces stay as they are.


def fill(template: str, slots: Mapping[str, str]) -> str:
    """``template`` with every ``{name}`` that ``slots`` knows replaced."""
    return _SLOT.sub(lambda slot: slots.get(slot[1], slot[0]), template)


def require(template: str, where: str, *names: str) -> None:
    """Raise `UserError` naming every slot that ``template``, which comes from ``where``, lacks."""
    missing = [f"{{{name}}}" for name in names if f"{{{name}}}" not in template]
    if missing:
        raise UserError(f"{where}: the prompt text lacks {', '.join(missing)}; fix: name the benchmark's own file")
