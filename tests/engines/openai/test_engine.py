"""The endpoint engine against real local servers, polite and rude."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from chat_server import (
    HANG,
    Answer,
    Body,
    FakeChatServer,
    Manner,
    choice,
    completion,
    error,
    good,
    ignores_n,
    model_list,
    text_of,
)
from openai_setup import HOT, MODEL, ask, engine_for, settings, texts
from pydantic import ValidationError

from metareward.engines.base import EngineError
from metareward.engines.openai.client import base_url, retry_after_seconds
from metareward.engines.openai.engine import open_openai
from metareward.engines.openai.pool import Pauses
from metareward.errors import UserError
from metareward.types import Completion, Message, Sampling

KEY = "sk-very-secret-0123456789"


def with_server(scene: Callable[[FakeChatServer], Any], manner: Manner = good, **options: Any) -> Any:
    """What ``scene`` gives with a server of this manner."""

    async def play() -> Any:
        async with FakeChatServer(manner, **options) as server:
            return await scene(server)

    return asyncio.run(play())


def asked_of(manner: Manner, n: int = 1, sampling: Sampling = HOT, **changes: Any) -> tuple[Any, FakeChatServer]:
    """The completions, or the `EngineError`, of one request to a server of this manner; and the server."""

    async def scene(server: FakeChatServer) -> tuple[Any, FakeChatServer]:
        async with engine_for(server, **changes) as engine:
            try:
                return await engine.complete(ask(), sampling, n), server
            except EngineError as failure:
                return failure, server

    return with_server(scene, manner)  # type: ignore[no-any-return]


def spoiled(answers: int, bad: Answer) -> Manner:
    """``bad`` for so many requests, and good ones then."""
    return lambda body, place: bad if place < answers else good(body)


# --- what is sent and what comes back ---


def test_the_request_says_everything_and_the_choices_come_back_in_order() -> None:
    def backwards(body: Body, _: int) -> Answer:
        return Answer(completion(*(choice(text_of(body, i), i) for i in reversed(range(body["n"]))), tokens=90))

    written, server = asked_of(backwards, n=3)
    (body,) = server.bodies
    seed = body.pop("seed")
    assert 0 <= seed < 1 << 31
    assert body == {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is two and two?"},
        ],
        "temperature": 0.9,
        "top_p": 0.8,
        "max_tokens": 40,
        "n": 3,
    }
    assert written == tuple(Completion(f"What is two and two?: seed {seed}, choice {i}", "stop", 30) for i in range(3))
    assert "authorization" not in server.headers[0].lower()


def test_the_seed_alone_decides() -> None:
    first, _ = asked_of(good, n=2)
    again, _ = asked_of(good, n=2)
    other, _ = asked_of(good, n=2, sampling=replace(HOT, seed=12))
    assert first == again
    assert not set(texts(first)) & set(texts(other))


def test_greedy_completions_are_asked_for_once() -> None:
    written, server = asked_of(good, n=4, sampling=replace(HOT, temperature=0.0))
    assert len(written) == 4 and len(set(texts(written))) == 1
    assert [body["n"] for body in server.bodies] == [1]


# --- n ---


def test_a_server_that_ignores_n_is_noticed_once_and_asked_singly_from_then_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server) as engine:
            first = await engine.complete(ask("one"), HOT, 4)
            assert [body["n"] for body in server.bodies] == [4, 1, 1, 1]
            server.bodies.clear()
            server.manner = lambda body, _: replace(ignores_n(body), seconds=0.05)
            second = await engine.complete(ask("two"), HOT, 4)
            assert [body["n"] for body in server.bodies] == [1, 1, 1, 1]
            assert server.most_under_way == 4
            assert engine.usage.servers[0].takes_n is False
        assert len(set(texts(first))) == len(set(texts(second))) == 4
        assert [text.replace("one", "two") for text in texts(first)] == texts(second), "the same seeds both ways"

    with_server(scene, ignores_n)
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1 and "gave 1 of 4 completions" in told[0]


def test_a_server_that_refuses_n_is_asked_singly() -> None:
    def strict(body: Body, _: int) -> Answer:
        return error(400, "only n=1 is supported") if body["n"] > 1 else good(body)

    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server) as engine:
            assert len(set(texts(await engine.complete(ask("one"), HOT, 3)))) == 3
            assert len(set(texts(await engine.complete(ask("two"), HOT, 3)))) == 3
        assert [body["n"] for body in server.bodies] == [3, 1, 1, 1, 1, 1, 1]

    with_server(scene, strict)


def test_a_prompt_that_is_refused_does_not_change_how_others_are_asked() -> None:
    def short(body: Body, _: int) -> Answer:
        return error(400, "too long") if "long" in body["messages"][-1]["content"] else good(body)

    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server) as engine:
            with pytest.raises(EngineError, match="400 Bad Request: too long"):
                await engine.complete(ask("long"), HOT, 3)
            await engine.complete(ask("two"), HOT, 3)
        assert [body["n"] for body in server.bodies] == [3, 1, 3]

    with_server(scene, short)


def test_more_choices_than_asked_for_are_left_out() -> None:
    def lavish(body: Body, _: int) -> Answer:
        return Answer(completion(*(choice(f"text {i}", i) for i in range(body["n"] + 2)), tokens=100))

    written, _ = asked_of(lavish, n=3)
    assert texts(written) == ["text 0", "text 1", "text 2"]
    assert [each.tokens for each in written] == [20, 20, 20]


# --- what may pass, and what won't ---

WHOLE = completion(choice("whole"))
TROUBLES = {
    "500": error(500),
    "503 in HTML": Answer(b"<html>\r\n<h1>Bad\x07 gateway</h1>", 503),
    "408": error(408),
    "cut off": Answer(WHOLE, cut=20),
    "cut off at once": Answer(WHOLE, cut=0),
    "garbage": Answer(b"\x00\xff\xfe garbage"),
    "half a JSON": Answer(WHOLE[:60]),
    "nothing": Answer(b""),
    "no choices": Answer(completion()),
    "an error called 200": Answer(b'{"error": {"message": "upstream is down"}}'),
    "deep garbage": Answer(b"[" * 100_000),
    "an aborted choice": Answer(completion(choice("who", finish="abort"))),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_may_pass_is_tried_again(trouble: str) -> None:
    written, server = asked_of(spoiled(2, TROUBLES[trouble]), n=2)
    assert len(texts(written)) == 2
    assert len(server.bodies) == 3
    assert server.bodies[0] == server.bodies[1] == server.bodies[2]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_does_not_pass_is_one_clear_line(trouble: str) -> None:
    failure, server = asked_of(lambda *_: TROUBLES[trouble], n=2)
    assert len(server.bodies) == 3
    line = str(failure)
    assert line.startswith(f"{server.url}/v1 ")
    assert '("What is two and two?") failed after 3 attempts at ' in line
    assert line.isprintable() and len(line) < 500


def test_the_line_says_what_the_server_said() -> None:
    assert "answered 500 Internal Server Error: out of order" in str(asked_of(lambda *_: error(500))[0])
    assert "upstream is down" in str(asked_of(lambda *_: TROUBLES["an error called 200"])[0])
    assert "Bad? gateway" in str(asked_of(lambda *_: TROUBLES["503 in HTML"])[0])


@pytest.mark.parametrize("hang", [HANG, Answer(WHOLE, cut=60, stalls=True)], ids=["at once", "in mid-reply"])
def test_a_server_that_hangs_is_given_up(hang: Answer) -> None:
    failure, server = asked_of(lambda *_: hang, timeout=0.05, max_attempts=2)
    assert len(server.bodies) == 2
    line = str(failure)
    assert line.startswith(f"{server.url}/v1 gave no whole reply within 0.05 s; request ")
    assert line.endswith(f'("What is two and two?") failed after 2 attempts at {server.url}/v1')
    written, server = asked_of(spoiled(1, hang), timeout=0.3)
    assert len(written) == 1 and len(server.bodies) == 2


def test_a_reply_without_end_is_cut_off() -> None:
    bomb = Answer(gzip.compress(bytes((64 << 20) + 1), 1), headers={"Content-Encoding": "gzip"})
    failure, _ = asked_of(lambda *_: bomb, max_attempts=1)
    assert "more than 64 MiB" in str(failure)
    assert "failed after 1 attempt at" in str(failure)


@pytest.mark.parametrize("status", [301, 307, 400, 401, 403, 404, 413, 422])
def test_what_will_not_pass_is_not_tried_again(status: int) -> None:
    failure, server = asked_of(lambda *_: error(status, "no\nway"))
    assert len(server.bodies) == 1
    assert " refused request " in str(failure) and f": {status} " in str(failure)
    assert str(failure).endswith(": no way")


def test_a_redirect_is_not_followed() -> None:
    failure, server = asked_of(lambda *_: error(302, location="http://elsewhere.example/v1"))
    assert len(server.bodies) == 1
    assert "redirect to http://elsewhere.example/v1" in str(failure)


def test_retry_after_is_honoured_by_all_requests() -> None:
    moments: list[float] = []

    def busy_once(body: Body, place: int) -> Answer:
        moments.append(time.monotonic())
        return error(429, retry_after="0.2") if place == 0 else good(body)

    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server) as engine:
            first = asyncio.create_task(engine.complete(ask("one"), HOT, 1))
            await asyncio.sleep(0.05)
            await asyncio.gather(first, engine.complete(ask("two"), HOT, 1))

    with_server(scene, busy_once)
    assert len(moments) == 3
    assert all(later - moments[0] >= 0.19 for later in moments[1:])


def test_a_rest_longer_than_our_patience_is_an_error_at_once() -> None:
    began = time.monotonic()
    failure, server = asked_of(lambda *_: error(429, "come back tomorrow", retry_after="86400"))
    assert len(server.bodies) == 1
    assert time.monotonic() - began < 0.25
    assert "no server is left for request" in str(failure) and "come back tomorrow" in str(failure)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0.5", 0.5),
        ("-3", 0.0),
        ("-1e308", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e308", None),
        ("Wed, 21 Oct 2115 07:28:00 GMT", None),
        ("Wed, 99999999999999999999 Oct 2115 07:28:00 GMT", None),
        ("Wed, 21 Oct 99999999999 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_not_absurd(header: str, seconds: float | None) -> None:
    assert retry_after_seconds(header) == seconds
    written, _ = asked_of(spoiled(2, error(429, retry_after=header)), pauses=Pauses(0.005, 0.02, patience=10.0))
    assert len(written) == 1


def test_retry_after_may_be_a_date() -> None:
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=60))
    assert 50 < (retry_after_seconds(soon) or 0) <= 60


# --- the bounds ---


def test_no_more_requests_than_allowed_are_under_way() -> None:
    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server, max_concurrency=3) as engine:
            await asyncio.gather(*(engine.complete(ask(str(i)), HOT, 1) for i in range(12)))
        assert server.most_under_way == 3 and len(server.bodies) == 12

    with_server(scene, lambda body, _: replace(good(body), seconds=0.01))


def test_no_more_requests_than_allowed_are_sent_in_a_minute() -> None:
    moments: list[float] = []

    def timed(body: Body, _: int) -> Answer:
        moments.append(time.monotonic())
        return good(body)

    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server, requests_per_minute=1500) as engine:
            await asyncio.gather(*(engine.complete(ask(str(i)), HOT, 1) for i in range(6)))

    with_server(scene, timed)
    assert len(moments) == 6 and moments[-1] - moments[0] >= 5 * 0.04 - 0.02


def test_usage_is_counted() -> None:
    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server) as engine:
            await asyncio.gather(*(engine.complete(ask(str(i)), HOT, 2) for i in range(4)))
            (used,) = engine.usage.servers
        assert (used.requests, used.failed, used.prompt_tokens, used.completion_tokens) == (5, 1, 12, 20)
        assert used.url == f"{server.url}/v1" and used.takes_n

    with_server(scene, spoiled(1, error(500)))


# --- stopping ---


def test_a_cancelled_request_leaves_nothing_behind_and_gives_its_place_back() -> None:
    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server, max_concurrency=2) as engine:
            working = [asyncio.create_task(engine.complete(ask(str(i)), HOT, 3)) for i in range(5)]
            while server.under_way < 2:
                await asyncio.sleep(0.001)
            for task in working:
                task.cancel()
            outcomes = await asyncio.gather(*working, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            server.manner = good
            assert len(await engine.complete(ask(), HOT, 3)) == 3

    with_server(scene, lambda *_: HANG)


@pytest.mark.parametrize("per_minute", [None, 600])
def test_closing_ends_what_is_under_way(per_minute: int | None) -> None:
    async def scene(server: FakeChatServer) -> None:
        async with engine_for(server, max_concurrency=3, requests_per_minute=per_minute) as engine:
            working = [asyncio.create_task(engine.complete(ask(str(i)), HOT, 1)) for i in range(5)]
            while server.under_way < 2:
                await asyncio.sleep(0.001)
            await engine.aclose()
            for outcome in await asyncio.gather(*working, return_exceptions=True):
                assert isinstance(outcome, EngineError) and "closed" in str(outcome)
            with pytest.raises(EngineError, match="closed"):
                await engine.complete(ask(), HOT, 1)

    with_server(scene, lambda *_: HANG)


# --- the key ---


def test_the_key_is_sent_and_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_KEY", f"{KEY}\n")
    caplog.set_level(logging.DEBUG)

    async def scene(server: FakeChatServer) -> list[str]:
        async with engine_for(server, api_key_env="TEST_KEY", cache_dir=str(tmp_path)) as engine:
            await engine.complete(ask(), HOT, 2)
            said = [repr(engine), repr(engine.usage), repr(settings(server, api_key_env="TEST_KEY"))]
            for status in (401, 429, 500):
                server.manner = lambda *_, status=status: error(status, f"Incorrect API key: Bearer {KEY}")
                with pytest.raises(EngineError, match=r"Bearer \[key\]") as caught:
                    await engine.complete(ask("again"), HOT, 1)
                said += [str(caught.value), repr(caught.value.__cause__)]
        assert all(f"authorization: bearer {KEY}" in head.lower() for head in server.headers)
        return said

    said = with_server(scene)
    assert KEY not in "".join(said)
    assert caplog.records and KEY not in caplog.text
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert kept and KEY.encode() not in kept


# --- opening ---


def refusal(*servers: FakeChatServer | str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        asyncio.run(open_openai(settings(*servers, **changes)))
    assert "\n" not in str(caught.value) and "fix: " in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000", "base_urls: localhost:8000 is no base URL"),
        ("ftp://host", "base_urls: ftp://host is no base URL"),
        ("http://", "base_urls: http:// is no base URL"),
        ("http://host:port", "base_urls: http://host:port is no base URL"),
        ("http://host/v1?key=1", "base_urls: http://host/v1?key=1 is no base URL"),
        ("http://host:%0e", "base_urls: http://host:%0e is no base URL"),
        ("http://host:80/%0e", "base_urls: http://host:80/%0e is no base URL"),
        ("http://127.0.0.1:70000", "base_urls: http://127.0.0.1:70000 is no base URL"),
        (f"http://{'a' * 70}", "base_urls: http://aaa"),
        ("http://me:secret@host", "base_urls: http://host is no base URL"),
    ],
)
def test_a_url_that_is_none_is_refused(url: str, said: str) -> None:
    told = refusal(url)
    assert told.startswith(said) and "secret" not in told


def test_no_server_or_one_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        settings()
    assert "http://host:1/v1 is there twice" in refusal("http://host:1", "http://host:1/v1/")


def test_base_urls() -> None:
    assert base_url("http://host:8000") == base_url("http://host:8000/v1/") == "http://host:8000/v1"
    assert base_url("https://host/api") == "https://host/api/v1"
    assert base_url("https://host/v1beta/openai/") == "https://host/v1beta/openai"


def test_a_missing_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_KEY", raising=False)
    assert "environment variable TEST_KEY is not set" in refusal("http://host", api_key_env="TEST_KEY")
    monkeypatch.setenv("TEST_KEY", "kéy")
    told = refusal("http://host", api_key_env="TEST_KEY")
    assert "TEST_KEY holds characters" in told and "kéy" not in told


def opened(models: Answer, model: str = MODEL) -> str:
    """What comes of opening an engine on a server with this answer about its models: "open", or the refusal."""

    async def scene(server: FakeChatServer) -> str:
        try:
            async with engine_for(server, model=model) as engine:
                await engine.complete(ask(), HOT, 1)
        except UserError as refused:
            return str(refused)
        return "open"

    return with_server(scene, models=models)  # type: ignore[no-any-return]


def test_a_server_that_lists_other_models_is_refused() -> None:
    told = opened(model_list("large", "larger"))
    assert "serves large, larger, not tiny; fix: set model to one of them" in told
    assert opened(model_list("large", MODEL)) == "open"


def test_a_list_is_no_proof_against_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert opened(model_list("downloaded"), model=str(tmp_path)) == "open"
    assert "lists downloaded, not " in caplog.text


@pytest.mark.parametrize(
    "models",
    [error(404), error(500), error(501), error(429), Answer(b"garbage"), Answer(b'{"data": 3}'), Answer(b"", cut=0)],
)
def test_a_server_that_does_not_list_its_models_is_taken_at_its_word(models: Answer) -> None:
    assert opened(models) == "open"


def test_a_server_that_wants_a_key_or_another_address_is_refused() -> None:
    assert "401 Unauthorized: who are you; fix: put a valid key into an environment variable" in opened(
        error(401, "who are you")
    )
    assert "redirect to https://host/v1/models, which isn't followed; fix: correct base_urls" in opened(
        error(308, location="https://host/v1/models")
    )


def test_servers_that_are_not_there() -> None:
    async def scene(server: FakeChatServer) -> str:
        await server.die()
        async with FakeChatServer() as other, engine_for(server, other) as engine:
            await asyncio.gather(*(engine.complete(ask(str(i)), HOT, 1) for i in range(8)))
            assert len(other.bodies) == 8
        return server.url

    url = with_server(scene)
    assert refusal(url).startswith(f"{url}/v1 can't be reached: ")


def test_a_proxy_for_the_world_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    written, _ = asked_of(good)
    assert len(written) == 1


def test_the_longest_prompt_is_shown_short() -> None:
    async def scene(server: FakeChatServer) -> str:
        async with engine_for(server, max_attempts=1) as engine:
            with pytest.raises(EngineError) as caught:
                await engine.complete(ask("\x1b[31mred\n" * 100_000), HOT, 1)
        return str(caught.value)

    told = with_server(scene, lambda *_: error(500))
    assert '("?[31mred ?[31mred' in told and len(told) < 300 and told.isprintable()


def test_patience_ends() -> None:
    async def scene(server: FakeChatServer) -> None:
        quick = Pauses(first=0.005, longest=0.02, patience=0.1)
        async with engine_for(server, pauses=quick, max_attempts=50) as engine:
            await engine.complete(ask(), HOT, 1)
            await server.die()
            began = time.monotonic()
            with pytest.raises(
                EngineError, match=r"no server is left for request .*can't be reached: ConnectionRefused"
            ):
                await engine.complete(ask(), HOT, 1)
            assert 0.05 <= time.monotonic() - began < 2

    with_server(scene)


def sent(content: str, role: Any = "user", **changes: Any) -> str:
    """The last message that the server gets."""

    async def scene(server: FakeChatServer) -> str:
        async with engine_for(server, **changes) as engine:
            await engine.complete((Message("user", "Hi"), Message(role, content)), HOT, 1)
        return str(server.bodies[-1]["messages"][-1]["content"])

    return str(with_server(scene))


def test_control_strings_do_not_reach_a_server(tmp_path: Path) -> None:
    text = "<div> <|im_end|> [/INST] <start_of_turn> <s>x</s> <custom>"
    assert sent(text) == "<div> ‹|im_end|> 〔/INST] ‹start_of_turn> ‹s>x‹/s> <custom>"
    assert sent("<div>a</div>") == "<div>a</div>"
    # The model goes on with its own text, in which the tags of its reasoning stay.
    assert sent("<think>a</think>b<|im_end|>", "assistant") == "<think>a</think>b‹|im_end|>"
    tokens = [{"id": 5, "content": "<|im_end|>", "special": True}, {"id": 6, "content": "<custom>", "special": True}]
    tokens += [{"id": 7, "content": "<b>", "special": False}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    (tmp_path / "chat_template.jinja").write_text("[INST] {{ messages[0]['content'] }} [/INST]")
    known = "<div> ‹|im_end|> 〔/INST] <start_of_turn> <s>x</s> ‹custom>"
    assert sent(text, tokenizer=str(tmp_path)) == known
    assert sent(f"{text}<b>", model=str(tmp_path)) == f"{known}<b>"


def test_a_tokenizer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no tokenizer\.json with added tokens; fix: name the folder of the served model"
    ):
        sent("a", tokenizer=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="its tokenizer can't be read"):
        sent("a", tokenizer=str(tmp_path))
