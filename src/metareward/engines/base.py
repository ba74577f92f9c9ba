"""`Engine`: the interface to any model, engines that wrap other engines, a scripted one for tests, shared checks."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Protocol, TypeVar

from metareward.errors import UserError
from metareward.method.judge import Reasoning
from metareward.storage.custody import require_weights
from metareward.types import Completion, Messages, ModelRole, Sampling

T = TypeVar("T")


class EngineError(Exception):
    """The engine can't serve this request; the text names the model or server, the request and the fix."""


class PassError(EngineError):
    """A pass over several requests failed, such as for want of memory; a request may succeed without the others."""


class LogprobsUnavailableError(EngineError):
    """The engine answers, but without the log-probabilities that ``sampling.top_logprobs`` asks for."""


class Engine(Protocol):
    """Many ``complete`` calls may run concurrently; the engine batches them."""

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """``n`` completions of one conversation; completion ``i`` depends on ``(sampling.seed, i)`` alone.

        If the last message is the assistant's, the model continues it, and a completion is what follows it. ``role``:
        what the model is used as; engines that serve one model ignore it. Raises `EngineError` when the model can't
        answer, for example when the prompt doesn't fit its context, or can't be held to ``sampling.choices``.
        """
        ...

    async def aclose(self) -> None:
        """Release memory, processes and connections."""
        ...


class RoleEngines:
    """Sends each request to the engine of its role: for example an external judge beside a local actor."""

    def __init__(self, engines: Mapping[ModelRole, Engine]) -> None:
        self._engines = dict(engines)

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """The completions of the role's engine."""
        return await self._engines[role].complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Close each distinct engine once, all of them even if closing one fails."""
        async with contextlib.AsyncExitStack() as stack:
            for engine in {id(engine): engine for engine in self._engines.values()}.values():
                stack.push_async_callback(engine.aclose)


class LazyEngine:
    """Opens an engine at the first request: work that finds everything cached opens nothing."""

    def __init__(self, open_engine: Callable[[], Awaitable[Engine]]) -> None:
        self._open_engine = open_engine
        self._engine: Engine | None = None
        self._lock = asyncio.Lock()

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """The engine's completions. Raises what opening it raises."""
        async with self._lock:
            if self._engine is None:
                self._engine = await self._open_engine()
        return await self._engine.complete(messages, sampling, n, role)

    async def aclose(self) -> None:
        """Close the engine if it was opened."""
        if self._engine is not None:
            await self._engine.aclose()
            self._engine = None


class StripReasoning:
    """Strips the reasoning from an engine's completions; requests get ``extra_tokens`` more tokens for it."""

    def __init__(self, engine: Engine, reasoning: Reasoning, extra_tokens: int = 0) -> None:
        self._engine = engine
        self._reasoning = reasoning
        self._extra_tokens = extra_tokens

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """What follows the reasoning, with the steps that generated it; empty if the reasoning didn't end.

        One of ``sampling.choices`` has no reasoning. An assistant's message that is continued begins with reasoning
        that is empty, since the one that preceded it is not known here.
        """
        if sampling.choices:
            return await self._engine.complete(self._after_reasoning(messages), sampling, n, role)
        extended = replace(sampling, max_tokens=sampling.max_tokens + self._extra_tokens)
        stripped = []
        for completion in await self._engine.complete(messages, extended, n, role):
            reasoning, answer = self._reasoning.split(completion.text)
            ends = accumulate(len(step.text) for step in completion.steps)
            steps = (step for step, end in zip(completion.steps, ends, strict=True) if end > len(reasoning))
            stripped.append(replace(completion, text=answer, steps=tuple(steps)))
        return stripped

    async def aclose(self) -> None:
        """Close the engine."""
        await self._engine.aclose()

    def _after_reasoning(self, messages: Messages) -> Messages:
        *before, last = messages
        if last.role != "assistant":
            return messages
        empty = f"{self._reasoning.start}\n\n{self._reasoning.end}\n\n"
        return (*before, replace(last, content=empty + last.content))


@dataclass(frozen=True, slots=True)
class Call:
    """One request that was made of a `ScriptedEngine`."""

    messages: Messages
    sampling: Sampling
    n: int
    role: ModelRole = "actor"


class ScriptedEngine:
    """Answers sample ``i`` of every request with ``reply(messages, sampling, i)``.

    ``reply`` returns a `Completion`, or a text that stands for one that stopped by itself (its tokens are its
    words). What it raises reaches the caller, and so does `ValueError` for a text that is none of
    ``sampling.choices``. ``calls`` holds every request made, in order.
    """

    def __init__(self, reply: Callable[[Messages, Sampling, int], str | Completion]) -> None:
        self._reply = reply
        self.calls: list[Call] = []

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """The ``n`` scripted completions."""
        self.calls.append(Call(messages, sampling, n, role))
        replies = [self._reply(messages, sampling, i) for i in range(n)]
        written = [Completion(each, "stop", len(each.split())) if isinstance(each, str) else each for each in replies]
        for each in written:
            if sampling.choices and each.text not in sampling.choices:
                raise ValueError(f"the scripted reply {each.text!r} is none of the choices {sampling.choices}")
        return tuple(written)

    async def aclose(self) -> None:
        """Nothing to give back."""


async def run_concurrently(calls: Iterable[Coroutine[object, object, T]]) -> list[T]:
    """The results of ``calls``, run concurrently, in their order.

    When one fails the others are cancelled and its error is raised. Of several errors a `UserError` is raised first, as
    it ends a run, and an `EngineError` last, so that a bug is never taken for one request's failure.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as errors:
        raise min(errors.exceptions, key=_precedence) from None
    return [task.result() for task in tasks]


def _precedence(error: BaseException) -> int:
    return 0 if isinstance(error, UserError) else 2 if isinstance(error, EngineError) else 1


def require_model_folder(folder: Path) -> None:
    """Raise `UserError` naming what is missing, unless this looks like a Hugging Face folder with safetensors."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such model folder")
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json, so this is not a Hugging Face model folder")
    require_weights(folder)
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors weights; save the model with save_pretrained()")


def require_room(ids: Sequence[int], sampling: Sampling, n: int, context: int) -> None:
    """Raise `EngineError` for a request that is empty or doesn't fit a context of ``context`` tokens."""
    if not ids or n < 1 or sampling.max_tokens < 1:
        raise EngineError(f"{len(ids)} prompt tokens, n {n}, max_tokens {sampling.max_tokens}: each must be at least 1")
    if len(ids) + sampling.max_tokens > context:
        raise EngineError(
            f"its prompt of {len(ids)} tokens and max_tokens {sampling.max_tokens} exceed the model's context of "
            f"{context} tokens; shorten the prompt or lower max_tokens"
        )


def max_choice_tokens(choices: Sequence[str]) -> int:
    """As many tokens as a choice may take with any tokenizer: one for each byte, and a stop token."""
    return 1 + max(len(choice.encode("utf-8", "replace")) for choice in choices)


def spelling(choice: str) -> str:
    """What all spellings of a choice have in common (`Sampling.choices`): its words without case and outer blanks."""
    return choice.strip().casefold()


def as_choice(completion: Completion, choices: Sequence[str]) -> Completion:
    """The completion as the choice that it spells, but for white space around it, which a tokenizer may drop.

    Raises `EngineError` when it is none of ``choices``: then the backend ignores the constraint.
    """
    found = [choice for choice in choices if completion.text == choice]
    found = found or [choice for choice in choices if completion.text.strip() == choice.strip()]
    if len(found) != 1:
        raise EngineError(f"wrote {completion.text[:40]!r}, which is none of the choices {tuple(choices)}")
    return replace(completion, text=found[0], finish="stop")


def token_texts(decode: Callable[[list[int]], str], ids: Sequence[int]) -> tuple[str, ...]:
    """The text that each token adds; together exactly ``decode(ids)``. Linear in the number of tokens.

    A token may hold part of a character only, or a space that depends on the tokens before it, so its text is the
    difference that it makes to decoding its few predecessors. A character of several tokens belongs to the last one.
    """
    texts: list[str] = []
    # Tokens from `start` on are decoded again; the texts hold those before `shown` already.
    start = shown = 0
    for end in range(1, len(ids) + 1):
        before, now = decode(list(ids[start:shown])), decode(list(ids[start:end]))
        if now.endswith("\ufffd") or not now.startswith(before):  # an incomplete character
            texts.append("")
            continue
        texts.append(now[len(before) :])
        start, shown = shown, end
    whole, joined = decode(list(ids)), "".join(texts)
    if joined == whole or not texts:
        return tuple(texts)
    if whole.startswith(joined):
        return (*texts[:-1], texts[-1] + whole[len(joined) :])
    return (*("" for _ in texts[1:]), whole)
