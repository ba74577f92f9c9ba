"""A run's figures by iteration in the experiment trackers of ``training.report_to``, beside the steps of each training.

Each tracker gets one run for the loop, with the iteration as its step: TensorBoard in ``RUN/tensorboard``, W&B and
trackio in ``RUN/wandb`` and ``RUN/trackio`` unless their environment variables say otherwise, MLflow where
``MLFLOW_TRACKING_URI`` says.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from metareward.report.facts import Run, gather, read_figures
from metareward.storage.run_dir import RunDir
from metareward.storage.serialization import flatten
from metareward.training.config import Tracker

_LOG = logging.getLogger(__name__)
PROJECT = "metareward"


@dataclass(frozen=True, slots=True)
class Loop:
    """What a tracker is told of a run: its ``folder``, a ``name`` for people, a ``key`` that no other run has, and the
    recipe's ``settings``."""

    folder: Path
    name: str
    key: str
    settings: Mapping[str, Any]


class Writer(Protocol):
    """A tracker that is open for one run's loop. Created with its `Loop`; what was written before stays."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of one iteration."""

    def close(self) -> None:
        """Have everything on disk, or sent."""


class TensorBoard:
    """Event files."""

    def __init__(self, loop: Loop) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._file = EventFileWriter(str(loop.folder / "tensorboard"))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event with all of them."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._file.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WeightsAndBiases:
    """W&B, online or (``WANDB_MODE=offline``) in files for ``wandb sync``."""

    def __init__(self, loop: Loop) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=f"{loop.name}-loop",
            id=f"loop-{loop.key}",
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(loop.folder)),
            config=dict(loop.settings),
            job_type="loop",
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Send or write what is left."""
        self._run.finish()


class MLflow:
    """MLflow at ``MLFLOW_TRACKING_URI``; the loop's run is found again by its tag."""

    def __init__(self, loop: Loop) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        known = self._client.search_runs([experiment], f"tags.loop = '{loop.key}'")
        run = known[0] if known else None
        if run is None:
            run = self._client.create_run(experiment, tags={"loop": loop.key}, run_name=f"{loop.name}-loop")
            params = [Param(key, str(value)[:500]) for key, value in flatten(loop.settings).items()]
            for start in range(0, len(params), 100):  # the most that it takes at once
                self._client.log_batch(run.info.run_id, params=params[start : start + 100])
        self._run = run.info.run_id

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One batch."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, [Metric(key, value, now, step) for key, value in values.items()])

    def close(self) -> None:
        """Call the run finished; a later iteration may still write."""
        self._client.set_terminated(self._run)


class Trackio:
    """trackio, in a local database unless its environment variables name a Space or server."""

    def __init__(self, loop: Loop) -> None:
        given = os.environ.get("TRACKIO_DIR")
        os.environ["TRACKIO_DIR"] = given or str(loop.folder / "trackio")  # read when it is imported
        try:
            import trackio
        finally:
            if given is None:
                del os.environ["TRACKIO_DIR"]  # the processes of later trainings have a folder of their own

        self._run = trackio.init(
            project=PROJECT,
            name=f"{loop.name}-loop-{loop.key}",
            resume="allow",
            config=dict(loop.settings),
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait for its thread."""
        import trackio

        trackio.finish()


def writer(tracker: Tracker, loop: Loop) -> Writer:
    """The tracker, open for a loop."""
    match tracker:
        case "tensorboard":
            return TensorBoard(loop)
        case "wandb":
            return WeightsAndBiases(loop)
        case "mlflow":
            return MLflow(loop)
        case "trackio":
            return Trackio(loop)


def track_iteration(run: RunDir, t: int) -> None:
    """Write the figures of iteration ``t``, the first time those of M0, too, to the trackers of the recipe.

    A tracker that fails is a warning: its server may be away, and the run's own files have everything.
    """
    facts = gather(run)
    for tracker in facts.recipe.training.report_to:
        try:
            opened = writer(tracker, loop_of(run, facts))
            try:
                for step in (0, 1) if t == 1 else (t,):
                    opened.write(step, dict(figures(run, facts, step)))
            finally:
                opened.close()
        except Exception as error:  # of somebody else's code and servers, whatever they raise
            what = f"{type(error).__name__}: {error}"
            _LOG.warning("training.report_to: %s has no figures of iteration %d: %s", tracker, t, what)


def loop_of(run: RunDir, facts: Run) -> Loop:
    """What trackers are told of a run. The key is of the moment when the run began, so a folder may be moved."""
    began = run.environment.read_bytes() if run.environment.is_file() else b""
    key = hashlib.sha256(f"{facts.recipe.name} {facts.recipe.seed} ".encode() + began).hexdigest()[:12]
    return Loop(run.path, facts.recipe.name, key, facts.recipe.resolved())


def figures(run: RunDir, facts: Run, t: int) -> Iterator[tuple[str, float]]:
    """(name, value) of M_t's metrics, win rates and judge health, and of the pairs that it is trained on."""
    found = ((name, float(value)) for name, value in _figures(run, facts, t))
    return ((name, value) for name, value in found if math.isfinite(value))


def _figures(run: RunDir, facts: Run, t: int) -> Iterator[tuple[str, float]]:
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
