"""An engine whose answers come from a function: for tests, ours and users', with no patching."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metareward.types import Completion, Messages, ModelRole, Sampling


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
    words). What it raises reaches the caller. ``calls`` holds every request made, in order.
    """

    def __init__(self, reply: Callable[[Messages, Sampling, int], str | Completion]) -> None:
        self._reply = reply
        self.calls: list[Call] = []

    async def complete(
        self, messages: Messages, sampling: Sampling, n: int, role: ModelRole = "actor"
    ) -> Sequence[Completion]:
        """The ``n`` scripted completions."""
        self.calls.append(Call(messages, sampling, n, role))
        return tuple(_completion(self._reply(messages, sampling, i)) for i in range(n))

    async def aclose(self) -> None:
        """Nothing to give back."""


def _completion(reply: str | Completion) -> Completion:
    if isinstance(reply, Completion):
        return reply
    return Completion(text=reply, finish="stop", tokens=len(reply.split()))
