"""A judge by its name: what its recipe says of thinking holds."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from chat_server import Answer, Body, FakeChatServer, choice, completion

from metareward.errors import UserError
from metareward.pipeline.engines import open_judge_engine
from metareward.types import Message, Sampling

RECIPE = """\
model: {folder}
prompts: {{source: pocket}}
judgments: {{max_tokens: 99}}
reasoning: {{strip: {strip}, end: "[end]"}}
engine: {{kind: openai, base_urls: ["{url}"], model: far}}
"""


def thinking(_: Body, __: int) -> Answer:
    return Answer(completion(choice("well [end] Score: 4")))


@pytest.mark.parametrize(("strip", "said", "tokens"), [("true", "Score: 4", 109), ("false", "well [end] Score: 4", 10)])
def test_a_recipe_says_whether_its_judge_thinks(tmp_path: Path, strip: str, said: str, tokens: int) -> None:
    async def asked() -> str:
        async with FakeChatServer(thinking) as server:
            path = tmp_path / "judge.yaml"
            path.write_text(RECIPE.format(folder=tmp_path, strip=strip, url=server.url))
            engine = await open_judge_engine(str(path))
            (written,) = await engine.complete((Message("user", "Grade it."),), Sampling(0.0, 1.0, 10), 1)
            await engine.aclose()
            assert server.bodies[0]["max_tokens"] == tokens
            return written.text

    assert asyncio.run(asked()) == said


def test_a_server_needs_a_model_s_name() -> None:
    with pytest.raises(UserError, match="say which model the server is asked for"):
        asyncio.run(open_judge_engine("http://127.0.0.1:1"))


@pytest.mark.parametrize("name", ["oracle", "itself"])
def test_a_judge_that_only_a_run_has_is_not_taken_for_a_folder(name: str) -> None:
    with pytest.raises(UserError, match=f"^judge {name}: possible only for a benchmark in a recipe.*; fix: name"):
        asyncio.run(open_judge_engine(name))
