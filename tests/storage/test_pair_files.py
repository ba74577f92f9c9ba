"""Pairs as Parquet: exact, equal bytes for equal pairs, readable by `datasets` and TRL."""

import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.errors import UserError
from metareward.storage.pair_files import read_dropped, read_pairs, write_dropped, write_pairs
from metareward.types import Dropped, Message, PreferencePair

texts = st.text(max_size=15) | st.sampled_from(["\u2028", "\n\r\n", "\x00", "\U0001f9ea"])
messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), texts)
numbers = st.integers(0, 1000)
scores = st.floats(-10, 10)
pairs = st.builds(
    PreferencePair,
    st.sampled_from(["actor", "judge"]),
    texts,
    st.lists(messages, min_size=1, max_size=3).map(tuple),
    texts,
    texts,
    numbers,
    numbers,
    scores,
    scores,
    st.none() | numbers,
)
drops = st.builds(Dropped, st.just("actor"), texts, st.sampled_from(["no_dispute", "all_scores_equal"]), texts)


def pair(number: int) -> PreferencePair:
    prompt = (Message("system", "be kind"), Message("user", f"question {number}"))
    return PreferencePair("judge", f"p{number}", prompt, "good", "bad", 1, 0, 4.5, 2.25, number, "stop", "length")


@given(st.lists(pairs, max_size=4))
@settings(deadline=None)
def test_pairs_come_back_exactly_and_bytes_are_equal(
    tmp_path_factory: pytest.TempPathFactory, given_pairs: list[PreferencePair]
) -> None:
    path = tmp_path_factory.getbasetemp() / "pairs.parquet"
    write_pairs(path, given_pairs)
    first = path.read_bytes()
    assert read_pairs(path) == tuple(given_pairs)
    write_pairs(path, read_pairs(path))
    assert path.read_bytes() == first


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    write_pairs(tmp_path / "here.parquet", [pair(number) for number in range(300)])
    script = (
        "import sys; from pathlib import Path; from metareward.storage.pair_files import read_pairs, write_pairs;"
        "write_pairs(Path(sys.argv[2]), read_pairs(Path(sys.argv[1])))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "here.parquet", tmp_path / "there.parquet"], check=True)
    assert (tmp_path / "here.parquet").read_bytes() == (tmp_path / "there.parquet").read_bytes()


def test_the_columns_are_trls_and_tell_where_a_pair_comes_from(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", [pair(7)])
    rows = datasets.Dataset.from_parquet(str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path / "cache"))
    assert isinstance(rows, datasets.Dataset)
    assert rows[0] == {
        "prompt": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "question 7"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
        "kind": "judge",
        "prompt_id": "p7",
        "chosen_index": 1,
        "rejected_index": 0,
        "candidate": 7,
        "chosen_score": 4.5,
        "rejected_score": 2.25,
        "margin": 2.25,
        "chosen_finish": "stop",
        "rejected_finish": "length",
        "chosen_message": {"role": "assistant", "content": "good"},
        "rejected_message": {"role": "assistant", "content": "bad"},
    }


@pytest.mark.slow
def test_trl_takes_a_row_as_conversational(tmp_path: Path) -> None:
    from trl.data_utils import is_conversational

    write_pairs(tmp_path / "pairs.parquet", [pair(7)])
    rows = datasets.Dataset.from_parquet(str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path / "cache"))
    assert is_conversational(rows[0])


def test_no_pairs_are_a_file_with_all_columns(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", [])
    assert read_pairs(tmp_path / "pairs.parquet") == ()
    assert pq.read_schema(tmp_path / "pairs.parquet").names[:3] == ["prompt", "chosen", "rejected"]


def test_files_that_are_no_pairs_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    with pytest.raises(UserError, match="there are no pairs here"):
        read_pairs(path)
    path.write_text("a letter")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_pairs(path)
    write_pairs(path, [pair(number) for number in range(50)])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_pairs(path)
    pq.write_table(pa.table({"prompt": ["x"], "kind": ["actor"]}), path)
    with pytest.raises(UserError, match="columns missing: chosen, rejected, prompt_id"):
        read_pairs(path)


@pytest.mark.parametrize(
    ("column", "value"), [("chosen", []), ("kind", "meta"), ("chosen_score", None), ("prompt", None)]
)
def test_rows_that_are_no_pairs_are_refused_in_one_line(tmp_path: Path, column: str, value: object) -> None:
    path = tmp_path / "pairs.parquet"
    write_pairs(path, [pair(1)])
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array([value], table.schema.field(column).type)), path)
    with pytest.raises(UserError, match="not a file of preference pairs") as caught:
        read_pairs(path)
    assert "\n" not in str(caught.value)


@given(st.lists(drops, max_size=4))
@settings(deadline=None)
def test_dropped_prompts_come_back(tmp_path_factory: pytest.TempPathFactory, dropped: list[Dropped]) -> None:
    path = tmp_path_factory.getbasetemp() / "dropped.jsonl"
    write_dropped(path, dropped)
    assert read_dropped(path) == tuple(dropped)


def test_a_bad_line_of_dropped_prompts_is_told(tmp_path: Path) -> None:
    path = tmp_path / "dropped.jsonl"
    write_dropped(path, [Dropped("actor", "p", "no_dispute", "")])
    path.write_text(path.read_text() + '{"kind": "actor"}\n')
    with pytest.raises(UserError, match=r"dropped\.jsonl:2: not a dropped prompt"):
        read_dropped(path)
    with pytest.raises(UserError, match="can't be read"):
        read_dropped(tmp_path / "nowhere")
