"""A judge as the reward of a reinforcement learning trainer: GRPO of TRL, verl, verifiers.

An answer's reward is the mean of its judgments' scores. An answer that can't be judged has no reward: it is never a
number that an optimizer could learn from.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from statistics import fmean
from typing import Any, TypeVar

from metareward.data.prompts import content_id
from metareward.engines.base import EngineError
from metareward.errors import UserError
from metareward.types import Judge, Message, Messages, Prompt, Scored

T = TypeVar("T")
ChatTurns = Sequence[Mapping[str, Any]]
OpenJudge = Callable[[], Awaitable[Judge]]

# A trainer that goes on without any reward learns nothing for its money.
_MOST_EMPTY_CALLS = 3
_LOG = logging.getLogger(__name__)


def as_reward(judge: Judge | OpenJudge, n: int = 3, min_valid: int = 1, name: str = "judge") -> JudgeReward:
    """The judge as a reward: the mean score of ``n`` judgments, none if fewer than ``min_valid`` can be read.

    ``judge``: a `Judge`, or an async function that opens one, as a judge with an engine must be opened in the reward's
    own event loop. ``name``: under which TRL logs it. Raises `ValueError` for numbers out of range.
    """
    if not 1 <= min_valid <= n:
        raise ValueError(f"min_valid must be 1 to n, not {min_valid} with n {n}")
    return JudgeReward(judge, n, min_valid, name)


class JudgeReward:
    """A reward for trainers; made by `as_reward`. Works from any thread and event loop; `close` ends its engine.

    ``failures`` counts the answers without a reward.
    """

    def __init__(self, judge: Judge | OpenJudge, n: int, min_valid: int, name: str) -> None:
        self.__name__ = name
        self.failures = 0
        self._given, self._n, self._min_valid = judge, n, min_valid
        self._empty_calls = 0
        self._judge: asyncio.Future[Judge] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    async def __call__(
        self, prompts: Sequence[str | ChatTurns], completions: Sequence[str | ChatTurns], **_: object
    ) -> list[float | None]:
        """The rewards in the order of the ``completions``, for ``trl.GRPOTrainer(reward_funcs=...)``.

        None for an answer that can't be judged: TRL leaves it out of its group's mean and gives it no advantage. Raises
        `UserError` after three calls in which none could be judged.
        """
        pairs = [(_messages(prompt), _text(answer)) for prompt, answer in zip(prompts, completions, strict=True)]
        return await asyncio.wrap_future(self._submit(self._rewards(pairs)))

    async def score(self, prompt: str | ChatTurns, completion: str | ChatTurns) -> float:
        """The reward of one answer, for the reward functions of verifiers.

        Raises `EngineError` if it can't be judged, as verifiers leaves out what raises.
        """
        reward, why = await asyncio.wrap_future(self._submit(self._reward(_messages(prompt), _text(completion))))
        if reward is None:
            raise EngineError(why)
        return reward

    def verl(
        self, *, solution_strs: Sequence[str], extra_infos: Sequence[Mapping[str, Any]], **_: object
    ) -> list[float]:
        """The rewards of a batch, as ``custom_reward_function`` of verl's batch reward manager.

        ``extra_infos`` have the ``prompt``, a text or chat messages. verl knows numbers only, so an answer that can't
        be judged gets the mean reward of its prompt's other answers, so that its advantage in GRPO is 0. If none of a
        prompt's answers can be judged, all get the mean of the batch. Raises `UserError` for a batch without a reward.
        """
        prompts = [_prompt_of(each) for each in extra_infos]
        found = self._submit(self._rewards(list(zip(prompts, solution_strs, strict=True)))).result()
        groups: dict[Messages, list[float]] = defaultdict(list)
        for prompt, reward in zip(prompts, found, strict=True):
            groups[prompt] += [] if reward is None else [reward]
        rewards = [reward for reward in found if reward is not None]
        if found and not rewards:
            raise UserError("no answer of this batch could be judged: see the log; fix: mend the judge, and go on")
        means = {prompt: fmean(own or rewards) for prompt, own in groups.items()}
        return [means[prompt] if reward is None else reward for prompt, reward in zip(prompts, found, strict=True)]

    def close(self) -> None:
        """End the judge's engine and the reward's thread. A later call opens them again."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)

    async def _end(self) -> None:
        opened, self._judge = self._judge, None
        if opened is not None and not opened.cancelled() and opened.done() and opened.exception() is None:
            engine = getattr(opened.result(), "engine", None)
            if engine is not None:
                await engine.aclose()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run ``work`` in the thread of this reward, whose event loop the engine belongs to."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="reward", daemon=True).start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _opened(self) -> Judge:
        if isinstance(self._given, Judge):
            return self._given
        if self._judge is None:
            self._judge = asyncio.ensure_future(_awaited(self._given()))
        return await self._judge

    async def _rewards(self, pairs: Sequence[tuple[Messages, str]]) -> list[float | None]:
        found = await asyncio.gather(*(self._reward(*each) for each in pairs))
        rewards, reasons = [reward for reward, _ in found], [why for reward, why in found if reward is None]
        self.failures += len(reasons)
        self._empty_calls = self._empty_calls + 1 if len(reasons) == len(found) and found else 0
        if reasons:
            _LOG.warning("%d of %d answers have no reward: %s", len(reasons), len(found), reasons[0])
        if self._empty_calls >= _MOST_EMPTY_CALLS:
            raise UserError(f"no answer of the last {_MOST_EMPTY_CALLS} calls could be judged: {reasons[0]}")
        return rewards

    async def _reward(self, messages: Messages, answer: str) -> tuple[float | None, str]:
        """The reward of an answer, or None and why."""
        judge = await self._opened()
        try:
            judgments = await judge.judge(Prompt(content_id(messages), messages), answer, self._n)
        except EngineError as error:
            return None, str(error)
        scores = [each.reading.score for each in judgments if isinstance(each.reading, Scored)]
        if len(scores) < self._min_valid:
            return None, f"{len(scores)} of {len(judgments)} judgments could be read, {self._min_valid} are needed"
        return fmean(scores), ""


async def _awaited(opening: Awaitable[Judge]) -> Judge:
    return await opening


def _messages(prompt: str | ChatTurns) -> Messages:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(Message(turn["role"], turn["content"]) for turn in prompt)


def _text(completion: str | ChatTurns) -> str:
    """The answer's text: TRL gives a text for a text prompt and the assistant's turns for chat messages."""
    return completion if isinstance(completion, str) else "".join(str(turn["content"] or "") for turn in completion)


def _prompt_of(extra_info: Mapping[str, Any]) -> Messages:
    if "prompt" not in extra_info:
        raise UserError("extra_info.prompt: missing; fix: put each row's prompt there, a text or chat messages")
    return _messages(extra_info["prompt"])
