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
from pathlib import Path
from typing import Any

from metareward.engines.process_group import dying_with_parent
from metareward.errors import UserError
from metareward.storage.atomic import atomic_dir
from metareward.storage.custody import LINEAGE, ModelRef, fingerprint_model, require_weights
from metareward.training.config import USER_ERROR
from metareward.training.launch import error_line

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
    for folder in (earlier, newer):
        require_weights(folder)
    models = [before.path, before.sha256, now.path, now.sha256]
    command = dying_with_parent([sys.executable, "-m", __name__, *models, str(decay), str(output)])
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise UserError(error_line(done.stderr.decode(errors="replace")))
    return output


def _record(earlier: ModelRef, newer: ModelRef, decay: float) -> dict[str, Any]:
    return {"earlier": earlier.sha256, "newer": newer.sha256, "decay": decay}


def write_average(earlier: ModelRef, newer: ModelRef, decay: float, output: Path) -> None:
    """The same in this process. Raises `UserError`."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    same_kind = "fix: average models of one architecture"
    files: dict[str, Path] = {}  # where the earlier model has each weight
    for path in sorted(Path(earlier.path).glob("*.safetensors")):
        with safe_open(path, "pt") as weights:
            files |= dict.fromkeys(weights.keys(), path)
    with atomic_dir(output) as new:
        for path in Path(newer.path).iterdir():
            if path.is_file() and path.suffix != ".safetensors" and path.name != LINEAGE:
                shutil.copyfile(path, new.content / path.name)
        for path in sorted(Path(newer.path).glob("*.safetensors")):
            averaged = {}
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (a handle, no mapping)
                    now = weights.get_tensor(name).float()
                    if name not in files:
                        raise UserError(f"{path}: has {name}, which the earlier model lacks; {same_kind}")
                    with safe_open(files[name], "pt") as earlier_weights:
                        before = earlier_weights.get_tensor(name).float()
                    if before.shape != now.shape:
                        raise UserError(f"{path}: {name} has another shape than in the earlier model; {same_kind}")
                    averaged[name] = now + decay * (before - now)
            save_file(averaged, new.content / path.name, {"format": "pt"})
        config = new.content / "config.json"
        content = json.loads(config.read_text(encoding="utf-8")) | {"dtype": "float32"}
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        (new.content / RECORD).write_text(json.dumps(_record(earlier, newer, decay)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    earlier_path, earlier_sha256, newer_path, newer_sha256, *others = sys.argv[1:]
    models = ModelRef(earlier_path, earlier_sha256), ModelRef(newer_path, newer_sha256)
    try:
        write_average(*models, decay=float(others[0]), output=Path(others[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(USER_ERROR)
