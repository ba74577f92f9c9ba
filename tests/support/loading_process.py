"""One of several processes of torchrun: loads the policy and the reference of a job, and says what that took of memory.

``loading_process.py FOLDER`` reads FOLDER/job.json and writes FOLDER/RANK.json: the peak and the final proportional set
size (/proc/self/smaps_rollup) above that before loading, in bytes, and the parameters held by this process.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM  # noqa: F401 - before the memory is counted

from metareward.training.config import DpoJob, read_job
from metareward.training.models import load_dpo_models


def proportional_set_size() -> int:
    """Bytes of memory, of shared pages this process's share."""
    found = re.search(r"^Pss: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def main(folder: Path) -> None:
    job = read_job(folder / "job.json")
    assert isinstance(job, DpoJob)
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()
    before, peak, over = proportional_set_size(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            peak[0] = max(peak[0], proportional_set_size())

    watcher = threading.Thread(target=watch)
    watcher.start()
    models = load_dpo_models(job)
    assert models.reference is not None
    after = proportional_set_size()
    over.set()
    watcher.join()
    torch.distributed.barrier()
    parameters = [*models.policy.parameters(), *models.reference.parameters()]
    held = sum((each.to_local() if isinstance(each, DTensor) else each).nbytes for each in parameters)
    found = {"peak": peak[0] - before, "after": after - before, "held": held}
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
