"""The pairwise question of AlpacaEval 2 and the reading of its answer: which output is better, "m" or "M".

The prompt text is the user's copy of ``alpaca_eval_clf.txt`` (tatsu-lab/alpaca_eval, evaluators_configs): ChatML with
``{instruction}``, ``{output_1}`` (named m) and ``{output_2}`` (named M). It is cut into messages before it is filled,
so an output that holds ChatML marks can't open a message of its own. The judge writes one token. Where the engine gives
token probabilities, the share of the first output is P(m) / (P(m) + P(M)); where it doesn't, the label that was drawn
decides. A text that is neither label is no preference.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from metareward.benchmarks.rows import read_text
from metareward.benchmarks.slots import fill, require
from metareward.errors import UserError
from metareward.types import ChatRole, Completion, Message, Messages, Sampling, TopLogprob

FIRST, SECOND = "m", "M"

# One token, at temperature 1, with the five most probable ones: the setting of weighted_alpaca_eval_gpt4_turbo.
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=1, top_logprobs=5)

Mode = Literal["token probabilities", "sampled label", "scores of each alone", "truth"]

_MESSAGE = re.compile(r"<\|im_start\|>[ \t]*(\w+)[^\n]*\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LabelPrompt:
    """The messages with their slots, and the digest of the file they come from."""

    messages: Messages
    sha256: str

    def ask(self, instruction: str, first: str, second: str) -> Messages:
        """The question, ``first`` shown first."""
        slots = {"instruction": instruction, "output_1": first, "output_2": second}
        return tuple(replace(message, content=fill(message.content, slots)) for message in self.messages)


@dataclass(frozen=True, slots=True)
class FirstShare:
    """How much of the preference the output shown first got, in [0, 1], and how that was read."""

    share: float
    mode: Mode


def load_label_prompt(path: Path) -> LabelPrompt:
    """The judge's prompt from a ChatML file. Raises `UserError` when it holds no messages or lacks a slot."""
    text = read_text(path)
    require(text, str(path), "instruction", "output_1", "output_2")
    messages = tuple(_message(role, content, path) for role, content in _MESSAGE.findall(text))
    if not messages:
        raise UserError(f"{path}: no <|im_start|> messages in it; fix: name the evaluator's alpaca_eval_clf.txt")
    return LabelPrompt(messages, hashlib.sha256(text.encode()).hexdigest())


def _message(role: str, content: str, path: Path) -> Message:
    known: ChatRole | None = next((each for each in get_args(ChatRole) if each == role), None)
    if known is None:
        raise UserError(f"{path}: a message of role {role!r}; fix: use system, user or assistant")
    return Message(known, content.strip())


def read_label(written: Completion) -> FirstShare | None:
    """What the judge's token says; None when neither label is there."""
    if written.steps:
        share = _share(written.steps[0].top_logprobs)
        return None if share is None else FirstShare(share, "token probabilities")
    label = written.text.strip()
    return FirstShare(float(label == FIRST), "sampled label") if label in (FIRST, SECOND) else None


def _share(top_logprobs: Sequence[TopLogprob]) -> float | None:
    """P(m) / (P(m) + P(M)); a label that is not among them has probability 0."""
    for cut in (str, str.strip):  # forms with a space count only where no other form of a label is there
        first, second = (
            math.fsum(math.exp(each.logprob) for each in top_logprobs if cut(each.text) == label)
            for label in (FIRST, SECOND)
        )
        if first + second > 0:
            return first / (first + second)
    return None
