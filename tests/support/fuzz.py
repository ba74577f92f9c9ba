"""Fuzz with atheris, which finds its way by coverage: one target, or all, for so many seconds each.

    make fuzz TARGET=verdicts FOR=3600

Inputs that reach new code are kept in .fuzz/<target>/, so that a later run goes on from there; one that fails is kept
in .fuzz/<target>.found/ and makes the command fail. A single input may take thirty seconds and 4 GB.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["metareward"]):
    from fuzz_targets import TARGETS, Target, change_json

FOLDER = Path(".fuzz")


def mutate(data: bytes, longest: int, seed: int) -> bytes:
    """Changed values where there is JSON, of which changed bytes would nearly always leave none; else changed bytes."""
    random = Random(seed)
    found = change_json(data, random) if random.random() < 0.7 else None
    return found if found is not None and len(found) <= longest else bytes(atheris.Mutate(data, longest))


def run_here(target: Target, seconds: int, seed: int) -> None:
    """Fuzz one target until the time is over; ends the process."""
    corpus, found = FOLDER / target.name, FOLDER / f"{target.name}.found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
        target.run(data)  # what is imported on the way takes longer than an input may
    limits = ["-timeout=30", "-rss_limit_mb=4096", "-max_len=8192", f"-max_total_time={seconds}", f"-seed={seed}"]
    words = [sys.argv[0], *limits, "-print_final_stats=1", f"-artifact_prefix={found}/", str(corpus)]
    atheris.Setup(words, target.run, custom_mutator=mutate)
    atheris.Fuzz()


def main() -> None:
    """Each target in a process of its own, because a fuzzer ends its process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", default="all", choices=["all", *(each.name for each in TARGETS)])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.target != "all":
        run_here(next(each for each in TARGETS if each.name == given.target), given.seconds, given.seed)
    bad = []
    for target in TARGETS:
        print(f"--- {target.name}: {given.seconds} seconds, seed {given.seed}", flush=True)
        command = [sys.executable, __file__, target.name, f"--seconds={given.seconds}", f"--seed={given.seed}"]
        if subprocess.run(command, check=False).returncode:
            bad.append(target.name)
    if bad:
        sys.exit(f"findings in {', '.join(bad)}: see {FOLDER}/")


if __name__ == "__main__":
    main()
