"""How a server is held to `Sampling.choices`, and made to continue an assistant's message.

    structured_outputs  vLLM: {"choice": [...]}; guided_choice before vLLM 0.12
    regex               SGLang
    response_format     OpenAI and others: a JSON schema with an enum; these servers don't continue a message, so a
                        user's turn after it asks for the rest

Servers that don't know a field ignore it or refuse it, so a reply counts only if it is one of the choices.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from metareward.engines.base import EngineError, as_choice, max_choice_tokens
from metareward.types import Completion, Message, Messages, Sampling, Step, TopLogprob

ChoiceField = Literal["structured_outputs", "guided_choice", "regex", "response_format"]
# In this order they are tried.
CHOICE_FIELDS: tuple[ChoiceField, ...] = ("structured_outputs", "guided_choice", "regex", "response_format")
# A question whose answer is neither of these choices, unless the server is held to them.
PROBE = (Message("user", "What is two and two? Answer with one digit."),)
PROBE_SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_tokens=16, choices=("quartz-7", "quartz-9"))

_REST = "Your last message is unfinished. Give what completes its last line, and nothing else."
_JSON_TOKENS = 64  # around the choice


def continuation_fields(messages: Messages) -> dict[str, object]:
    """The fields that make vLLM and SGLang continue the last message if it is the assistant's."""
    continued = messages[-1].role == "assistant"
    return {"continue_final_message": True, "add_generation_prompt": False} if continued else {}


def choice_fields(messages: Messages, choices: Sequence[str], field: ChoiceField) -> tuple[Messages, dict[str, object]]:
    """The messages to send, and the fields that hold the server to ``choices``."""
    fields: dict[str, object] = {"max_tokens": max_choice_tokens(choices)}
    if field == "response_format":
        if messages[-1].role == "assistant":
            messages = (*messages, Message("user", _REST))
        schema = {
            "type": "object",
            "properties": {
                "choice": {"type": "string", "enum": [*dict.fromkeys(choice.strip() for choice in choices)]}
            },
            "required": ["choice"],
            "additionalProperties": False,
        }
        wanted = {"type": "json_schema", "json_schema": {"name": "choice", "strict": True, "schema": schema}}
        return messages, {"max_tokens": max_choice_tokens(choices) + _JSON_TOKENS, "response_format": wanted}
    if field == "structured_outputs":
        fields["structured_outputs"] = {"choice": list(choices)}
    elif field == "guided_choice":
        fields["guided_choice"] = list(choices)
    else:
        fields["regex"] = "|".join(f"({re.escape(choice)})" for choice in choices)
    return messages, fields | continuation_fields(messages)


def read_choice(completion: Completion, choices: Sequence[str], field: ChoiceField) -> Completion:
    """The choice that a server's completion is, with its ``tokens``. Raises `EngineError` if it is none of them."""
    value = completion.text
    if field == "response_format":
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            value = str(json.loads(value)["choice"])
    try:
        chosen = as_choice(replace(completion, text=value), choices)
    except EngineError as error:
        raise EngineError(f"ignores {field} (engine.choices_field): it {error}") from None
    if field != "response_format":
        return chosen
    found = _step_of(completion, value, choices)
    return replace(chosen, steps=() if found is None else (Step(chosen.text, found),))


def _step_of(completion: Completion, value: str, choices: Sequence[str]) -> tuple[TopLogprob, ...] | None:
    """The choices with their log-probabilities at the token that wrote the ``value`` of the JSON text; None without."""
    start = completion.text.rfind(f'"{value}"') + 1
    for step in completion.steps:
        if start < len(step.text):
            lead = step.text[:start]
            names = {choice.strip(): choice for choice in choices}
            written = ((each.text[len(lead) :].partition('"')[0], each) for each in step.top_logprobs)
            found = [(names[name], each) for name, each in written if name in names and each.text.startswith(lead)]
            return tuple(TopLogprob(choice, each.logprob) for choice, each in found)
        start -= len(step.text)
    return None
