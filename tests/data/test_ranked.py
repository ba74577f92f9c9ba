"""Ranked answers in every form, Open Assistant's trees included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import ranked_trees

from metareward.data.prompts import load_prompts
from metareward.data.ranked import RankedAnswer, RankedPrompt, RankedSet, read_ranked
from metareward.errors import UserError
from metareward.pocket.tasks import is_held_out
from metareward.pocket.world import check_answer
from metareward.types import Message, Prompt

ASK = (Message("user", "Why?"),)
LATER = (*ASK, Message("assistant", "So."), Message("user", "And now?"))
TWO = (RankedAnswer("So.", 0.0), RankedAnswer("No.", 1.0))


def put(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def message(id: str, text: str, role: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    return {"message_id": id, "text": text, "role": role, "rank": rank, "lang": "en", "deleted": False, **more}


def tree() -> dict[str, Any]:
    """A question with three replies, of which one is deleted; the best has a question under it."""
    later = message("q2", "And now?", "prompter", replies=[message("a3", "Wait.", "assistant", 0, replies=[])])
    replies = [
        message("a1", "So.", "assistant", 0, replies=[later]),
        message("a0", "Spam!", "assistant", 2, deleted=True, replies=[]),
        message("a2", "No.", "assistant", 1, replies=[]),
        message("a4", "Hm.", "assistant", None, replies=[]),
    ]
    return {
        "message_tree_id": "q1",
        "tree_state": "ready",
        "prompt": message("q1", "Why?", "prompter", replies=replies),
    }


def table() -> list[dict[str, Any]]:
    """The same as a table of messages, children before their parents."""
    rows: list[dict[str, Any]] = []

    def lay(node: dict[str, Any], parent: str | None) -> None:
        for reply in node["replies"]:
            lay(reply, node["message_id"])
        rows.append({key: value for key, value in node.items() if key != "replies"} | {"parent_id": parent})

    lay(tree()["prompt"], None)
    return rows


def test_prompt_answers_and_ranks(tmp_path: Path) -> None:
    row = {"id": "q1", "prompt": "Why?", "answers": ["So.", "No."], "ranks": [0, 1], "lang": "en-GB"}
    assert read_ranked(put(tmp_path / "a.jsonl", row)) == RankedSet(
        (RankedPrompt(Prompt("q1", ASK), TWO, "en-GB"),), {}
    )
    turns = [{"role": each.role, "content": each.content} for each in LATER]
    row = {"messages": turns, "answers": ["So.", "No."], "ranks": [0, 1.0]}
    (found,) = read_ranked(put(tmp_path / "a.jsonl", row), first_turns=False).prompts
    assert (found.prompt.messages, found.answers, found.language) == (LATER, TWO, None)


def test_the_flat_export(tmp_path: Path) -> None:
    responses = [{"text": "So.", "rank": 0, "id": "x"}, {"text": "No.", "rank": 1}]
    row = {"id": "q1", "conversation": [{"role": "prompter", "text": "Why?"}], "responses": responses}
    assert read_ranked(put(tmp_path / "a.jsonl", row)).prompts == (RankedPrompt(Prompt("q1", ASK), TWO),)
    row = {"id": "q1", "prompt": "Why?", "responses": responses}
    assert read_ranked(put(tmp_path / "a.jsonl", row)).prompts == (RankedPrompt(Prompt("q1", ASK), TWO),)


def test_a_tree_and_its_message_table_give_the_same_prompts(tmp_path: Path) -> None:
    first, later = (
        RankedPrompt(Prompt("q1", ASK), TWO, "en"),
        RankedPrompt(Prompt("q2", LATER), (RankedAnswer("Wait.", 0),), "en"),
    )
    pq.write_table(pa.Table.from_pylist(table()), tmp_path / "table.parquet")
    for path in (
        put(tmp_path / "tree.jsonl", tree()),
        put(tmp_path / "table.jsonl", *table()),
        tmp_path / "table.parquet",
    ):
        assert read_ranked(path) == RankedSet((first,), {"a later turn": 1})
        assert read_ranked(path, first_turns=False) == RankedSet((first, later), {})


def test_rejected_messages_and_their_replies_are_left_out(tmp_path: Path) -> None:
    given = tree()
    given["prompt"]["replies"][0]["review_result"] = False
    (found,) = read_ranked(put(tmp_path / "a.jsonl", given), first_turns=False).prompts
    assert [answer.text for answer in found.answers] == ["No."]
    given["prompt"]["deleted"] = True
    with pytest.raises(UserError, match="no ranked prompt is left"):
        read_ranked(put(tmp_path / "a.jsonl", given))


def test_other_languages_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"q{n}", "answers": ["a"], "ranks": [0], "lang": lang}
        for n, lang in enumerate(("en", "de", "ja", None))
    ]
    path = put(tmp_path / "a.jsonl", *rows)
    assert read_ranked(path).skipped == {"another language": 2}
    assert len(read_ranked(path, language=None).prompts) == 4
    assert len(read_ranked(path, language="de").prompts) == 2
    with pytest.raises(UserError, match=r"a\.jsonl: no ranked prompt is left \(3 another language\); fix:"):
        read_ranked(put(path, *[row | {"lang": "fi"} for row in rows[:3]]))


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (1, "a.jsonl:1: not a JSON object"),
        ({"prompt": "x"}, 'a.jsonl:1: field "answers": missing or no list; fix: write "answers"'),
        ({"prompt": "x", "answers": ["a"]}, 'field "ranks": missing or no list'),
        ({"prompt": "x", "answers": ["a", "b"], "ranks": [0]}, 'field "ranks": 1 for 2 answers; fix: give each'),
        ({"prompt": "x", "answers": ["a", " "], "ranks": [0, 1]}, r'field "answers\[1\]": is empty'),
        ({"prompt": "x", "answers": ["a"], "ranks": ["best"]}, r'field "ranks\[0\]": is not a number'),
        ({"prompt": "x", "answers": ["a"], "ranks": [True]}, r'field "ranks\[0\]": is not a number'),
        ({"prompt": "x", "answers": ["a"], "ranks": [float("nan")]}, r'field "ranks\[0\]": is missing or no finite'),
        ({"prompt": "x", "answers": ["a"], "ranks": [10**400]}, r'field "ranks\[0\]": is not a number'),
        ({"conversation": [{"role": [], "text": "x"}], "responses": []}, r'messages\[0\].role": is'),
        ({"prompt": {"message_id": "q", "text": "x", "role": "prompter", "replies": 5}}, 'prompt.replies": is no list'),
        ({"prompt": "x", "answers": [], "ranks": []}, 'field "answers": is an empty list'),
        ({"answers": ["a"], "ranks": [0]}, 'field "prompt": missing'),
        ({"conversation": "x", "responses": []}, 'field "conversation": is no list of turns'),
        ({"conversation": [{"role": "judge", "text": "x"}], "responses": []}, r'messages\[0\].role": is "judge"'),
        ({"prompt": "x", "responses": [{"text": "a"}]}, r'field "responses\[0\].rank": is no number'),
        ({"prompt": "x", "responses": ["a"]}, r"responses\[0\]: not a JSON object"),
        ({"prompt": {"role": "prompter"}}, 'field "prompt.message_id": is missing or null'),
        ({"prompt": {"role": "user"}}, "field \"prompt.role\": is 'user'; fix: use prompter or assistant"),
    ],
)
def test_errors_name_place_field_and_fix(tmp_path: Path, row: object, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        read_ranked(put(tmp_path / "a.jsonl", row))
    assert "; fix: " in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"message_id": "q1"}, 'field "message_id": repeats that of an earlier row'),  # the replies would be their own
        ({"message_id": []}, 'field "message_id": is a list'),
        ({"parent_id": {}}, 'field "parent_id": is an object'),
    ],
)
def test_ids_that_make_no_tree_are_user_errors(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    rows = table()
    with pytest.raises(UserError, match=told):
        read_ranked(put(tmp_path / "a.jsonl", *rows, message("a9", "x", "assistant", 0, parent_id="q1") | change))


def test_a_conversation_deeper_than_python_goes_is_a_user_error(tmp_path: Path) -> None:
    roles = ("prompter", "assistant")
    rows = [message(f"m{n}", "x", roles[n % 2], 0, parent_id=f"m{n - 1}" if n else None) for n in range(5000)]
    with pytest.raises(UserError, match=r"a\.jsonl:1: a conversation of too many turns; fix:"):
        read_ranked(put(tmp_path / "a.jsonl", *rows))


def test_a_message_without_an_id_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'a\.jsonl:6: field "message_id": missing; fix:'):
        read_ranked(put(tmp_path / "a.jsonl", *table()[:5], {"text": "x"}))


def test_a_duplicate_id_is_a_user_error(tmp_path: Path) -> None:
    row = {"id": "q", "prompt": "x", "answers": ["a"], "ranks": [0]}
    with pytest.raises(UserError, match='two rows have the id "q"'):
        read_ranked(put(tmp_path / "a.jsonl", row, row | {"prompt": "y"}))


@pytest.mark.parametrize(("first", "second"), [("Why?", "why"), ("Say: one, two!", "say one two")])
def test_prompts_of_the_same_words_share_a_group(first: str, second: str) -> None:
    one, two = (RankedPrompt(Prompt(text, (Message("user", text),)), TWO) for text in (first, second))
    assert one.group == two.group == RankedPrompt(Prompt("x", (Message("user", first), *LATER[1:])), TWO).group
    assert RankedPrompt(Prompt("?", (Message("user", "???"),)), TWO).group != one.group


def test_best_answer_and_comparability() -> None:
    tied = (RankedAnswer("a", 1), RankedAnswer("b", 0), RankedAnswer("c", 0))
    assert RankedPrompt(Prompt("x", ASK), tied).best.text == "b"
    assert RankedPrompt(Prompt("x", ASK), tied).is_comparable
    assert not RankedPrompt(Prompt("x", ASK), tied[1:]).is_comparable


def test_a_flat_export_of_whole_trees(tmp_path: Path) -> None:
    path = ranked_trees(tmp_path / "trees.jsonl", trees=12)
    every, first = read_ranked(path, first_turns=False), read_ranked(path)
    assert (len(every.prompts), every.skipped) == (24, {})
    assert all(each.is_comparable and each.best.rank == 0 for each in every.prompts)
    assert (len(first.prompts), first.skipped) == (12, {"a later turn": 12})
    assert len({each.group for each in every.prompts}) == len({each.group for each in first.prompts}) == 12


# --- the examples that ship with the package ---


def longer_wins(ranked: RankedSet) -> float:
    """The share of comparisons in which the better answer is the longer one."""
    pairs = [(a, b) for each in ranked.prompts for a in each.answers for b in each.answers if a.rank < b.rank]
    return sum(len(a.text) > len(b.text) for a, b in pairs) / len(pairs)


@pytest.mark.parametrize(("name", "count"), [("everyday", 64), ("pocket", 160)])
def test_examples_rank_three_answers_to_each_prompt(name: str, count: int) -> None:
    ranked = read_ranked(f"example:{name}")
    assert len(ranked.prompts) == len({each.group for each in ranked.prompts}) == count and not ranked.skipped
    for each in ranked.prompts:
        assert sorted(answer.rank for answer in each.answers) == [0, 1, 2]
        assert len({answer.text for answer in each.answers}) == 3
    firsts = [each.answers[0].rank for each in ranked.prompts]
    assert all(0.2 < firsts.count(rank) / count < 0.5 for rank in (0, 1, 2))  # the place tells nothing
    assert [each.messages for each in load_prompts(f"example:{name}")] == [
        each.prompt.messages for each in ranked.prompts
    ]


def test_in_the_everyday_example_length_tells_little() -> None:
    assert 0.4 < longer_wins(read_ranked("example:everyday")) < 0.6


def test_the_pocket_example_has_the_oracle_s_order_and_nothing_held_out() -> None:
    for each in read_ranked("example:pocket").prompts:
        instruction = each.prompt.messages[0].content
        assert not is_held_out(instruction)
        scores = [check_answer(instruction, answer.text).score for answer in sorted(each.answers, key=lambda a: a.rank)]
        assert scores[0] > scores[1] > scores[2]
