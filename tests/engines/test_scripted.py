from __future__ import annotations

import asyncio

import pytest

from metareward.engines.base import Call, Engine, EngineError, ScriptedEngine
from metareward.types import Completion, Message, Messages, Sampling

ASK = (Message("user", "how many?"),)
SAMPLING = Sampling(1.0, 1.0, 8, seed=5)


def test_reply_is_given_messages_sampling_and_sample_number() -> None:
    engine: Engine = ScriptedEngine(lambda messages, sampling, i: f"{messages[0].content} {sampling.seed} {i}")
    first, second = asyncio.run(engine.complete(ASK, SAMPLING, 2))
    assert first == Completion("how many? 5 0", "stop", 4)
    assert second.text == "how many? 5 1"


def test_a_completion_is_passed_on_as_it_is() -> None:
    cut = Completion("and so", "length", 8)
    assert asyncio.run(ScriptedEngine(lambda *_: cut).complete(ASK, SAMPLING, 1)) == (cut,)


def test_calls_are_recorded() -> None:
    engine = ScriptedEngine(lambda *_: "x")
    asyncio.run(engine.complete(ASK, SAMPLING, 3))
    assert engine.calls == [Call(ASK, SAMPLING, 3)]


def test_errors_reach_the_caller() -> None:
    def refuse(messages: Messages, sampling: Sampling, i: int) -> str:
        raise EngineError("no")

    with pytest.raises(EngineError, match="no"):
        asyncio.run(ScriptedEngine(refuse).complete(ASK, SAMPLING, 1))


def test_a_reply_is_one_of_the_choices() -> None:
    engine = ScriptedEngine(lambda messages, sampling, i: sampling.choices[i] if i < 2 else "something else")
    choose = Sampling(1.0, 1.0, 8, choices=(" 1", " 2"))
    assert [each.text for each in asyncio.run(engine.complete(ASK, choose, 2))] == [" 1", " 2"]
    with pytest.raises(ValueError, match="'something else' is none of the choices"):
        asyncio.run(engine.complete(ASK, choose, 3))


@pytest.mark.parametrize("choices", [("",), (" 1", " 1")])
def test_choices_are_different_texts(choices: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="different texts that aren't empty"):
        Sampling(1.0, 1.0, 8, choices=choices)
