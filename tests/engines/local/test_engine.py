"""The local engine against plain `generate`, and against itself with other requests in the batch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from metareward.engines.base import EngineError
from metareward.engines.local.engine import LocalEngine, open_core
from metareward.types import Completion, Message, Messages, Sampling

Conversation = Callable[[int, int], Messages]
Ask = tuple[Messages, Sampling, int]
KINDS = ["llama", "qwen", "gemma2", "gemma3"]


def open_engine(
    folder: Path, *, deterministic: bool = True, dtype: str = "float32", max_num_seqs: int = 24
) -> LocalEngine:
    return LocalEngine.open(folder, device="cpu", dtype=dtype, max_num_seqs=max_num_seqs, deterministic=deterministic)


def answers(engine: LocalEngine, asks: Sequence[Ask]) -> list[Sequence[Completion]]:
    async def all_at_once() -> list[Sequence[Completion]]:
        return await asyncio.gather(*(engine.complete(*ask) for ask in asks))

    return asyncio.run(all_at_once())


def closed(engine: LocalEngine, asks: Sequence[Ask]) -> list[Sequence[Completion]]:
    outcome = answers(engine, asks)
    asyncio.run(engine.aclose())
    return outcome


@pytest.fixture(scope="module")
def engine(llama: Path) -> Iterator[LocalEngine]:
    opened = open_engine(llama)
    yield opened
    asyncio.run(opened.aclose())


def mixed(conversation: Conversation, count: int, temperature: float = 1.0) -> list[Ask]:
    """Requests of several shapes: 1, 3 or 7 samples, short and longer prompts."""
    return [
        (
            conversation(i, 3 + (i * 5) % 40),
            Sampling(temperature, 0.9 if i % 2 else 1.0, (6, 14)[i % 3 // 2], seed=1000 + i),
            (1, 3, 7)[i % 3],
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_generate(
    kind: str, deterministic: bool, folders: dict[str, Path], conversation: Conversation
) -> None:
    folder = folders[kind]
    asks = [(conversation(i, 2 + 3 * i), Sampling(0.0, 1.0, 12), 1 + i % 2) for i in range(9)]
    ours = closed(open_engine(folder, deterministic=deterministic, max_num_seqs=6), asks)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for (messages, sampling, n), got in zip(asks, ours, strict=True):
        turns = [{"role": message.role, "content": message.content} for message in messages]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=sampling.max_tokens)
        expected = tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        assert [each.text for each in got] == [expected] * n


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_text_does_not_depend_on_the_batch_or_the_order(dtype: str, llama: Path, conversation: Conversation) -> None:
    asks = mixed(conversation, 30)
    in_order = closed(open_engine(llama, dtype=dtype), asks)
    shuffled = list(range(len(asks)))
    random.Random(0).shuffle(shuffled)
    engine = open_engine(llama, dtype=dtype)
    out_of_order = answers(engine, [asks[i] for i in shuffled])
    for i in (0, 7, 22, 29):
        assert answers(engine, [asks[i]]) == [in_order[i]]
    asyncio.run(engine.aclose())
    assert [in_order[i] for i in shuffled] == out_of_order


def test_samples_of_a_request_differ_and_follow_its_seed(engine: LocalEngine, conversation: Conversation) -> None:
    ask = conversation(1, 8)
    first, same, other = answers(engine, [(ask, Sampling(1.0, 1.0, 14, seed), 7) for seed in (5, 5, 6)])
    assert first == same and first != other
    assert len({each.text for each in first}) == 7


def test_fewer_samples_equal_the_first_ones_of_more(engine: LocalEngine, conversation: Conversation) -> None:
    seven, three = answers(engine, [(conversation(2, 8), Sampling(1.0, 1.0, 10, 3), n) for n in (7, 3)])
    assert seven[:3] == three


def test_stop_and_length(engine: LocalEngine, conversation: Conversation) -> None:
    asks = [(conversation(i, 6), Sampling(1.0, 1.0, 60, i), 7) for i in range(12)]
    completions = [each for many in answers(engine, asks) for each in many]
    stopped = [each for each in completions if each.finish == "stop"]
    cut = [each for each in completions if each.finish == "length"]
    assert stopped and cut
    assert all(each.tokens == 60 for each in cut) and all(each.tokens < 60 for each in stopped)
    assert not any("</s>" in each.text for each in completions)


def test_a_limit_of_one_token(engine: LocalEngine, conversation: Conversation) -> None:
    (many,) = answers(engine, [(conversation(4, 6), Sampling(1.0, 1.0, 1, 1), 7)])
    assert all(each.tokens <= 1 for each in many)


def test_text_is_not_stripped(engine: LocalEngine, conversation: Conversation) -> None:
    asks = [(conversation(i, 6), Sampling(1.5, 1.0, 4, i), 7) for i in range(30)]
    assert any(each.text != each.text.strip() for many in answers(engine, asks) for each in many)


def test_a_prompt_that_is_too_long_fails_alone(engine: LocalEngine, conversation: Conversation) -> None:
    async def both() -> list[object]:
        asks = [(conversation(0, 300), Sampling(1.0, 1.0, 10), 1), (conversation(0, 3), Sampling(1.0, 1.0, 10), 1)]
        return await asyncio.gather(*(engine.complete(*ask) for ask in asks), return_exceptions=True)

    error, fine = asyncio.run(both())
    assert isinstance(error, EngineError)
    assert "max_tokens 10" in str(error) and "256 tokens" in str(error)
    assert isinstance(fine, tuple)


def test_the_last_token_of_the_context_can_be_used(engine: LocalEngine) -> None:
    head = len(["", "s>", "|user|>", "/s>", "|assistant|>"]) - 1
    ask = (Message("user", "#" * (256 - head - 10)),)
    (many,) = answers(engine, [(ask, Sampling(1.0, 1.0, 10), 2)])
    assert len(many) == 2


@pytest.mark.parametrize(
    ("template", "reason"),
    [("{{ raise_exception('no such role') }}", "no such role"), ("{{ messages + 1 }}", "TypeError")],
)
def test_a_request_rejected_by_the_template_fails(
    llama: Path, tmp_path: Path, conversation: Conversation, template: str, reason: str
) -> None:
    folder = tmp_path / "strict"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    engine = open_engine(folder)
    with pytest.raises(EngineError, match=f"a request was refused: {reason}"):
        answers(engine, [(conversation(1, 2), Sampling(1.0, 1.0, 2), 1)])
    asyncio.run(engine.aclose())


def test_closing_fails_unfinished_requests(llama: Path, conversation: Conversation) -> None:
    async def scene() -> None:
        engine = open_engine(llama)
        waiting = [
            asyncio.create_task(engine.complete(conversation(i, 9), Sampling(1.0, 1.0, 150, i), 7)) for i in range(30)
        ]
        await asyncio.sleep(0.2)
        await engine.aclose()
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
        assert any(isinstance(outcome, EngineError) for outcome in outcomes)
        with pytest.raises(EngineError, match="closed"):
            await engine.complete(conversation(1, 2), Sampling(1.0, 1.0, 2), 1)

    asyncio.run(scene())


def unexpected(outcome: object) -> None:
    raise AssertionError(outcome)


def test_a_cancelled_request_is_given_up_and_others_are_as_without_it(llama: Path, conversation: Conversation) -> None:
    core = open_core(llama, device="cpu", dtype="float32", max_num_seqs=6, deterministic=True)
    sampling, delivered = Sampling(1.0, 1.0, 14, seed=3), dict[int, tuple[Completion, ...]]()

    def submit(key: int) -> None:
        core.submit(conversation(key, 5), sampling, 3, lambda found: delivered.update({key: found}), unexpected, key)

    submit(1)
    while core.run_pass():
        pass
    alone = delivered.pop(1)
    for key in range(5):  # of which two have a slot
        submit(key)
    core.run_pass()
    core.run_pass()
    for key in (0, 3, 99):
        core.cancel(key)
    while core.run_pass():
        pass
    assert sorted(delivered) == [1, 2, 4]
    assert delivered[1] == alone


def test_cancelling_all_leaves_nothing_to_do(llama: Path, conversation: Conversation) -> None:
    core = open_core(llama, device="cpu", dtype="float32", max_num_seqs=6, deterministic=False)
    choices = Sampling(1.0, 1.0, 14, choices=(" yes", " no"))
    for key in range(4):
        asked = choices if key % 2 else Sampling(0.7, 0.9, 14)
        core.submit(conversation(key, 5), asked, 2, unexpected, unexpected, key)
    core.run_pass()
    for key in range(4):
        core.cancel(key)
    passes = 0
    while core.run_pass():
        passes += 1
    assert passes <= 8  # prompts that are in slots are prefilled; of 14 tokens none is waited for
