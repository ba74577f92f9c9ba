from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_world import CONTEXT, changed, make_job, prepare_trainer, save_model, save_pairs

from metareward.errors import UserError
from metareward.training.config import DpoJob
from metareward.training.data import FittingData, TrainingPair, count_kinds, fit_pairs, read_training_pairs
from metareward.training.models import load_tokenizer


def turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def row(**changes: Any) -> dict[str, Any]:
    plain = {"prompt": turn("user", "Hi"), "chosen": turn("assistant", "Hello"), "rejected": turn("assistant", "Bye")}
    return plain | changes


def parquet(path: Path, *rows: dict[str, Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def test_pairs_of_all_files_in_order(tmp_path: Path) -> None:
    one = parquet(tmp_path / "a.parquet", row(kind="actor", score=1.5), row(kind="actor"))
    two = parquet(tmp_path / "b.parquet", row(prompt=turn("user", "last")))
    pairs = read_training_pairs([one, two])
    assert pairs[-1].prompt == turn("user", "last")
    assert pairs[0].chosen == turn("assistant", "Hello")
    assert count_kinds(pairs) == {"actor": 2, "unlabelled": 1}


def test_no_pairs_at_all(tmp_path: Path) -> None:
    empty = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row()]).slice(0, 0), empty)
    with pytest.raises(UserError, match=r"a\.parquet: no pairs at all .* drop reasons in the report"):
        read_training_pairs([empty])


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([row()]).drop_columns([column]), path)
    with pytest.raises(UserError, match=rf"a\.parquet: column {column} is missing"):
        read_training_pairs([path])


def test_two_equal_sides_are_refused_with_their_row(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", row(), row(rejected=turn("assistant", "Hello")))
    with pytest.raises(UserError, match=r"a\.parquet: row 1: chosen and rejected are the same"):
        read_training_pairs([path])


@pytest.mark.parametrize("value", ["Hello", None, [], [{"role": "assistant", "content": None}]])
def test_sides_are_lists_of_turns(tmp_path: Path, value: object) -> None:
    path = parquet(tmp_path / "a.parquet", row(chosen=value))
    with pytest.raises(UserError, match=r"a\.parquet: row 0: chosen"):
        read_training_pairs([path])


def test_not_a_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
        read_training_pairs([tmp_path / "a.parquet"])
    with pytest.raises(UserError, match=r"b\.parquet: there is no such file"):
        read_training_pairs([tmp_path / "b.parquet"])


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> DpoJob:
    folder = tmp_path_factory.mktemp("world")
    pairs = (save_pairs(folder / "actor.parquet", "actor", 12), save_pairs(folder / "judge.parquet", "judge", 4, 40))
    return make_job(folder, save_model(folder / "M0"), pairs)


def data_of(job: DpoJob, context: int = CONTEXT) -> FittingData[TrainingPair]:
    return fit_pairs(read_training_pairs(job.data), load_tokenizer(job.start), job, context)


def test_the_longest_pairs_are_left_out_and_counted(job: DpoJob) -> None:
    everything = data_of(job)
    assert (len(everything.examples), everything.too_long) == (16, ())
    tight = changed(job, max_length=sorted(everything.lengths)[-3])
    fitted = data_of(tight)
    assert [pair.kind for pair in fitted.too_long] == ["judge", "judge"]
    assert fitted.longest == fitted.limit == tight.settings.max_length
    assert len(fitted.lengths) == len(fitted.examples) == 14


def test_no_pair_fits(job: DpoJob) -> None:
    shortest = min(data_of(job).lengths)
    with pytest.raises(UserError, match=f"no pair fits in max_length 5, the shortest has {shortest} tokens"):
        data_of(changed(job, max_length=5))
    with pytest.raises(UserError, match=f"its context is 6 tokens, the shortest pair has {shortest}"):
        data_of(job, 6)


def test_lengths_are_those_trl_trains_on(job: DpoJob, tmp_path: Path) -> None:
    trainer = prepare_trainer(job, tmp_path, sharing=False)
    for row, length in zip(trainer.train_dataset, data_of(job).lengths, strict=True):
        assert length == len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
