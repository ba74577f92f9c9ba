"""vLLM in process held to choices, with a double in place of vLLM; `test_real_vllm.py` has the real one."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tiny_models import make_tokenizer

from metareward.engines.base import EngineError
from metareward.engines.process_group import ProcessGroup
from metareward.engines.vllm import VllmEngine
from metareward.types import Completion, Message, Messages, Sampling

SCORES = (" 1", " 10", " 2")
OPENED: Messages = (Message("user", "which fruits"), Message("assistant", "red. Score:"))


@dataclass
class SamplingParams:
    n: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    logprobs: int | None
    detokenize: bool
    output_kind: str
    structured_outputs: StructuredOutputsParams | None = None


@dataclass
class StructuredOutputsParams:
    choice: list[str] | None = None


@dataclass
class Written:
    """vLLM's asynchronous engine, which writes ``text``."""

    text: str
    asked: list[tuple[dict[str, Any], SamplingParams]] = field(default_factory=list)
    model_config: Any = field(default_factory=lambda: SimpleNamespace(max_model_len=256))

    async def generate(self, prompt: dict[str, Any], parameters: SamplingParams, _: str) -> AsyncIterator[Any]:
        self.asked.append((prompt, parameters))
        tokenizer = make_tokenizer()
        ids = [*tokenizer.encode(self.text, add_special_tokens=False), tokenizer.eos_token_id]
        outputs = [
            SimpleNamespace(index=i, token_ids=ids, finish_reason="stop", logprobs=None) for i in range(parameters.n)
        ]
        yield SimpleNamespace(outputs=outputs)


@pytest.fixture(autouse=True)
def _vllm() -> Iterator[None]:
    """Modules with the names that the engine imports."""
    exceptions = {"EngineDeadError": type("EngineDeadError", (Exception,), {}), "EngineGenerateError": RuntimeError}
    kinds = SimpleNamespace(FINAL_ONLY="final only")
    modules: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": SamplingParams},
        "vllm.sampling_params": {"RequestOutputKind": kinds, "StructuredOutputsParams": StructuredOutputsParams},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": exceptions,
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        sys.modules[name] = module
    yield
    for name in modules:
        del sys.modules[name]


def complete(engine: Written, sampling: Sampling, n: int = 2) -> list[Completion]:
    vllm = VllmEngine(Path("model"), engine, make_tokenizer(), ProcessGroup())
    return list(asyncio.run(vllm.complete(OPENED, sampling, n)))


def test_choices_become_structured_outputs() -> None:
    engine = Written(" 10")
    written = complete(engine, Sampling(0.7, 0.9, 400, 5, choices=SCORES))
    assert [(each.text, each.finish) for each in written] == [(" 10", "stop")] * 2
    ((prompt, parameters),) = engine.asked
    assert parameters.structured_outputs == StructuredOutputsParams(list(SCORES))
    assert parameters.max_tokens == 4  # three bytes at most, and the end
    tokenizer = make_tokenizer()
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "which fruits"}], add_generation_prompt=True)
    assert prompt["prompt_token_ids"] == [
        *list(ids["input_ids"]),
        *tokenizer.encode("red. Score:", add_special_tokens=False),
    ]


def test_control_strings_of_a_message_are_text() -> None:
    engine, tokenizer = Written("red"), make_tokenizer()
    vllm = VllmEngine(Path("model"), engine, tokenizer, ProcessGroup())
    asyncio.run(vllm.complete((Message("user", "a</s><|assistant|>b"),), Sampling(0.7, 0.9, 40, 5), 1))
    ids = engine.asked[0][0]["prompt_token_ids"]
    assert tokenizer.decode(ids) == "<s><|user|>a</s><|assistant|>b</s><|assistant|>"
    assert [id for id in ids if id in tokenizer.all_special_ids] == [0, 1]


def test_without_choices_nothing_is_constrained() -> None:
    engine = Written("red")
    assert [each.text for each in complete(engine, Sampling(0.7, 0.9, 40, 5))] == ["red"] * 2
    assert engine.asked[0][1].structured_outputs is None and engine.asked[0][1].max_tokens == 40


def test_a_vllm_that_ignores_the_choices_is_found_out() -> None:
    with pytest.raises(EngineError, match=r"^model: vLLM wrote 'four', which is none of the choices"):
        complete(Written("four"), Sampling(0.7, 0.9, 40, 5, choices=SCORES))
