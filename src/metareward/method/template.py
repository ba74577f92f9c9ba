"""Prompt templates: text files with ``{slots}``, rendered so that judged text can't break out of its slot.

The actor is trained on the judge's scores, so an answer that could close its slot and continue as the prompt would be
found and rewarded. `render` therefore replaces slots in one pass and escapes slot text: the first bracket of the
template's own tags (``</answer>``) and of chat control strings (``<|end|>``, ``[INST]``) becomes a look-alike (``‹``,
``〔``), and ``:`` after the template's own labels (``Answer:``) becomes ``∶``. Full-width letters and invisible
characters don't hide a tag. Text without delimiters is unchanged. `fill` does not escape: published benchmark scores
were made with plain substitution.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise
from pathlib import Path

from metareward.errors import UserError
from metareward.text import fold
from metareward.types import Message, Messages

LOOKALIKE_BRACKET = "‹"
LOOKALIKE_SQUARE = "〔"
LOOKALIKE_COLON = "∶"

_PROMPTS = resources.files("metareward").joinpath("method", "prompts")
_SLOT = re.compile(r"\{(\w+)\}")
_TAG_NAME = re.compile(r"</?\s*([A-Za-z][\w.-]*)[^<>\n]*>")
_LABEL = re.compile(r"^[ \t]*([^\W_][\w ]{0,39}?)[ \t]*:[ \t]*(?=\n?\{\w+\}|$)", re.MULTILINE)

# Control strings of chat templates, in folded text: ``<|im_end|>``, ``[|endofturn|]``, and those below by name.
_ANGLE_NAMES = (
    r"s|bos|eos|pad|unk|eot|eod|sop|eop|unused\d{1,5}|extra_id_\d{1,5}|fim_\w{1,20}|(?:start|end)_of_(?:turn|image)|"
    r"think|thinking|thought|reasoning|tools?|tool_(?:call|response|result)s?"
)
_SQUARE_NAMES = (
    "inst|sys|system_prompt|available_tools|tool_(?:calls|results|content)|think|[gs]mask|[be]os|pad|unk|cls|sep"
)
_SLASH, _BAR = "[/⁄∕⧸]", "[|│∣ǀ]"
_AFTER_ANGLE = (
    rf"{_BAR}{_SLASH}?[^\s<>|]{{1,64}}?{_BAR}>|{_SLASH}?(?:{_ANGLE_NAMES})>|<\s{{0,9}}{_SLASH}?\s{{0,9}}sys\s{{0,9}}>>"
)
_AFTER_SQUARE = rf"{_BAR}{_SLASH}?[^\s\[\]|]{{1,64}}?{_BAR}\]|{_SLASH}?(?:{_SQUARE_NAMES})\]"
_CONTROL_START = rf"<(?={_AFTER_ANGLE})|\[(?={_AFTER_SQUARE})"
CONTROL_STARTS = re.compile(_CONTROL_START)
_CONTROL_STRING = re.compile(rf"<(?:{_AFTER_ANGLE})|\[(?:{_AFTER_SQUARE})")
_LOOKALIKES = {"<": LOOKALIKE_BRACKET, "[": LOOKALIKE_SQUARE}


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
    near = difflib.get_close_matches(name, known, cutoff=0.5) or list(known)
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
    """``text`` with the delimiters of ``template`` and chat control strings replaced by look-alikes."""
    brackets, labels = _delimiters(template.text)
    text = escape_brackets(text, brackets)
    return text if labels is None else _escape_colons(text, labels)


def escape_brackets(text: str, starts: re.Pattern[str]) -> str:
    """``text`` with a look-alike in place of every bracket at which ``starts`` matches the folded text (`fold`).

    After a character that isn't a bracket stands a look-alike bracket.
    """
    return _replace(text, starts, lambda char: _LOOKALIKES.get(fold(char).text, char + LOOKALIKE_BRACKET))


def _replace(text: str, pattern: re.Pattern[str], lookalike: Callable[[str], str]) -> str:
    """``text`` with look-alikes where ``pattern``, or its group if it has one, begins to match the folded text."""
    folded = fold(text)
    found = [match.start(pattern.groups) for match in pattern.finditer(folded.text)]
    places = folded.positions() if found else ()
    parts = [text[: places[found[0]]] if found else text]
    for at, end in pairwise([*(places[place] for place in found), len(text)]):
        parts += (lookalike(text[at]), text[at + 1 : end])
    return "".join(parts)


def control_starts(strings: Iterable[str]) -> re.Pattern[str]:
    """A pattern for `escape_brackets`: the first character of each of these control strings, in any case."""
    folded = sorted({fold(each).text for each in strings} - {""})
    starts = {f"{re.escape(each[0])}(?={re.sub('[0-9]+', '[0-9]+', re.escape(each[1:]))})": None for each in folded}
    return re.compile("|".join(starts) or r"(?!)")


def control_strings_in(text: str) -> set[str]:
    """The control strings of known chat templates that are in ``text``, folded."""
    return {match[0] for match in _CONTROL_STRING.finditer(fold(text).text)}


def is_control_string(text: str) -> bool:
    """Whether all of ``text`` is a control string of some chat template, such as ``<|im_end|>``."""
    return _CONTROL_STRING.fullmatch(fold(text).text) is not None


def conversation(messages: Messages) -> str:
    """A prompt as one text: the text of a single turn, or several turns with role labels.

    Role labels inside a turn are escaped, so that a turn can't contain further turns.
    """
    if len(messages) == 1:
        return messages[0].content
    roles = _label_pattern(("System", "User", "Assistant"))
    return "\n\n".join(f"{turn.role.capitalize()}: {_escape_colons(turn.content, roles)}" for turn in messages)


def with_system(system_prompt: str | None, messages: Messages) -> Messages:
    """``messages`` preceded by the system prompt, unless that is None or they have a system prompt already."""
    if system_prompt is None or messages[0].role == "system":
        return messages
    return (Message("system", system_prompt), *messages)


@lru_cache(maxsize=64)
def _delimiters(text: str) -> tuple[re.Pattern[str], re.Pattern[str] | None]:
    """Patterns for the opening bracket of the tags in ``text`` and for its labels up to their colon."""
    tags = sorted({re.escape(fold(name).text) for name in _TAG_NAME.findall(text)})
    tag = rf"<(?=\s*(?:{_SLASH}\s*)?(?:{'|'.join(tags)})(?![\w-]))" if tags else None
    brackets = re.compile("|".join(filter(None, [tag, _CONTROL_START])))
    labels = tuple(sorted(set(_LABEL.findall(text))))
    return brackets, _label_pattern(labels) if labels else None


@lru_cache(maxsize=64)
def _label_pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    """The colon of a label at the start of a line of folded text, Markdown or not."""
    words = "|".join(r"\s+".join(map(re.escape, fold(label).text.split())) for label in labels)
    return re.compile(rf"^[ \t*_#>]*(?:{words})[ \t*_]*(:)", re.MULTILINE)


def _escape_colons(text: str, labels: re.Pattern[str]) -> str:
    return _replace(text, labels, lambda _: LOOKALIKE_COLON)
