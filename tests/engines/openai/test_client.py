"""Chat completions as servers give them: what is read from them, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from chat_server import Body, choice, completion
from hypothesis import given
from hypothesis import strategies as st

from metareward.engines.base import EngineError
from metareward.engines.openai.client import Reply, read_reply, token_spans
from metareward.types import Completion, Step, TopLogprob


def read(*choices: Body, n: int = 0, top_logprobs: int = 0, tokens: int = 5) -> Reply:
    return read_reply(completion(*choices, tokens=tokens), n or len(choices), top_logprobs)


def test_endings() -> None:
    assert read(choice("a")).choices == (Completion("a", "stop", 5),)
    assert read(choice("a", finish="length")).choices == (Completion("a", "length", 5),)


def test_a_filtered_text_is_one_that_was_cut_off_and_counted() -> None:
    reply = read(choice("I would", finish="content_filter"), choice(None, 1, "content_filter"), choice("fine", 2))
    assert [(each.text, each.finish) for each in reply.choices] == [
        ("I would", "length"),
        ("", "length"),
        ("fine", "stop"),
    ]
    assert reply.filtered == 2
    assert [each.refused for each in reply.choices] == [False, True, False]


@pytest.mark.parametrize("finish", ["tool_calls", "function_call", "eos", None])
def test_an_unknown_ending_is_refused(finish: str | None) -> None:
    with pytest.raises(ValueError, match=r"choices.0.finish_reason: Input should be 'stop', 'length' or"):
        read(choice("text", finish=finish))


def test_nothing_said_is_an_empty_text_if_it_ended_well() -> None:
    assert read(choice(None, finish="length")).choices[0].text == ""
    assert read_reply(json.dumps(bare({"role": "assistant"})).encode(), 1, 0).choices == (Completion("", "stop", 4),)
    with pytest.raises(ValueError, match="finish_reason"):
        read(choice(None, finish=None))


def test_a_refusal_is_what_was_said() -> None:
    refused = {"index": 0, "message": {"content": None, "refusal": "I'd rather not."}, "finish_reason": "stop"}
    for top_logprobs in (0, 5):  # a refusal has none
        (found,) = read(refused, top_logprobs=top_logprobs).choices
        assert (found.text, found.steps, found.refused) == ("I'd rather not.", (), True)


def bare(message: Any, **more: Any) -> Body:
    usage = {"prompt_tokens": 1, "completion_tokens": 4}
    return {"choices": [{"message": message, "finish_reason": "stop", **more}], "usage": usage}


@pytest.mark.parametrize(
    "reply",
    [
        [],
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": [{"message": None}]},
        bare({"content": 7}),
        bare({"content": [{"type": "text", "text": "parts"}]}),
        bare({"content": "a"}, index="last"),
        {**bare({"content": "a"}), "usage": {"prompt_tokens": 1}},
        {**bare({"content": "a"}), "usage": {"completion_tokens": -1}},
        bare({"content": "a"}, logprobs={"content": [{"token": "a", "logprob": 0.0, "bytes": [256]}]}),
        bare({"content": "a"}, logprobs={"content": [{"token": "a"}]}),
    ],
)
def test_what_is_no_chat_completion_is_unreadable(reply: Any) -> None:
    with pytest.raises(ValueError, match="no chat completion"):
        read_reply(json.dumps(reply).encode(), 1, 1)


# --- tokens ---


def test_the_count_is_split_by_length_and_nothing_is_lost() -> None:
    reply = read(choice("x" * 9), choice("y" * 29, 1), choice("", 2), tokens=41)
    assert [each.tokens for each in reply.choices] == [10, 30, 1]
    reply = read(*(choice("same", i) for i in range(7)), n=5, tokens=100)
    assert reply.offered == 7 and len(reply.choices) == 5 and reply.completion_tokens == 100
    assert all(each.tokens in (14, 15) for each in reply.choices)


def test_listed_tokens_are_counted() -> None:
    reply = read(choice("ab", logprobs=listed("a", "b")), choice("abc", 1, logprobs=listed("a", "b", "c")), tokens=50)
    assert [each.tokens for each in reply.choices] == [2, 3]


def test_without_any_count_a_reply_is_refused() -> None:
    with pytest.raises(EngineError, match="counts no tokens"):
        read_reply(json.dumps({"choices": [choice("a")]}).encode(), 1, 0)


# --- token probabilities ---


def listed(*tokens: str, **more: Any) -> Body:
    return {"content": [{"token": token, "logprob": -0.5, "top_logprobs": [], **more} for token in tokens]}


def test_steps_hold_the_alternatives_best_first() -> None:
    top = [
        {"token": "4", "logprob": -2.0},
        {"token": "5", "logprob": -0.25},
        {"token": "x", "logprob": -9.0, "bytes": [195, 169]},
    ]
    content = [
        {"token": "Score: ", "logprob": 0.0, "top_logprobs": [{"token": "Score: ", "logprob": 0.0}]},
        {"token": "5", "logprob": -0.25, "top_logprobs": top},
        {"token": "<end>", "logprob": 0.0, "top_logprobs": []},
    ]
    (written,) = read(choice("Score: 5", logprobs={"content": content}), top_logprobs=3).choices
    assert written.steps == (
        Step("Score: ", (TopLogprob("Score: ", 0.0),)),
        Step("5", (TopLogprob("5", -0.25), TopLogprob("4", -2.0), TopLogprob("é", -9.0))),
    )
    (written,) = read(choice("Score: 5", logprobs={"content": content}), top_logprobs=2).choices
    assert len(written.steps[1].top_logprobs) == 2
    (written,) = read(choice("Score: 5", logprobs={"content": content})).choices
    assert written.steps == ()


def test_probabilities_that_are_asked_for_must_be_there() -> None:
    missing: tuple[Body | None, ...] = (None, {"content": None}, {"content": []})
    for logprobs in missing:
        with pytest.raises(EngineError, match="gives no token probabilities"):
            read(choice("text", logprobs=logprobs), top_logprobs=2)
    with pytest.raises(EngineError, match="do not spell"):
        read(choice("text", logprobs=listed("tex")), top_logprobs=2)
    assert read(choice("", logprobs=None), top_logprobs=2).choices[0].steps == ()


@pytest.mark.parametrize("logprob", ["1e308", "Infinity", "-Infinity", "NaN", "1", "-1e308"])
def test_an_impossible_log_probability_is_one_clear_line(logprob: str) -> None:
    top = [{"token": "5", "logprob": "VALUE"}]
    content = [{"token": "5", "logprob": -0.1, "top_logprobs": top}]
    raw = completion(choice("5", logprobs={"content": content})).replace(b'"VALUE"', logprob.encode())
    with pytest.raises(EngineError, match="as a log-probability"):
        read_reply(raw, 1, 1)
    assert read_reply(raw, 1, 0).choices[0].text == "5", "not needed, so not read"


@pytest.mark.parametrize(
    ("tokens", "text", "expected"),
    [
        (["a", "b c"], "ab c", ["a", "b c"]),
        (["a", "", "b"], "ab", ["a", "", "b"]),
        (["a", "b", "<end>", ""], "ab", ["a", "b"]),
        ([" a", " b"], "a b", ["a", " b"]),
        (["caf", "\ufffd", "\ufffd", "!"], "café!", ["caf", "", "é", "!"]),
        (["\ufffd", "\ufffd", "\ufffd"], "\U0001f600", ["", "", "\U0001f600"]),
        (["a", "\ufffd", "<end>"], "a", ["a"]),
        (["a", "\ufffd"], "a\ufffd", ["a", "\ufffd"]),
        (["\ufffd", "", "b"], "éb", ["", "é", "b"]),
        ([" \ufffd", "\ufffd", "\ufffd", " "], " \U0001f600 ", [" ", "", "\U0001f600", " "]),
        (["b", "a"], "ab", None),
        (["a"], "ab", None),
        ([], "ab", None),
        (["\ufffd", "x"], "a long way to x", None),
        ([], "", []),
        (["<end>"], "", []),
    ],
)
def test_tokens_spell_the_text(tokens: list[str], text: str, expected: list[str] | None) -> None:
    assert token_spans(tokens, text) == expected
    assert expected is None or "".join(expected) == text


@given(st.text(st.sampled_from("ab \u00e9\u8a9e\U0001f600\ufffd"), max_size=12), st.binary(max_size=3), st.data())
def test_tokens_that_cut_characters_anywhere_spell_the_text(text: str, noise: bytes, data: st.DataObject) -> None:
    """As a model with tokens of bytes writes: characters cut at any byte, and bytes that are no character."""
    place = data.draw(st.integers(0, len(text)))
    written = text[:place].encode() + noise + text[place:].encode()
    cuts = sorted(data.draw(st.sets(st.integers(0, len(written)), max_size=8)) | {0, len(written)})
    tokens = [written[start:end].decode("utf-8", "replace") for start, end in pairwise(cuts)]
    whole = written.decode("utf-8", "replace")
    spans = token_spans(tokens, whole)
    assert spans is not None and "".join(spans) in (whole, whole.lstrip())
    assert len(spans) <= len(tokens)
    assert token_spans([*tokens, "<end>"], whole) is not None
