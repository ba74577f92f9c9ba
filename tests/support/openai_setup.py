"""What tests of the OpenAI engine share: settings, short pauses, a question, an engine that is closed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import scripted_models
from chat_server import Answer, Body, FakeChatServer, choice, completion

from metareward.engines.openai.engine import OpenAIEngine, OpenAISettings, open_openai
from metareward.engines.openai.pool import Pauses
from metareward.types import Completion, Message, Messages, Sampling

MODEL = "tiny"
HOT = Sampling(temperature=0.9, top_p=0.8, max_tokens=40, seed=11)


QUICK = Pauses(first=0.005, longest=0.02, patience=0.3)


def settings(*servers: FakeChatServer | str, **changes: Any) -> OpenAISettings:
    urls = [server if isinstance(server, str) else server.url for server in servers]
    given = {"base_urls": urls, "model": MODEL, "max_concurrency": 16, "timeout": 5.0, "max_attempts": 3}
    return OpenAISettings.model_validate(given | changes)


@asynccontextmanager
async def engine_for(
    *servers: FakeChatServer | str, pauses: Pauses = QUICK, **changes: Any
) -> AsyncIterator[OpenAIEngine]:
    engine = await open_openai(settings(*servers, **changes), pauses)
    try:
        yield engine
    finally:
        await engine.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "chat_server" not in repr(task)], "the engine leaves tasks behind"


def ask(text: str = "What is two and two?") -> Messages:
    return (Message("system", "Be brief."), Message("user", text))


def texts(written: Any) -> list[str]:
    assert all(isinstance(each, Completion) for each in written)
    return [each.text for each in written]


def scripted_answer(body: Body, _: int = 0) -> Answer:
    """What the scripted model of the runner's tests says."""
    messages = tuple(Message(each["role"], each["content"]) for each in body["messages"])
    sampling = Sampling(body["temperature"], body["top_p"], body["max_tokens"], body["seed"])
    said = (scripted_models.reply(messages, sampling, i) for i in range(body["n"]))
    return Answer(completion(*(choice(text, i) for i, text in enumerate(said))), seconds=0.001)
