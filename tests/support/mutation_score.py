"""Prints the mutation score of each module from the results of ``mutmut run``, and its survivors (``make mutants``)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

_KILLED = (1, 3)  # exit codes of pytest: a test failed, an internal error
_SURVIVED, _UNTESTED = 0, 33  # 33 is mutmut's: no test calls the function


def main(root: Path) -> None:
    total = killed = 0
    print("module                              mutants  killed  score")
    for path in sorted(root.rglob("*.py.meta")):
        codes = {
            name: code for name, code in json.loads(path.read_text())["exit_code_by_key"].items() if code is not None
        }
        if not codes:
            continue
        dead = sum(
            code in _KILLED or code < 0 for code in codes.values()
        )  # below 0: ended by a signal, at the time limit
        total, killed = total + len(codes), killed + dead
        module = str(path.relative_to(root)).removesuffix(".py.meta")
        print(f"{module:36}{len(codes):7}{dead:8}{dead / len(codes):7.1%}")
        for name, code in codes.items():
            if code in (_SURVIVED, _UNTESTED):
                print(f"    {'survived' if code == _SURVIVED else 'untested'}  {name}")
    print(f"{'all':36}{total:7}{killed:8}{killed / max(1, total):7.1%}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "mutants/src/metareward"))
