from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_run import MEANS, fake_run

from metareward.pipeline.trackers import track_iteration


@pytest.mark.parametrize("chosen", ["[]", "[tensorboard]"])
def test_tensorboard_gets_the_figures_of_every_iteration_if_it_is_asked_for(tmp_path: Path, chosen: str) -> None:
    run = fake_run(tmp_path / "run", models=3, overrides=[f"training.report_to={chosen}"])
    for t in (1, 2):
        track_iteration(run, t)
    if chosen == "[]":
        assert not (run.path / "tensorboard").exists()
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = EventAccumulator(str(run.path / "tensorboard")).Reload()
    quality = told.Scalars("loop/answer_quality")
    assert [each.step for each in quality] == [0, 1, 2]
    assert [each.value for each in quality] == pytest.approx(MEANS["answer_quality"][0][:3])
    pairs = [json.loads(run.iteration(t).summary.read_text())["actor_pairs"] for t in (1, 2)]
    assert [(each.step, each.value) for each in told.Scalars("pairs/actor")] == list(enumerate(pairs, 1))
