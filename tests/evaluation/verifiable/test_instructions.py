"""IFEval's and IFBench's instructions: strict and loose verdicts, the same each time, without network."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from made_up import lines

from metareward.errors import UserError
from metareward.evaluation.verifiable.instructions import (
    Followed,
    follow,
    read_instructed_prompts,
)

Given = tuple[str, Mapping[str, Any]]


def followed(folder: Path, response: str, *instructions: Given) -> Followed:
    row = {
        "key": 1,
        "prompt": "Write.",
        "instruction_id_list": [kind for kind, _ in instructions],
        "kwargs": [{**arguments, "unused": None} for _, arguments in instructions],
    }
    (prompt,) = read_instructed_prompts(lines(folder / "input_data.jsonl", [row]))
    return follow(prompt, response)


SENTENCES: Given = ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"})
NO_COMMA: Given = ("punctuation:no_comma", {})
FRENCH: Given = ("language:response_language", {"language": "fr"})


@pytest.mark.parametrize(
    ("response", "strict", "loose"),
    [
        ("Dr. Smith went home. He was tired.", (True, True), (True, True)),
        ("Dr. Smith went home. He was tired, i.e. asleep. It was late.", (False, False), (False, False)),
        ("Sure, here it is:\nHe went home.", (True, False), (True, True)),
        ("", (False, False), (False, False)),
        (" \n", (False, False), (False, False)),
    ],
)
def test_loose_forgives_a_first_line(tmp_path: Path, response: str, strict: tuple[bool], loose: tuple[bool]) -> None:
    assert followed(tmp_path, response, SENTENCES, NO_COMMA) == Followed(strict, loose)


def test_loose_forgives_asterisks(tmp_path: Path) -> None:
    quoted: Given = ("startend:quotation", {})
    assert followed(tmp_path, '*"Yes."*', quoted) == Followed((False,), (True,))


def test_the_language_of_a_short_response_has_one_verdict(tmp_path: Path) -> None:
    found = {followed(tmp_path, "chat noir table", FRENCH) for _ in range(20)}  # unseeded: French, or English
    assert len(found) == 1
    assert followed(tmp_path, "Il fait beau à Paris aujourd'hui.", FRENCH).strict == (True,)


@pytest.mark.parametrize(("response", "right"), [("#a #b", True), ("#a", False), ("aa bb", False)])
def test_a_sign_that_is_no_letter_is_counted(tmp_path: Path, response: str, right: bool) -> None:
    for relation, expected in (("at least", right), ("less than", not right)):
        arguments = {"letter": "#", "let_frequency": 2, "let_relation": relation}
        assert followed(tmp_path, response, ("keywords:letter_frequency", arguments)).strict == (expected,)


def test_a_response_on_which_the_checker_fails_follows_nothing(tmp_path: Path) -> None:
    response = "[" * 100_000
    assert followed(tmp_path, response, ("detectable_format:json_format", {}), NO_COMMA) == Followed(
        (False, True), (False, True), errors=1
    )


_connections: list[str] = []


@contextmanager
def network_watched() -> Iterator[list[str]]:
    """The names of what happened to sockets meanwhile."""
    watching = True

    def hook(event: str, _: object) -> None:
        if watching and event.startswith("socket."):
            _connections.append(event)

    sys.addaudithook(hook)
    _connections.clear()
    try:
        yield _connections
    finally:
        watching = False


def test_ifbench_s_kinds_are_known_and_nothing_is_downloaded(tmp_path: Path) -> None:
    words: Given = ("count:word_count_range", {"min_words": 2, "max_words": 3})
    title: Given = ("format:title_case", {})
    with network_watched() as connections:
        assert followed(tmp_path, "Two Words", words, title).strict == (True, True)
        assert followed(tmp_path, "two words and more", words, title).strict == (False, False)
        with pytest.raises(UserError, match=r"words:start_verb: needs NLTK's averaged_perceptron_tagger_eng; fix: "):
            followed(tmp_path, "Go.", ("words:start_verb", {}))
    assert connections == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction_id_list": ["a:b"], "kwargs": [{}]}, "field \"instruction_id_list\": names 'a:b'; fix: name"),
        ({"instruction_id_list": [NO_COMMA[0]], "kwargs": []}, 'field "kwargs": has 0 entries for 1 instructions'),
        ({"instruction_id_list": [], "kwargs": []}, 'field "kwargs": has 0 entries for 0 instructions'),
        (
            {"instruction_id_list": [NO_COMMA[0]], "kwargs": [{"n": 1}]},
            "doesn't fit punctuation:no_comma; fix: give no",
        ),
        (
            {"instruction_id_list": [SENTENCES[0]], "kwargs": [{"num_sentences": 3}]},
            "give num_sentences, relation: a checker draws missing ones at random",
        ),
        (
            {"instruction_id_list": [SENTENCES[0]], "kwargs": [{"num_sentences": 3, "relation": "about"}]},
            "doesn't fit length_constraints:number_sentences (",
        ),
        ({"instruction_id_list": [NO_COMMA[0]]}, 'field "kwargs": is missing'),
    ],
)
def test_a_row_that_no_checker_reads_is_refused(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = lines(tmp_path / "input.jsonl", [{"key": 1, "prompt": "Write.", **row}])
    with pytest.raises(UserError, match=r"^[^\n]*input.jsonl:1[^\n]*" + re.escape(message)):
        read_instructed_prompts(path)


@pytest.mark.parametrize("field", ["key", "prompt"])
def test_repeated_rows_are_refused(tmp_path: Path, field: str) -> None:
    rows = [{"key": i, "prompt": f"p{i}", "instruction_id_list": [NO_COMMA[0]], "kwargs": [{}]} for i in range(2)]
    rows[1][field] = rows[0][field]
    with pytest.raises(UserError, match=f'input.jsonl:2: field "{field}": repeats'):
        read_instructed_prompts(lines(tmp_path / "input.jsonl", rows))
