"""Rows in every form that data sets have, as prompts and as examples to learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from metareward.data.prompts import example_of, load_prompts, prompt_of
from metareward.errors import UserError
from metareward.types import Message, Messages

SYSTEM, ASKED, SAID, AGAIN = (
    Message("system", "be kind"),
    Message("user", "hello"),
    Message("assistant", "hi"),
    Message("user", "and now?"),
)


def turn(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def share(message: Message) -> dict[str, str]:
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    return {"from": names[message.role], "value": message.content}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ("hello", (ASKED,)),
        ({"prompt": "hello"}, (ASKED,)),
        ({"prompt": [turn(SYSTEM), turn(ASKED)], "completion": "not looked at"}, (SYSTEM, ASKED)),
        ({"messages": [turn(ASKED), turn(SAID), turn(AGAIN)], "prompt": None}, (ASKED, SAID, AGAIN)),
        ({"instruction": "hello", "input": "", "output": "hi"}, (ASKED,)),
        ({"instruction": "hello", "input": " \n", "system": None}, (ASKED,)),
        ({"instruction": "Sort.", "input": "3, 2"}, (Message("user", "Sort.\n\n3, 2"),)),
        (
            {"instruction": "and now?", "system": "be kind", "history": [["hello", "hi"]]},
            (SYSTEM, ASKED, SAID, AGAIN),
        ),
        ({"conversations": [share(ASKED), share(SAID)]}, (ASKED,)),
        ({"conversations": [share(SYSTEM), share(ASKED), share(SAID), share(AGAIN)]}, (SYSTEM, ASKED, SAID, AGAIN)),
        ({"conversations": [share(ASKED), share(SAID)], "system": "be kind", "tools": ""}, (SYSTEM, ASKED)),
        ({"conversations": [share(SYSTEM), share(ASKED)], "system": "be rude"}, (SYSTEM, ASKED)),
        ({"conversations": [turn(ASKED), turn(SAID)]}, (ASKED,)),
        ({"messages": [share(ASKED)]}, (ASKED,)),
    ],
)
def test_every_form_of_a_prompt(row: object, expected: Messages) -> None:
    assert prompt_of(row, "here") == expected


def test_a_field_by_name_where_there_are_several() -> None:
    row = {"prompt": "hello", "messages": [turn(ASKED), turn(SAID)], "question": "and now?"}
    assert prompt_of(row, "here", "prompt") == (ASKED,)
    assert prompt_of(row, "here", "messages") == (ASKED,)
    assert prompt_of(row, "here", "question") == (AGAIN,)
    with pytest.raises(UserError, match='here: field "answer": is missing or null; fix: '):
        prompt_of(row, "here", "answer")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"instruction": 3}, 'field "instruction": is a number; fix: write text'),
        ({"instruction": "x", "input": ["y"]}, 'field "input": is a list; fix: write text'),
        ({"instruction": "x", "history": [["a", "b"], ["c"]]}, r'field "history\[1\]": is no pair of texts'),
        ({"instruction": "x", "history": [["a", ""]]}, r'field "history\[0\]\[1\]": is empty'),
        ({"instruction": "x", "conversations": []}, 'fields "conversations" and "instruction" are both there'),
        (
            {"conversations": [{"from": "tool", "value": "x"}]},
            r'"conversations\[0\].from": is "tool"; fix: use system, h',
        ),
        ({"conversations": [{"from": "human"}]}, r'field "conversations\[0\].value": is missing or null'),
        ({"conversations": [share(SAID), share(ASKED)]}, r'"conversations\[0\].role": is "assistant" where "user" is'),
        ({"conversations": [share(SAID)]}, 'field "conversations": has no user turn'),
        ({"conversations": "hello"}, 'field "conversations": is text'),
        ({"messages": [turn(ASKED), turn(SAID)]}, 'field "messages": ends with an assistant turn'),
    ],
)
def test_a_wrong_row_is_told_by_place_field_and_fix(row: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        prompt_of(row, "data.json: item 7")
    assert str(caught.value).startswith("data.json: item 7: ")
    assert "; fix: " in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hello", "completion": "hi"},
        {"prompt": [turn(ASKED)], "completion": [turn(SAID)]},
        {"messages": [turn(ASKED), turn(SAID)]},
        {"instruction": "hello", "input": "", "output": "hi"},
        {"conversations": [share(ASKED), share(SAID)]},
    ],
)
def test_every_form_of_an_example(row: dict[str, Any]) -> None:
    assert example_of(row, "here") == ((ASKED,), "hi")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("hello", "not a JSON object"),
        ({"prompt": "hello"}, 'field "prompt": ends without the assistant\'s turn'),
        ({"prompt": "hello", "completion": ""}, 'field "completion": is empty'),
        ({"prompt": "hello", "completion": [turn(ASKED)]}, 'field "completion": ends without the assistant'),
        ({"prompt": [turn(ASKED), turn(SAID)], "completion": "hi"}, 'field "completion": ends with an assistant turn'),
        ({"completion": "hi"}, 'field "prompt": is missing or null'),
        ({"instruction": "hello"}, 'field "output": is missing or null'),
        ({"messages": [turn(SAID)]}, 'field "messages": has no user turn'),
        ({"messages": []}, 'field "messages": ends without the assistant'),
    ],
)
def test_what_is_no_example(row: object, told: str) -> None:
    with pytest.raises(UserError, match=told):
        example_of(row, "here")


def test_one_prompt_has_one_id_in_every_form(tmp_path: Path) -> None:
    rows = ["hello", {"prompt": "hello"}, {"instruction": "hello", "output": "x"}, {"conversations": [share(ASKED)]}]
    ids = set()
    for number, row in enumerate(rows):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        ids.add(load_prompts(path)[0].id)
    assert len(ids) == 1
