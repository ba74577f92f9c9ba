"""What tests of the endpoint engine share: settings with short pauses, a question, an engine that is closed again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from rude_server import RudeServer

from metareward.engines.endpoint import EndpointEngine, EndpointSettings, open_endpoint
from metareward.engines.endpoint_place import Pauses
from metareward.types import Completion, Message, Messages, Sampling

MODEL = "tiny"
HOT = Sampling(temperature=0.9, top_p=0.8, max_tokens=40, seed=11)


def settings(*servers: RudeServer | str, **changes: Any) -> EndpointSettings:
    urls = tuple(server if isinstance(server, str) else server.url for server in servers)
    given = EndpointSettings(
        urls=urls,
        model=MODEL,
        key_variable=None,
        in_flight=16,
        requests_per_minute=None,
        timeout=5.0,
        attempts=3,
        cache=None,
        pauses=Pauses(first=0.005, longest=0.02, patience=0.3),
    )
    return replace(given, **changes)


@asynccontextmanager
async def engine_for(*servers: RudeServer | str, **changes: Any) -> AsyncIterator[EndpointEngine]:
    engine = await open_endpoint(settings(*servers, **changes))
    try:
        yield engine
    finally:
        await engine.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "rude_server" not in repr(task)], "the engine leaves tasks behind"


def ask(text: str = "What is two and two?") -> Messages:
    return (Message("system", "Be brief."), Message("user", text))


def texts(written: Any) -> list[str]:
    assert all(isinstance(each, Completion) for each in written)
    return [each.text for each in written]
