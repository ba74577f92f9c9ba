from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import SMALL_SECONDS, small_run

from metareward.errors import UserError
from metareward.generation.progress import ANSWERS, JUDGMENTS, META
from metareward.pipeline.plan import measured_rates
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir
from metareward.storage.store import RecordStore


def test_lengths_come_from_records_and_the_rate_from_finished_iterations(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    rates = measured_rates(run)
    with RecordStore.read(run.iteration(1).records) as store:
        records = list(read_records(store))
    answers = [answer for record in records for answer in record.candidates_K]
    written = [answer.tokens for answer in answers]
    written += [judgment.tokens for answer in answers for judgment in answer.judgments_N]
    written += [meta.tokens for record in records if record.dispute for meta in record.dispute.meta]
    assert set(rates.tokens_each) == {ANSWERS, JUDGMENTS, META}
    assert 1 <= rates.tokens_each[ANSWERS] <= 4
    assert rates.tokens_per_second == pytest.approx(sum(written) / SMALL_SECONDS)


def test_a_rate_that_is_given_goes_first(tmp_path: Path) -> None:
    assert measured_rates(small_run(tmp_path / "run"), 5.0).tokens_per_second == 5.0


def test_a_run_without_finished_iterations_tells_lengths_only(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    run.iteration(1).done.unlink()
    assert measured_rates(run).tokens_per_second is None
    assert measured_rates(run).tokens_each


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="this is no run folder"):
        measured_rates(RunDir(tmp_path))
