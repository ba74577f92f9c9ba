"""An exponential moving average of models, as DPO's reference: ``python -m metareward.training.average``.

    E_t = decay E_{t-1} + (1 - decay) M_t,     E_0 = M_0

weight by weight, in float32. It is made in a process of its own, so that the one that runs the loop never loads torch;
one tensor is in memory at a time for reading, one file for writing.
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
from metareward.training.lineage import LINEAGE, fingerprint_model
from metareward.training.newfolder import new_folder
from metareward.training.process import last_line

NOTE = "average.json"  # in the folder: what it was made of
_WRONG = 2


def make_average(earlier: Path, newer: Path, decay: float, place: Path) -> Path:
    """The folder ``place`` with ``decay`` of the model in ``earlier`` and the rest of that in ``newer``.

    What is there already stays, if it was made of the same. Raises `UserError` otherwise, and for models that don't
    have the same weights.
    """
    wanted = _note(earlier, newer, decay)
    if place.exists():
        if not (place / NOTE).is_file() or json.loads((place / NOTE).read_text(encoding="utf-8")) != wanted:
            raise UserError(f"{place}: not the average of {earlier} and {newer}; fix: move or delete it")
        return place
    asked = [sys.executable, "-m", __name__, str(earlier), str(newer), str(decay), str(place)]
    done = subprocess.run(asked, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise UserError(last_line(done.stderr.decode(errors="replace")))
    return place


def _note(earlier: Path, newer: Path, decay: float) -> dict[str, Any]:
    return {"earlier": fingerprint_model(earlier), "newer": fingerprint_model(newer), "decay": decay}


def write_average(earlier: Path, newer: Path, decay: float, place: Path) -> None:
    """The same in this process. Raises `UserError`."""
    with new_folder(place) as new:
        for path in newer.iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name != LINEAGE:
                shutil.copyfile(path, new.content / path.name)
        before = _weights(earlier)
        for path in sorted(newer.glob("*.safetensors")):
            _average_file(before, path, decay, new.content / path.name)
        _note_dtype(new.content / "config.json")
        (new.content / NOTE).write_text(json.dumps(_note(earlier, newer, decay)) + "\n", encoding="utf-8")


def _average_file(before: Mapping[str, Path], path: Path, decay: float, place: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    averaged = {}
    with safe_open(path, "pt") as newer:
        for name in newer.keys():  # noqa: SIM118  (a handle, no mapping)
            now = newer.get_tensor(name).float()
            averaged[name] = now + decay * (_tensor(before, name, path, now.shape) - now)
    save_file(averaged, place, {"format": "pt"})


def _tensor(weights: Mapping[str, Path], name: str, newer: Path, shape: Sequence[int]) -> Any:
    from safetensors import safe_open

    if name not in weights:
        raise UserError(f"{newer}: has {name}, which the earlier model lacks; fix: average models of one kind")
    with safe_open(weights[name], "pt") as file:
        tensor = file.get_tensor(name).float()
    if tensor.shape != shape:
        raise UserError(f"{newer}: {name} has another shape than in the earlier model; fix: average models of one kind")
    return tensor


def _weights(folder: Path) -> dict[str, Path]:
    """Each weight's name and the file that holds it."""
    from safetensors import safe_open

    found: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    return found


def _note_dtype(config: Path) -> None:
    told = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
    config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """The command. Returns the exit status."""
    earlier, newer, decay, place = arguments
    try:
        write_average(Path(earlier), Path(newer), float(decay), Path(place))
    except UserError as error:
        print(error, file=sys.stderr)
        return _WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
