"""Constrained decoding in the local engine: its distribution against a plain forward pass, and its independence."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from metareward.engines.base import EngineError
from metareward.engines.local.checkpoint import load
from metareward.engines.local.engine import LocalEngine
from metareward.engines.local.sampler import ChoiceTrie, mask_rows
from metareward.engines.local.worker import Replies, _submission
from metareward.pocket.world import MODEL
from metareward.types import Completion, Message, Messages, Sampling

Conversation = Callable[[int, int], Messages]
SCORES = (" 0", " 1", " 2", " 10", " good")
DRAWS = 600


def ask(folder: Path, *requests: tuple[Messages, Sampling, int], deterministic: bool = True) -> list[list[Completion]]:
    async def once() -> list[list[Completion]]:
        engine = LocalEngine.open(folder, device="cpu", dtype="float32", max_num_seqs=64, deterministic=deterministic)
        try:
            written = await asyncio.gather(*(engine.complete(*request) for request in requests))
        finally:
            await engine.aclose()
        return [list(each) for each in written]

    return asyncio.run(once())


def opened(messages: Messages, text: str = "which fruits. Score:") -> Messages:
    return (*messages, Message("assistant", text))


def exact(folder: Path, messages: Messages, temperature: float) -> dict[str, float]:
    """Each choice's probability: the product of its steps' probabilities among the tokens that continue a choice."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    *before, last = ({"role": each.role, "content": each.content} for each in messages)
    asked = tokenizer.apply_chat_template(before, add_generation_prompt=True, return_dict=False)
    asked += tokenizer.encode(last["content"], add_special_tokens=False)
    texts = {choice: [*tokenizer.encode(choice, add_special_tokens=False), tokenizer.eos_token_id] for choice in SCORES}
    found = {}
    for choice, ids in texts.items():
        probability = 1.0
        for end in range(len(ids)):
            following = {each[end] for each in texts.values() if each[:end] == ids[:end]}
            if len(following) > 1:
                with torch.no_grad():
                    logits = model(torch.tensor([asked + ids[:end]])).logits[0, -1] / temperature
                allowed = torch.tensor(sorted(following))
                probability *= float(torch.softmax(logits[allowed], -1)[allowed == ids[end]])
        found[choice] = probability
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_choices_are_drawn_with_the_probabilities_of_the_model(
    llama: Path, conversation: Conversation, temperature: float
) -> None:
    messages = opened(conversation(3, 9))
    (drawn,) = ask(llama, (messages, Sampling(temperature, 1.0, 1, 5, choices=SCORES), DRAWS))
    expected = exact(llama, messages, temperature)
    assert sum(expected.values()) == pytest.approx(1)
    counts = Counter(each.text for each in drawn)
    assert counts.keys() <= set(SCORES) and {each.finish for each in drawn} == {"stop"}
    common = [choice for choice in SCORES if expected[choice] * DRAWS >= 5]
    assert len(common) > 1
    wanted = [expected[choice] * DRAWS for choice in common]
    seen = [counts[choice] for choice in common]
    rest = DRAWS - sum(wanted)
    if rest >= 5:
        wanted, seen = [*wanted, rest], [*seen, DRAWS - sum(seen)]
    assert stats.chisquare(seen, np.array(wanted) * sum(seen) / sum(wanted)).pvalue > 1e-4


def test_the_nucleus_is_that_of_the_choices(llama: Path, conversation: Conversation) -> None:
    """A choice may be improbable among all tokens: top-p applies to the choices."""
    messages = opened(conversation(3, 9))
    (drawn,) = ask(llama, (messages, Sampling(1.0, 1e-6, 1, 5, choices=SCORES), 4))
    greedy = ask(llama, (messages, Sampling(0.0, 1.0, 1, 5, choices=SCORES), 1))[0][0]
    assert {each.text for each in drawn} == {greedy.text}


@pytest.mark.parametrize("deterministic", [True, False])
def test_requests_with_and_without_choices_run_together(
    llama: Path, conversation: Conversation, deterministic: bool
) -> None:
    constrained = [(opened(conversation(n, 9)), Sampling(1.0, 0.95, 1, n, choices=SCORES), 3) for n in range(5)]
    tokenizer = AutoTokenizer.from_pretrained(llama)
    longest = max(
        len(tokenizer.encode(choice, add_special_tokens=False)) for choice in SCORES
    )  # so they share a bucket
    free = [(opened(conversation(n, 9)), Sampling(1.0, 0.95, longest, n), 3) for n in range(5)]
    written = ask(llama, *constrained, *free, deterministic=deterministic)
    assert {each.text for drawn in written[:5] for each in drawn} <= set(SCORES)
    assert not {each.text for drawn in written[5:] for each in drawn} <= set(SCORES)
    if deterministic:
        assert [ask(llama, each)[0] for each in (*constrained[:2], *free[:2])] == [*written[:2], *written[5:7]]


def test_probabilities_are_renormalised_over_the_choices(llama: Path, conversation: Conversation) -> None:
    messages = opened(conversation(3, 9))
    (drawn,) = ask(llama, (messages, Sampling(1.7, 1.0, 1, 5, top_logprobs=20, choices=SCORES), 4))
    expected = exact(llama, messages, 1.0)
    for each in drawn:
        assert "".join(step.text for step in each.steps) == each.text and each.tokens == len(each.steps)
        # All begin with a space, and the second token separates all of them but 1 and 10.
        found = {top.text: np.exp(top.logprob) for top in each.steps[1].top_logprobs}
        assert found.keys() == {"0", "1", "2", "g"}
        assert found["0"] == pytest.approx(expected[" 0"], rel=1e-3)
        assert found["1"] == pytest.approx(expected[" 1"] + expected[" 10"], rel=1e-3)


def test_choices_with_the_same_tokens_are_refused(llama: Path) -> None:
    """Two lone surrogates are replaced by the same character."""
    with pytest.raises(EngineError, match="refused"):
        ask(llama, ((Message("user", "red"),), Sampling(1.0, 1.0, 4, choices=("\ud800", "\ud801")), 2))


def test_a_choice_that_begins_another_needs_a_token_that_ends_it() -> None:
    texts = {(5,): " 1", (5, 6): " 10", (7,): " 2"}
    trie = ChoiceTrie.build(texts, [1, 3])
    assert {path: tokens.tolist() for path, tokens in trie.next_tokens.items()} == {(): [5, 7], (5,): [1, 3, 6]}
    assert trie.steps == 2
    with pytest.raises(ValueError, match="begins another choice"):
        ChoiceTrie.build(texts, [])


def test_masking_leaves_other_rows_as_they_are() -> None:
    logits = torch.randn(4, 9)
    masked = logits.clone()
    mask_rows(masked, {1: np.array([3]), 3: np.array([0, 8])})
    assert torch.equal(masked[[0, 2]], logits[[0, 2]])
    assert (masked > -torch.inf).nonzero().tolist()[9:10] == [[1, 3]]
    assert torch.equal(masked[3, [0, 8]], logits[3, [0, 8]]) and (masked[3] > -torch.inf).sum() == 2


def test_workers_are_sent_the_choices(llama: Path) -> None:
    seen: list[tuple[Messages, Sampling]] = []

    class Core:
        def submit(self, messages: Messages, sampling: Sampling, n: int, *_: Any) -> None:
            seen.append((messages, sampling))

    sampling = Sampling(1.0, 0.9, 7, 3, 2, SCORES)
    request = {"id": 1, "messages": [["user", "red"]], "sampling": [1.0, 0.9, 7, 3, 2, list(SCORES)], "n": 2}
    _submission(json.loads(json.dumps(request)), Replies.__new__(Replies))(Core())  # type: ignore[arg-type]
    assert seen == [((Message("user", "red"),), sampling)]


def test_a_prompt_without_room_for_a_choice_is_refused(llama: Path, conversation: Conversation) -> None:
    with pytest.raises(EngineError, match="exceed the model's context"):
        ask(llama, (conversation(1, 300), Sampling(1.0, 1.0, 1, choices=SCORES), 1))


def test_spellings_that_the_tokenizer_lacks_are_left_out(llama: Path, conversation: Conversation) -> None:
    """A whole word's probability is that of its spellings that the tokenizer can write, by a plain forward pass."""
    tokenizer, model = AutoTokenizer.from_pretrained(llama), AutoModelForCausalLM.from_pretrained(llama).eval()
    messages, spellings = conversation(3, 9), ("good", " good", "Good ", " 1", "1", "1 ")
    sampling = Sampling(0.0, 1.0, 1, top_logprobs=20, choices=spellings)
    ((drawn,),) = ask(llama, (messages, sampling, 1))
    dicts = [{"role": each.role, "content": each.content} for each in messages]
    ids = tokenizer.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, -1]
    written = {tuple(tokenizer.encode(each, add_special_tokens=False)) for each in spellings}
    first = sorted({each[0] for each in written if tokenizer.decode(list(each)).strip()})
    expected = dict(zip(first, torch.softmax(logits[first], -1).tolist(), strict=True))
    seen = {each.text: math.exp(each.logprob) for each in drawn.steps[0].top_logprobs}
    assert seen == pytest.approx({tokenizer.decode([token]): p for token, p in expected.items()}, abs=1e-5)


def test_a_choice_that_no_spelling_can_write_is_refused() -> None:
    words = WordLevel({"[UNK]": 0, "Yes": 1, "yes": 2, "no": 3}, unk_token="[UNK]")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = WhitespaceSplit()
    few = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    checkpoint = replace(load(MODEL, "cpu", "float32"), tokenizer=few)
    found = checkpoint.encode_choices("", ("Yes", "No", "yes", "no", " Yes", " no"))
    assert found == {(1,): "Yes", (2,): "yes", (3,): "no"}
    with pytest.raises(EngineError, match="the tokenizer has no tokens for 'Maybe'"):
        checkpoint.encode_choices("", ("Yes", "Maybe", "no"))
