"""Records come back from their JSON exactly as they were."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metareward.errors import UserError
from metareward.storage.records import find_record, read_records, record_from_json, record_to_json
from metareward.storage.store import RecordStore
from metareward.types import (
    Candidate,
    Dispute,
    Duplicate,
    Judgment,
    Message,
    MetaJudgment,
    Prompt,
    PromptRecord,
    Scored,
    Tied,
    Truncated,
    Unparsed,
    Won,
)

texts = st.text(max_size=20) | st.sampled_from(
    ["\u2028", "\n", "\r\n", "a\n\nb", "\x85\u2029\x00", "\U0001f9ea", '"\\', ""]
)
counts = st.integers(0, 2**53)
unparsed = st.builds(Unparsed, st.sampled_from(["missing", "out_of_range", "ambiguous"]))
readings = st.builds(Scored, st.floats(0, 5)) | unparsed | st.just(Truncated())
verdicts = st.builds(Won, counts) | st.just(Tied()) | unparsed | st.just(Truncated())
judgments = st.builds(Judgment, counts, texts, counts, readings)
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
prompts = st.builds(Prompt, texts, st.lists(messages, max_size=3).map(tuple))
candidates = st.builds(
    Candidate,
    counts,
    texts,
    st.sampled_from(["stop", "length"]),
    counts,
    st.lists(judgments, max_size=4).map(tuple),
    texts,
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
metas = st.builds(MetaJudgment, counts, counts, texts, counts, verdicts)
disputes = st.builds(Dispute, counts, st.lists(counts, max_size=4).map(tuple), st.lists(metas, max_size=4).map(tuple))
records = st.builds(
    PromptRecord,
    prompts,
    st.lists(candidates, max_size=4).map(tuple),
    st.lists(st.builds(Duplicate, counts, counts), max_size=3).map(tuple),
    st.none() | disputes,
)

SMALL = PromptRecord(
    Prompt("p", (Message("user", "q"),)),
    (Candidate(0, "a", "stop", 1, (Judgment(0, "Score: 4", 2, Scored(4.0)),)),),
    (),
    None,
)


@given(records)
def test_round_trip_is_exact(record: PromptRecord) -> None:
    text = record_to_json(record)
    again = record_from_json(text)
    assert again == record
    assert record_to_json(again) == text


def test_a_reward_is_in_the_document_only_if_there_is_one() -> None:
    assert "reward" not in record_to_json(SMALL)
    (answer,) = SMALL.candidates_K
    rewarded = replace(SMALL, candidates_K=(replace(answer, reward=0.5), replace(answer, index=1)))
    assert [each.get("reward") for each in json.loads(record_to_json(rewarded))["candidates_K"]] == [0.5, None]
    assert record_from_json(record_to_json(rewarded)) == rewarded


@given(records)
def test_the_text_is_standard_json(record: PromptRecord) -> None:
    assert json.loads(record_to_json(record))["prompt"]["id"] == record.prompt.id


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"score":4.0', '"score":"4.0"', "candidates_K.0.judgments_N.0.reading"),
        ('"kind":"scored"', '"kind":"guessed"', "candidates_K.0.judgments_N.0.reading"),
        ('"role":"user"', '"role":"pirate"', "prompt.messages.0.role"),
        ('"tokens":1,', "", "candidates_K.0.tokens"),
    ],
)
def test_a_changed_document_is_refused_by_field(old: str, new: str, field: str) -> None:
    text = record_to_json(SMALL)
    assert old in text
    with pytest.raises(UserError, match=f"field {field}") as caught:
        record_from_json(text.replace(old, new))
    assert "\n" not in str(caught.value)


def test_a_torn_document_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="the document") as caught:
        record_from_json(record_to_json(SMALL)[:-5])
    assert "\n" not in str(caught.value)


def test_a_damaged_record_is_named_by_file_and_prompt(tmp_path: Path) -> None:
    with RecordStore.open(tmp_path / "records.sqlite", {}) as store:
        store.put("a", record_to_json(SMALL))
        store.put("b", record_to_json(SMALL).replace('"score":4.0', '"score":"4.0"'))
        assert find_record(store, "a") == SMALL
        assert find_record(store, "c") is None
        with pytest.raises(
            UserError, match=r'records\.sqlite: "b": record: field candidates_K\.0\..*; fix: in a run folder'
        ):
            find_record(store, "b")
        with pytest.raises(UserError, match=r'records\.sqlite: "b": record: field'):
            list(read_records(store))
