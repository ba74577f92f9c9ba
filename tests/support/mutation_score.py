"""The mutation score of each module from the results of a run, and its survivors (``make mutants``)."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path

SURVIVED, UNTESTED = 0, 33  # 33 is mutmut's: no test calls the function
_KILLED = (1, 3)  # a test failed, or pytest itself; below 0: ended by a signal, at the limit of time


def report(root: Path, names: Sequence[str] = ()) -> None:
    """Print mutants, killed mutants and the score of every module, of the mutants that match ``names``."""
    total = killed = 0
    print("module                              mutants  killed  score")
    for path in sorted(root.rglob("*.py.meta")):
        codes = {
            name: code
            for name, code in json.loads(path.read_text())["exit_code_by_key"].items()
            if code is not None and (not names or any(fnmatch.fnmatch(name, each) for each in names))
        }
        if not codes:
            continue
        dead = sum(code in _KILLED or code < 0 for code in codes.values())
        total, killed = total + len(codes), killed + dead
        module = str(path.relative_to(root)).removesuffix(".py.meta")
        print(f"{module:36}{len(codes):7}{dead:8}{dead / len(codes):7.1%}")
        for name, code in codes.items():
            if not (code in _KILLED or code < 0):
                print(f"    { {SURVIVED: 'survived', UNTESTED: 'untested'}.get(code, f'exit code {code}') }  {name}")
    print(f"{'all':36}{total:7}{killed:8}{killed / max(1, total):7.1%}")


if __name__ == "__main__":
    report(Path(sys.argv[1] if len(sys.argv) > 1 else "mutants/src/metareward"))
