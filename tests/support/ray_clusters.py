"""Ray clusters on this machine, of several raylets, and their processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripted_models import here

import metareward

_STORE_BYTES = 80_000_000
_PATHS = (str(Path(metareward.__file__).parents[1]), str(here()))


class LocalCluster:
    """A head without CPUs for replicas, and nodes that can be added and killed."""

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["PYTHONPATH"] = os.pathsep.join([*_PATHS, os.environ.get("PYTHONPATH", "")])
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address
        self.nodes: list[Any] = []

    def add(self, cpus: int = 1) -> None:
        """One more raylet."""
        self.nodes.append(self._cluster.add_node(num_cpus=cpus, object_store_memory=_STORE_BYTES))

    def kill(self) -> None:
        """The newest raylet ends at once, as a machine that loses its power."""
        self._cluster.remove_node(self.nodes.pop(), allow_graceful=False)

    def resize(self, count: int) -> None:
        """As many raylets of one CPU as this."""
        while len(self.nodes) > count:
            self.kill()
        while len(self.nodes) < count:
            self.add()

    def close(self) -> None:
        self._cluster.shutdown()


@contextmanager
def local_cluster(nodes: int) -> Iterator[LocalCluster]:
    """A cluster with so many nodes of one CPU each."""
    cluster = LocalCluster()
    try:
        cluster.resize(nodes)
        yield cluster
    finally:
        cluster.close()


def actors() -> list[int]:
    """The processes of replicas on this machine."""
    return processes("ray::ReplicaActor")


def processes(name: str) -> list[int]:
    """The running processes whose command line begins with, or names, this."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if name in line and state not in "ZX":
            found.append(int(folder.name))
    return found


def gone(name: str, seconds: float) -> bool:
    """Whether all processes of this name have ended within so many seconds."""
    until = time.monotonic() + seconds
    while processes(name):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True
