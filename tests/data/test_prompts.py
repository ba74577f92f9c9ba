"""Prompts: rows in every form, errors that name line, field and fix, and slices of iterations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.data.prompts import (
    digest_prompts,
    gather_prompts,
    load_prompts,
    parse_example,
    parse_prompt,
    prompts_of_iteration,
    split_held_out,
    write_prompts,
)
from metareward.errors import UserError
from metareward.types import Message, Messages, Prompt

USER = {"role": "user", "content": "hello"}
BOT = {"role": "assistant", "content": "hi"}
SYSTEM = {"role": "system", "content": "be kind"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "prompts.jsonl"


def put(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def many(count: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(f"p{number}", (Message("user", f"question {number}"),)) for number in range(count))


def test_prompts_in_three_forms(path: Path) -> None:
    put(
        path,
        {"id": "a", "prompt": "hello"},
        {"id": "b", "prompt": [SYSTEM, USER]},
        {"id": 3, "messages": [USER, BOT, USER]},
    )
    user, bot, system = Message("user", "hello"), Message("assistant", "hi"), Message("system", "be kind")
    assert load_prompts(path) == (
        Prompt("a", (user,)),
        Prompt("b", (system, user)),
        Prompt("3", (user, bot, user)),
    )


def test_the_default_id_is_a_hash_of_the_content(path: Path) -> None:
    first = load_prompts(put(path, {"prompt": "one"}, {"prompt": "two", "source": "x"}))
    again = load_prompts(put(path, {"messages": [{"role": "user", "content": "two"}]}, {"prompt": "one"}))
    assert {prompt.id for prompt in first} == {prompt.id for prompt in again}
    assert first[0].id != first[1].id


def test_only_a_newline_ends_a_line(path: Path) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"
    path.write_text(json.dumps({"prompt": text}, ensure_ascii=False) + "\n\n  \n" + '{"prompt": "x"}', encoding="utf-8")
    assert [prompt.messages[0].content for prompt in load_prompts(path)] == [text, "x"]


def test_byte_order_mark_and_windows_line_ends(path: Path) -> None:
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "two\\r\\n"}\r\n')
    assert [prompt.messages[0].content for prompt in load_prompts(path)] == ["one", "two\r\n"]


def test_duplicates_are_refused_or_reported(path: Path) -> None:
    put(
        path,
        {"prompt": "one"},
        {"prompt": "two"},
        {"prompt": "one"},
        {"messages": [{"role": "user", "content": "one"}]},
    )
    with pytest.raises(UserError, match=r"prompts\.jsonl:3: the same prompt as in .*prompts\.jsonl:1; fix: remove one"):
        load_prompts(path)
    gathered = gather_prompts(path)
    assert [prompt.messages[0].content for prompt in gathered.prompts] == ["one", "two"]
    assert gathered.repeats == ((f"{path}:3", f"{path}:1"), (f"{path}:4", f"{path}:1"))


def test_equal_texts_with_different_ids_are_two_prompts(path: Path) -> None:
    assert len(load_prompts(put(path, {"id": "a", "prompt": "one"}, {"id": "b", "prompt": "one"}))) == 2


BAD = [
    ("{", "not JSON"),
    ("[" * 100_000, "not JSON"),
    ("3", "not a JSON object"),
    ('["hello"]', "not a JSON object"),
    ('" "', 'field "prompt": is empty'),
    ("{}", r'field "prompt": missing \(fields here: none\)'),
    ('{"question": "x", "in\\nput": ""}', r'field "prompt": missing \(fields here: "question", "in\\nput"\)'),
    ('{"prompt": "x", "messages": [{"role": "user", "content": "x"}]}', 'fields "prompt" and "messages" are both'),
    ('{"prompt": 3}', 'field "prompt": is a number'),
    ('{"prompt": {"role": "user"}}', 'field "prompt": is an object'),
    ('{"messages": "x"}', 'field "messages": is text'),
    ('{"prompt": "  \\n"}', 'field "prompt": is empty'),
    ('{"prompt": "half \\ud83d"}', r'field "prompt": holds \\ud83d'),
    ('{"prompt": []}', 'field "prompt": has no user turn'),
    ('{"prompt": [1]}', r'field "prompt\[0\]": is a number'),
    ('{"prompt": [{"role": "tool", "content": "x"}]}', r'field "prompt\[0\].role": is "tool"'),
    ('{"prompt": [{"content": "x"}]}', r'field "prompt\[0\].role": is null'),
    ('{"prompt": [{"role": ["user"], "content": "x"}]}', r'field "prompt\[0\].role": is \["user"\]'),
    ('{"prompt": [{"role": "user"}]}', r'field "prompt\[0\].content": is missing or null'),
    ('{"prompt": [{"role": "user", "content": [{"type": "text"}]}]}', r'field "prompt\[0\].content": is a list'),
    ('{"prompt": [{"role": "system", "content": "x"}]}', 'field "prompt": has no user turn'),
    (json.dumps({"messages": [USER, BOT]}), 'field "messages": ends with an assistant turn; fix: remove it'),
    (json.dumps({"messages": [USER, USER]}), r'field "messages\[1\].role": is "user", should be "assistant"'),
    (json.dumps({"messages": [BOT, USER]}), r'field "messages\[0\].role": is "assistant", should be "user"'),
    (json.dumps({"messages": [USER, SYSTEM]}), r'field "messages\[1\].role": is "system", should be "assistant"'),
    ('{"id": "", "prompt": "x"}', 'field "id": is empty'),
    ('{"id": true, "prompt": "x"}', 'field "id": is true or false'),
    ('{"id": 1.5, "prompt": "x"}', 'field "id": is a number'),
    ('{"id": "a", "prompt": "x"}', r'field "id": "a" is taken by .*prompts\.jsonl:1'),
    ('{"id": "a", "prompt": "fine"}', r"the same prompt as in .*prompts\.jsonl:1"),
]


@pytest.mark.parametrize(("line", "expected"), BAD)
def test_errors_name_file_line_field_and_fix(path: Path, line: str, expected: str) -> None:
    path.write_text('{"id": "a", "prompt": "fine"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=expected) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "; fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_utf8(path: Path) -> None:
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(UserError, match=r"prompts\.jsonl:2: this is not UTF-8"):
        load_prompts(path)


def test_files_that_are_empty_or_missing(path: Path, tmp_path: Path) -> None:
    path.write_text("\n\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="no prompts in it; fix:"):
        load_prompts(path)
    for other in (tmp_path / "nowhere.jsonl", tmp_path / "folder"):
        with pytest.raises(UserError, match=r"can't be read: .*; fix:"):
            load_prompts(other)


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5, unique=True))
@settings(deadline=None)
def test_written_prompts_come_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    prompts = tuple(Prompt(text, (Message("system", text), Message("user", text))) for text in texts)
    write_prompts(path, prompts)
    assert load_prompts(path) == prompts
    assert digest_prompts(load_prompts(path)) == digest_prompts(prompts)


def test_the_digest_sees_every_change() -> None:
    base = many(2)
    others = [
        base[::-1],
        base[:1],
        (base[0], Prompt("p1", (Message("user", "other"),))),
        (base[0], Prompt("p1", (Message("system", "question 1"),))),
    ]
    assert len({digest_prompts(prompts) for prompts in [base, *others]}) == 5


def test_slices_are_disjoint_cover_everything_and_repeat() -> None:
    slices = [prompts_of_iteration(many(20), 5, iteration, seed=3) for iteration in (1, 2, 3, 4)]
    assert sorted(prompt.id for part in slices for prompt in part) == sorted(prompt.id for prompt in many(20))
    assert slices == [prompts_of_iteration(many(20)[::-1], 5, iteration, seed=3) for iteration in (1, 2, 3, 4)]
    assert slices[0] != prompts_of_iteration(many(20), 5, 1, seed=4)
    assert [prompt.id for part in slices for prompt in part] != [prompt.id for prompt in many(20)]


def test_too_few_prompts() -> None:
    with pytest.raises(UserError, match=r"iteration 3 needs 15 \(3 x 5\) and there are 14; fix:"):
        prompts_of_iteration(many(14), 5, 3, seed=1)


def test_held_out_prompts_are_not_among_the_rest() -> None:
    held, rest = split_held_out(many(20), 6, 5, 2, seed=1)
    assert len(held) == 6
    assert {prompt.id for prompt in held} | {prompt.id for prompt in rest} == {prompt.id for prompt in many(20)}
    assert len(rest) == 14
    assert held == split_held_out(many(20)[::-1], 6, 5, 2, seed=1)[0]


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 20), st.integers(1, 12))
def test_training_takes_its_prompts_before_the_evaluation(
    per_iteration: int, iterations: int, spare: int, count: int
) -> None:
    needed = per_iteration * iterations
    held_out, rest = split_held_out(many(needed + spare), count, per_iteration, iterations, seed=1)
    slices = [prompts_of_iteration(rest, per_iteration, t, seed=1) for t in range(1, iterations + 1)]
    assert len({prompt.id for part in slices for prompt in part}) == needed
    assert len({prompt.id for prompt in held_out}) == len(held_out) == min(count, spare + per_iteration)
    borrowed = [prompt for prompt in held_out if prompt in rest]
    assert len(borrowed) == max(0, len(held_out) - spare)
    assert set(borrowed) <= set(slices[-1])


def test_too_few_prompts_to_train_on_are_not_blamed_on_the_evaluation() -> None:
    with pytest.raises(UserError, match=r"iteration 4 needs 20 \(4 x 5\) and there are 19; fix:"):
        split_held_out(many(19), 3, 5, 4, seed=1)


# --- forms of rows ---


RULE, ASKED, SAID, AGAIN = (
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
        ({"prompt": [turn(RULE), turn(ASKED)], "completion": "not looked at"}, (RULE, ASKED)),
        ({"messages": [turn(ASKED), turn(SAID), turn(AGAIN)], "prompt": None}, (ASKED, SAID, AGAIN)),
        ({"instruction": "hello", "input": "", "output": "hi"}, (ASKED,)),
        ({"instruction": "hello", "input": " \n", "system": None}, (ASKED,)),
        ({"instruction": "Sort.", "input": "3, 2"}, (Message("user", "Sort.\n\n3, 2"),)),
        (
            {"instruction": "and now?", "system": "be kind", "history": [["hello", "hi"]]},
            (RULE, ASKED, SAID, AGAIN),
        ),
        ({"conversations": [share(ASKED), share(SAID)]}, (ASKED,)),
        (
            {"conversations": [share(RULE), share(ASKED), share(SAID), share(AGAIN)]},
            (RULE, ASKED, SAID, AGAIN),
        ),
        ({"conversations": [share(ASKED), share(SAID)], "system": "be kind", "tools": ""}, (RULE, ASKED)),
        ({"conversations": [share(RULE), share(ASKED)], "system": "be rude"}, (RULE, ASKED)),
        ({"conversations": [turn(ASKED), turn(SAID)]}, (ASKED,)),
        ({"messages": [share(ASKED)]}, (ASKED,)),
    ],
)
def test_prompts_are_parsed_in_every_form(row: object, expected: Messages) -> None:
    assert parse_prompt(row, "here") == expected


def test_the_prompt_field_can_be_named() -> None:
    row = {"prompt": "hello", "messages": [turn(ASKED), turn(SAID)], "question": "and now?"}
    assert parse_prompt(row, "here", "prompt") == (ASKED,)
    assert parse_prompt(row, "here", "messages") == (ASKED,)
    assert parse_prompt(row, "here", "question") == (AGAIN,)
    with pytest.raises(UserError, match='here: field "answer": is missing or null; fix: '):
        parse_prompt(row, "here", "answer")


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
        (
            {"conversations": [share(SAID), share(ASKED)]},
            r'conversations\[0\].role": is "assistant", should be "user"',
        ),
        ({"conversations": [share(SAID)]}, 'field "conversations": has no user turn'),
        ({"conversations": "hello"}, 'field "conversations": is text'),
        ({"messages": [turn(ASKED), turn(SAID)]}, 'field "messages": ends with an assistant turn'),
    ],
)
def test_errors_name_place_field_and_fix(row: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        parse_prompt(row, "data.json: item 7")
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
def test_examples_are_parsed_in_every_form(row: dict[str, Any]) -> None:
    assert parse_example(row, "here") == ((ASKED,), "hi")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("hello", "not a JSON object"),
        ({"prompt": "hello"}, 'field "prompt": doesn\'t end with an assistant turn'),
        ({"prompt": "hello", "completion": ""}, 'field "completion": is empty'),
        ({"prompt": "hello", "completion": [turn(ASKED)]}, 'field "completion": doesn\'t end with an assistant turn'),
        ({"prompt": [turn(ASKED), turn(SAID)], "completion": "hi"}, 'field "completion": ends with an assistant turn'),
        ({"completion": "hi"}, 'field "prompt": is missing or null'),
        ({"instruction": "hello"}, 'field "output": is missing or null'),
        ({"messages": [turn(SAID)]}, 'field "messages": has no user turn'),
        ({"messages": []}, 'field "messages": doesn\'t end with an assistant turn'),
    ],
)
def test_rows_that_are_no_example_are_user_errors(row: object, told: str) -> None:
    with pytest.raises(UserError, match=told):
        parse_example(row, "here")


def test_a_prompt_has_the_same_id_in_every_form(tmp_path: Path) -> None:
    rows = ["hello", {"prompt": "hello"}, {"instruction": "hello", "output": "x"}, {"conversations": [share(ASKED)]}]
    ids = set()
    for number, row in enumerate(rows):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row) + "\n", encoding="utf-8")
        ids.add(load_prompts(path)[0].id)
    assert len(ids) == 1
