"""Models that think before they answer: where the thinking ends and the answer begins.

What such a model thinks is no part of its answer. Judges see, parsers read and length control counts the answer alone;
the thinking is kept beside it, because DPO trains on all that was written.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The marks around the thinking. Some chat templates write the opening one themselves, so it may be missing."""

    opening: str = "<think>"
    closing: str = "</think>"

    def split(self, text: str) -> tuple[str, str]:
        """``(thinking, answer)``: the answer is what follows the last closing mark, without leading white space.

        The two joined are ``text``. Thinking that was begun and not ended leaves an empty answer; a text without
        marks is all answer.
        """
        place = text.rfind(self.closing)
        if place < 0:
            return (text, "") if self.opening in text else ("", text)
        answer = text[place + len(self.closing) :].lstrip()
        return text[: len(text) - len(answer)], answer
