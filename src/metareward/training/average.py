"""An exponential moving average of models, as DPO's reference: ``python -m metareward.training.average``.

    E_t = decay E_{t-1} + (1 - decay) M_t,     E_0 = M_0

weight by weight, in float32. It is computed in a child process, so that the parent never imports torch; memory holds
one tensor for reading and one file for writing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metareward.errors import UserError
from metareward.storage.atomic import atomic_dir
from metareward.storage.custody import LINEAGE, ModelRef, fingerprint_model
from metareward.training.events import USER_ERROR, error_line

RECORD = "average.json"  # in the model folder: what it was averaged from


def make_average(earlier: Path, newer: Path, decay: float, output: Path) -> Path:
    """Make the model folder ``output``: ``decay`` times ``earlier`` plus the rest of ``newer``.

    An average of the same models that is there already stays. Raises `UserError` when something else is there, and
    for models with different weights.
    """
    before, now = (ModelRef(str(folder), fingerprint_model(folder)) for folder in (earlier, newer))
    if output.exists():
        record = output / RECORD
        if not record.is_file() or json.loads(record.read_text(encoding="utf-8")) != _record(before, now, decay):
            raise UserError(f"{output}: not the average of {earlier} and {newer}; fix: move or delete it")
        return output
    models = [before.path, before.sha256, now.path, now.sha256]
    command = [sys.executable, "-m", __name__, *models, str(decay), str(output)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise UserError(error_line(done.stderr.decode(errors="replace")))
    return output


def _record(earlier: ModelRef, newer: ModelRef, decay: float) -> dict[str, Any]:
    return {"earlier": earlier.sha256, "newer": newer.sha256, "decay": decay}


def write_average(earlier: ModelRef, newer: ModelRef, decay: float, output: Path) -> None:
    """The same in this process. Raises `UserError`."""
    with atomic_dir(output) as new:
        for path in Path(newer.path).iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name != LINEAGE:
                shutil.copyfile(path, new.content / path.name)
        before = _weights(Path(earlier.path))
        for path in sorted(Path(newer.path).glob("*.safetensors")):
            _average_file(before, path, decay, new.content / path.name)
        config = new.content / "config.json"
        content = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (new.content / RECORD).write_text(json.dumps(_record(earlier, newer, decay)) + "\n", encoding="utf-8")


def _average_file(before: Mapping[str, Path], path: Path, decay: float, output: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    averaged = {}
    with safe_open(path, "pt") as newer:
        for name in newer.keys():  # noqa: SIM118  (a handle, no mapping)
            now = newer.get_tensor(name).float()
            averaged[name] = now + decay * (_tensor(before, name, path, now.shape) - now)
    save_file(averaged, output, {"format": "pt"})


def _tensor(weights: Mapping[str, Path], name: str, newer: Path, shape: Sequence[int]) -> Any:
    from safetensors import safe_open

    same_kind = "fix: average models of one architecture"
    if name not in weights:
        raise UserError(f"{newer}: has {name}, which the earlier model lacks; {same_kind}")
    with safe_open(weights[name], "pt") as file:
        tensor = file.get_tensor(name).float()
    if tensor.shape != shape:
        raise UserError(f"{newer}: {name} has another shape than in the earlier model; {same_kind}")
    return tensor


def _weights(folder: Path) -> dict[str, Path]:
    """Each weight's name and the file that holds it."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status."""
    earlier, earlier_sha256, newer, newer_sha256, decay, output = arguments
    models = ModelRef(earlier, earlier_sha256), ModelRef(newer, newer_sha256)
    try:
        write_average(*models, float(decay), Path(output))
    except UserError as error:
        print(error, file=sys.stderr)
        return USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
