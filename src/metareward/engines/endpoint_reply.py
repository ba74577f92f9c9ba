"""Reading a chat completion strictly: a whole one with everything that was asked for, or an error that says what lacks.

How a choice ended: "stop" and "length" are themselves. "content_filter" counts as "length", because the text was cut
off, though by a filter: a judgment then has no score, an answer stands as far as it got, and one choice of many
doesn't cost its prompt, which the filter would catch again next time. Anything else is an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from metareward.engines.endpoint_words import said_in
from metareward.types import Completion, Step, TopLogprob

# What a token that holds only a part of a character reads as.
_UNFINISHED = "\ufffd"


class UnreadableError(Exception):
    """No chat completion, or half of one; another try may give a whole one."""


class UnusableError(Exception):
    """A chat completion that lacks what is needed; another try would lack it too."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server gave: at most as many ``choices`` as were asked for, of the ``offered`` ones.

    The token counts are the server's, for all that it offered; ``filtered`` of the choices were cut by a filter.
    """

    choices: tuple[Completion, ...]
    offered: int
    filtered: int
    prompt_tokens: int
    completion_tokens: int


class _Chance(BaseModel):
    token: str
    exact: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(None, alias="bytes")
    logprob: float

    @property
    def text(self) -> str:
        # Where the bytes are no text by themselves, `token` may be a description of them.
        return bytes(self.exact).decode("utf-8", "replace") if self.exact else self.token


class _Token(_Chance):
    top_logprobs: tuple[_Chance, ...] = ()


class _Logprobs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    index: int = 0
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None

    @property
    def text(self) -> str:
        # What a model says when it refuses is what it says; nothing is what one says that ends at once.
        return self.message.content or self.message.refusal or ""

    @property
    def tokens(self) -> list[_Token]:
        return (self.logprobs.content if self.logprobs else None) or []


class _Usage(BaseModel):
    prompt_tokens: NonNegativeInt = 0
    completion_tokens: NonNegativeInt


class _ChatCompletion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


def read_reply(raw: bytes, n: int, top_logprobs: int) -> Reply:
    """The body of a reply to a request for ``n`` choices.

    Raises `UnreadableError` for what is no chat completion, and `UnusableError` for one without token counts, with an
    unknown ending, or without token probabilities although ``top_logprobs`` were asked for.
    """
    reply = _parsed(raw)
    choices = sorted(reply.choices, key=lambda choice: choice.index)
    endings = [_ending(choice) for choice in choices]
    counts = _token_counts(choices, reply.usage)
    steps = [_steps(choice, top_logprobs) if top_logprobs else () for choice in choices[:n]]
    return Reply(
        tuple(
            Completion(*parts) for parts in zip((each.text for each in choices), endings, counts, steps, strict=False)
        ),
        offered=len(choices),
        filtered=sum(choice.finish_reason == "content_filter" for choice in choices[:n]),
        prompt_tokens=reply.usage.prompt_tokens if reply.usage else 0,
        completion_tokens=sum(counts),
    )


def _parsed(raw: bytes) -> _ChatCompletion:
    try:
        # Half of a surrogate pair, from a server that cuts inside a character, is no text: it becomes "?".
        whole = json.dumps(json.loads(raw), ensure_ascii=False).encode("utf-8", "replace")
        return _ChatCompletion.model_validate_json(whole)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UnreadableError(f"no chat completion ({place}: {first['msg']}): {said_in(raw)}") from None
    except (ValueError, RecursionError):
        raise UnreadableError(f"no whole JSON ({len(raw)} bytes): {raw.decode('utf-8', 'replace')}") from None


def _ending(choice: _Choice) -> Literal["stop", "length"]:
    reason = choice.finish_reason
    if reason == "stop":
        return "stop"
    if reason in ("length", "content_filter"):
        return "length"
    if reason in ("abort", "error"):
        raise UnreadableError(f"half a choice (finish_reason {reason!r})")
    raise UnusableError(f"ends a choice with finish_reason {reason!r}; known are 'stop', 'length' and 'content_filter'")


def _token_counts(choices: Sequence[_Choice], usage: _Usage | None) -> list[int]:
    """Of each choice: the server's count for one alone, the listed tokens, or the count split by length of text."""
    if usage and len(choices) == 1:
        return [usage.completion_tokens]
    if all(choice.tokens for choice in choices):
        return [len(choice.tokens) for choice in choices]
    if usage is None:
        raise UnusableError("counts no tokens (usage.completion_tokens)")
    # One more each, so that an empty text has its end token.
    lengths = [0, *accumulate(len(choice.text) + 1 for choice in choices)]
    ends = [round(usage.completion_tokens * length / lengths[-1]) for length in lengths]
    return [end - start for start, end in pairwise(ends)]


def _steps(choice: _Choice, top_logprobs: int) -> tuple[Step, ...]:
    if choice.text and not choice.tokens:
        raise UnusableError("gives no token probabilities (choices.logprobs.content), and this run needs them")
    texts = spelled([token.text for token in choice.tokens], choice.text)
    if texts is None:
        raise UnusableError("gives token probabilities that do not spell its text")
    return tuple(
        Step(text, _best(token.top_logprobs, top_logprobs)) for text, token in zip(texts, choice.tokens, strict=False)
    )


def _best(chances: Sequence[_Chance], most: int) -> tuple[TopLogprob, ...]:
    ranked = sorted(chances, key=lambda chance: -chance.logprob)
    return tuple(TopLogprob(chance.text, chance.logprob) for chance in ranked[:most])


def spelled(tokens: Sequence[str], text: str) -> list[str] | None:
    """What each token wrote of ``text``, as far as the text goes; None when the tokens don't make it up.

    A character that several tokens make up belongs to the last of them. Left out are tokens behind the text's end,
    such as the end token, and a space before the text, which some servers strip.
    """
    found = _spelled(tokens, text)
    return _spelled([tokens[0].lstrip(), *tokens[1:]], text) if found is None and tokens else found


def _spelled(tokens: Sequence[str], text: str) -> list[str] | None:
    texts: list[str] = []
    at = 0
    # The most that the unfinished characters since `at` can come to.
    reach = 0
    for token in tokens:
        if at == len(text):
            return texts
        if _UNFINISHED in token and not text.startswith(token, at):
            texts.append("")
            reach += len(token)
        elif token:
            start = text.find(token, at, at + reach + len(token))
            if start < 0:
                return None
            if reach:
                texts[-1] = text[at:start]
            texts.append(token)
            at, reach = start + len(token), 0
        else:
            texts.append("")
    if 0 < len(text) - at <= reach:
        texts[-1] = text[at:]
        at = len(text)
    return texts if at == len(text) else None
