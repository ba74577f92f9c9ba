"""What is shown of texts that others wrote: one line, printable, short."""

from __future__ import annotations

import json

from metareward.types import Messages

_LONGEST_MESSAGE = 300
_LONGEST_PROMPT = 40


def one_line(text: str, limit: int = _LONGEST_MESSAGE) -> str:
    """``text`` with every run of white space as one space, unprintable characters as "?", at most ``limit`` long."""
    flat = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text[: 20 * limit].split()))
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def first_words(messages: Messages) -> str:
    """The beginning of the last turn, quoted: for a person to know the request by."""
    return f'"{one_line(messages[-1].content, _LONGEST_PROMPT)}"'


def said_in(raw: bytes) -> str:
    """What an error reply says for itself: the message in the fields that servers use, or else all of it."""
    try:
        said = json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "replace")
    for field in ("error", "message", "detail"):
        if isinstance(said, dict) and field in said:
            said = said[field]
    return said if isinstance(said, str) else json.dumps(said)
