"""A run's figures by iteration in TensorBoard, beside the steps of each training: ``tensorboard --logdir runs/NAME``.

Other trackers of ``training.report_to`` get the steps of training alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from metareward.report.facts import Run, gather, read_figures
from metareward.storage.run_dir import RunDir

_FOLDER = "tensorboard"


def track_iteration(run: RunDir, t: int) -> None:
    """Write the figures of iteration ``t``, the first time those of M0, too, if the recipe reports to TensorBoard."""
    facts = gather(run)
    if "tensorboard" not in facts.recipe.training.report_to:
        return
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(run.path / _FOLDER))
    try:
        for step in (0, 1) if t == 1 else (t,):
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in figures(run, facts, step)]
            writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
    finally:
        writer.close()


def figures(run: RunDir, facts: Run, t: int) -> Iterator[tuple[str, float]]:
    """(name, value) of M_t's metrics, win rates and judge health, and of the pairs that it is trained on."""
    iteration = facts.iterations[t]
    if iteration.evaluation is not None:
        for key, measure in iteration.evaluation.metrics.items():
            yield f"loop/{key}", measure.mean
        for rate in iteration.evaluation.win_rates:
            yield f"loop/win_rate_{rate.judge}_against_{rate.against}", rate.win_rate
    for name, figure in read_figures(run.iteration(t).evaluation / "model.json").items():
        yield f"judge_health/{name}", figure.value
    if iteration.summary is not None:
        yield "pairs/actor", iteration.summary.actor_pairs
        yield "pairs/judge", iteration.summary.judge_pairs
    if iteration.seconds:
        yield "loop/seconds", iteration.seconds
