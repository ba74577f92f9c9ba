"""Constrained verdicts from servers that speak OpenAI's protocol: how each kind is asked, and who is found out."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any

import pytest
from chat_server import Answer, Body, FakeChatServer, choice, completion, error, good
from openai_setup import HOT, ask, engine_for

from metareward.engines.base import EngineError
from metareward.types import Completion, Message, Messages, Sampling, Step, TopLogprob

SCORES = tuple(f" {score}" for score in range(6))
CHOOSE = Sampling(temperature=0.9, top_p=0.8, max_tokens=40, seed=11, choices=SCORES)
OPENED: Messages = (*ask(), Message("assistant", "It is four. Score:"))
KNOWN = {"model", "messages", "temperature", "top_p", "max_tokens", "n", "seed", "logprobs", "top_logprobs"}


def replies(*texts: str, tokens: int = 2) -> Answer:
    return Answer(completion(*(choice(text, i) for i, text in enumerate(texts)), tokens=tokens))


def vllm(body: Body, _: int = 0) -> Answer:
    wanted = body.get("structured_outputs", {}).get("choice")
    return replies(*[wanted[-1]] * body["n"]) if wanted else good(body)


def old_vllm(body: Body, _: int = 0) -> Answer:
    wanted = body.get("guided_choice")
    return replies(*[wanted[-1]] * body["n"]) if wanted else good(body)


def sglang(body: Body, _: int = 0) -> Answer:
    pattern = body.get("regex")
    text = next((each for each in (*SCORES[::-1], "quartz-9") if re.fullmatch(pattern, each)), "") if pattern else ""
    return replies(*[text] * body["n"]) if pattern else good(body)


def hosted(body: Body, _: int = 0) -> Answer:
    """OpenAI's own: unknown fields are refused, and a format is kept."""
    if unknown := body.keys() - KNOWN - {"response_format"}:
        return error(400, f"Unrecognized request argument supplied: {sorted(unknown)[0]}")
    wanted = body.get("response_format")
    if wanted is None:
        return good(body)
    schema = wanted["json_schema"]["schema"]
    assert wanted["json_schema"]["strict"] and schema["required"] == ["choice"]
    return replies(*[json.dumps({"choice": schema["properties"]["choice"]["enum"][-1]})] * body["n"])


def ignorant(body: Body, _: int = 0) -> Answer:
    """Ignores all fields that it doesn't know."""
    return good(body)


def chosen(manner: Any, messages: Messages = OPENED, n: int = 2, **changes: Any) -> tuple[list[Completion], list[Body]]:
    async def run() -> tuple[list[Completion], list[Body]]:
        async with FakeChatServer(manner) as server, engine_for(server, **changes) as engine:
            written = await engine.complete(messages, CHOOSE, n)
            again = await engine.complete(messages, CHOOSE, n)
            assert [each.text for each in again] == [each.text for each in written]
            return list(written), server.bodies

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("manner", "field", "probes"),
    [
        (vllm, "structured_outputs", 1),
        (old_vllm, "guided_choice", 2),
        (sglang, "regex", 3),
        (hosted, "response_format", 4),
    ],
)
def test_the_field_that_a_server_knows_is_found_once(manner: Any, field: str, probes: int) -> None:
    written, bodies = chosen(manner)
    assert [(each.text, each.finish) for each in written] == [(" 5", "stop")] * 2
    assert len(bodies) == probes + 2
    assert all(field in body for body in bodies[probes - 1 :])
    assert {body["n"] for body in bodies[probes:]} == {2}


@pytest.mark.parametrize(
    ("manner", "field"),
    [(vllm, "structured_outputs"), (old_vllm, "guided_choice"), (sglang, "regex"), (hosted, "response_format")],
)
def test_a_named_field_needs_no_probe(manner: Any, field: str) -> None:
    written, bodies = chosen(manner, choices_field=field)
    assert [each.text for each in written] == [" 5"] * 2 and len(bodies) == 2


def test_the_last_message_is_continued_where_servers_can() -> None:
    _, (body, _) = chosen(vllm, choices_field="structured_outputs")
    assert body["messages"][-1] == {"role": "assistant", "content": "It is four. Score:"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["structured_outputs"] == {"choice": list(SCORES)} and body["max_tokens"] == 3
    _, (body, _) = chosen(vllm, ask(), choices_field="structured_outputs")
    assert "continue_final_message" not in body and "add_generation_prompt" not in body


def test_a_turn_that_asks_for_the_rest_follows_where_they_cannot() -> None:
    _, (body, _) = chosen(hosted, choices_field="response_format")
    assert [each["role"] for each in body["messages"]] == ["system", "user", "assistant", "user"]
    assert body["messages"][-2]["content"] == "It is four. Score:"
    assert body["response_format"]["json_schema"]["schema"]["properties"]["choice"]["enum"] == list("012345")
    _, (body, _) = chosen(hosted, ask(), choices_field="response_format")
    assert [each["role"] for each in body["messages"]] == ["system", "user"]


def test_requests_without_choices_are_as_they_were() -> None:
    async def run() -> Body:
        async with FakeChatServer(good) as server, engine_for(server) as engine:
            await engine.complete(ask(), HOT, 1)
            (body,) = server.bodies
            return body

    assert asyncio.run(run()).keys() == KNOWN - {"logprobs", "top_logprobs"}


def refusal(manner: Any, **changes: Any) -> tuple[str, int]:
    async def run() -> tuple[str, int]:
        async with FakeChatServer(manner) as server, engine_for(server, **changes) as engine:
            lines = []
            for _ in range(2):
                with pytest.raises(EngineError) as refused:
                    await engine.complete(OPENED, CHOOSE, 2)
                lines.append(str(refused.value))
            assert lines[0] == lines[1]
            return lines[0], len(server.bodies)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "manner", [ignorant, lambda body, _: good(body) if "regex" in body else error(400, "no such field")]
)
def test_a_server_that_takes_no_field_is_refused_in_one_line(manner: Any) -> None:
    line, requests = refusal(manner)
    assert requests == 4, "it is tried out once"
    assert "\n" not in line and line.startswith("http://127.0.0.1")
    assert "structured_outputs, guided_choice, regex, response_format" in line
    assert "fix: set judgments.verdict and meta_judgments.verdict to text, or use vLLM or SGLang" in line


def test_a_field_that_is_named_but_ignored_is_found_out() -> None:
    line, _ = refusal(ignorant, choices_field="regex")
    assert "which is none of the choices" in line and "regex" in line


def test_a_failure_while_trying_is_no_refusal() -> None:
    """A server that is down, or wants another key, says nothing about the fields that it takes."""

    def first_fails(body: Body, place: int) -> Answer:
        return error(401, "no such key") if place == 0 else vllm(body)

    async def run() -> None:
        async with FakeChatServer(first_fails) as server, engine_for(server) as engine:
            with pytest.raises(EngineError, match="401"):
                await engine.complete(OPENED, CHOOSE, 1)
            assert (await engine.complete(OPENED, CHOOSE, 1))[0].text == " 5"

    asyncio.run(run())


def token(text: str, **top: float) -> dict[str, Any]:
    ranked = [{"token": name, "logprob": math.log(p), "bytes": list(name.encode())} for name, p in top.items()]
    return {"token": text, "logprob": 0.0, "bytes": list(text.encode()), "top_logprobs": ranked}


def test_probabilities_of_a_value_in_json() -> None:
    """They come as if the choice had been written alone."""
    tokens = [token('{"choice'), token('":"'), token("4", **{"4": 0.5, "5": 0.25, "7": 0.2}), token('"}')]

    def manner(body: Body, _: int) -> Answer:
        return Answer(completion(choice('{"choice":"4"}', logprobs={"content": tokens})))

    async def run() -> Completion:
        async with FakeChatServer(manner) as server, engine_for(server, choices_field="response_format") as engine:
            sampling = Sampling(0.9, 0.8, 40, 11, 20, SCORES)
            return (await engine.complete(OPENED, sampling, 1))[0]

    top = (TopLogprob(" 4", math.log(0.5)), TopLogprob(" 5", math.log(0.25)))
    assert asyncio.run(run()) == Completion(" 4", "stop", 5, (Step(" 4", top),))


def test_cached_choices_are_asked_once(tmp_path: Any) -> None:
    async def run() -> int:
        async with FakeChatServer(vllm) as server:
            for _ in range(2):
                async with engine_for(server, cache_dir=str(tmp_path / "cache")) as engine:
                    assert (await engine.complete(OPENED, CHOOSE, 1))[0].text == " 5"
            return len(server.bodies)

    assert asyncio.run(run()) == 2  # one of them tries the field out
