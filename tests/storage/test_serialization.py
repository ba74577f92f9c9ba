"""JSON on disk: fingerprints, JSON Lines, flattened settings, lone surrogates."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metareward.storage.serialization import canonical_json, fingerprint_of, flatten, json_lines
from metareward.text import replace_surrogates


def test_a_fingerprint_depends_on_values_and_not_on_order() -> None:
    assert fingerprint_of({"a": 1, "b": {"c": 2, "d": 3}}) == fingerprint_of({"b": {"d": 3, "c": 2}, "a": 1})
    others: list[dict[str, object]] = [
        {"a": 1},
        {"a": 1.0},
        {"a": "1"},
        {"a": True},
        {"a": None},
        {"b": 1},
        {"a": [1]},
        {},
    ]
    assert len({fingerprint_of(mapping) for mapping in others}) == 8


def test_a_fingerprint_is_the_digest_of_compact_sorted_ascii() -> None:
    """Stores and run folders on disk hold these fingerprints."""
    assert canonical_json({"b": [1, 2.5, None, True], "a": "é\u2028"}) == '{"a":"\\u00e9\\u2028","b":[1,2.5,null,true]}'
    digest = hashlib.sha256(b'{"a":{"c":1},"b":"\\u00e9"}').hexdigest()
    assert fingerprint_of({"b": "é", "a": {"c": 1}}) == digest


def test_a_fingerprint_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        fingerprint_of({"path": tmp_path})
    with pytest.raises(ValueError, match="JSON"):
        fingerprint_of({"a": float("nan")})


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20) | st.just("\x85\u2028\u2029\n"), max_size=3)))
def test_json_lines_are_lines_for_every_reader(rows: list[dict[str, str]]) -> None:
    text = json_lines(rows)
    assert [json.loads(line) for line in text.split("\n")[:-1]] == rows
    assert [json.loads(line) for line in text.splitlines()] == rows


def test_json_lines_keep_letters_and_escape_line_ends() -> None:
    assert json_lines([{"t": "é漢\u2028\x85"}, {"n": 1}]) == '{"t": "é漢\\u2028\\u0085"}\n{"n": 1}\n'


def test_nested_mappings_are_flattened_in_order() -> None:
    settings = {"b": {"x": 1, "y": {"z": None}}, "a": [{"k": 1}], "none": {}}
    assert list(flatten(settings).items()) == [("b.x", 1), ("b.y.z", None), ("a", [{"k": 1}])]
    assert flatten({"iterations": {1: {"rho": 0.1}}}, " ") == {"iterations 1 rho": 0.1}


def test_lone_surrogates_become_question_marks() -> None:
    assert replace_surrogates("a\ud83db \U0001f600") == "a?b \U0001f600"
