"""Runs mutants: ``python tests/support/mutants.py [--rest | --survivors] [NAME ...]`` (``make mutants``).

mutmut makes the mutants. Here the tests are collected once; each mutant runs in a fork of that process, with the tests
that call its function, fastest first, until one fails. mutmut's own runner collects the tests anew for every mutant and
keeps what earlier tests left in caches.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import io
import json
import os
import resource
import signal
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol
from mutation_score import SURVIVED, UNTESTED, report

MUTANTS = Path("mutants")
_PAGES = Path("/proc/self/statm")
_MEMORY = 1 << 30  # bytes that a mutant may take
PROCESSES = int(os.environ.get("PROCESSES", os.cpu_count() or 1))


def generate() -> list[str]:
    """Write the mutants of all modules of ``[tool.mutmut]`` into ``mutants/``; returns the tests that are selected."""
    from mutmut import __main__ as mutmut
    from mutmut.configuration import config

    MUTANTS.mkdir(exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.setup_source_paths()
    mutmut.store_lines_covered_by_tests()
    with contextlib.redirect_stdout(io.StringIO()):
        mutmut.create_mutants(PROCESSES)
    return list(config().pytest_add_cli_args_test_selection)


def clear_caches() -> None:
    """Empty every ``lru_cache`` of the package, so that what is behind it runs again."""
    for name, module in list(sys.modules.items()):
        if name.startswith("metareward"):
            for value in list(vars(module).values()):
                if callable(clear := getattr(value, "cache_clear", None)):
                    clear()


@dataclass(frozen=True)
class _Running:
    """A mutant in a child process; at ``deadline`` it is ended even if it takes no CPU time."""

    path: Path
    name: str
    deadline: float


class Runner:
    """A pytest plugin that runs the collected tests once for each mutant instead of once."""

    def __init__(self, names: list[str], kept: set[int | None] | None) -> None:
        self.results = {path: json.loads(path.read_text()) for path in MUTANTS.resolve().rglob("*.py.meta")}
        self.queue = [
            (path, name)
            for path, result in self.results.items()
            for name, code in result["exit_code_by_key"].items()
            if (not names or any(fnmatch.fnmatch(name, each) for each in names)) and (kept is None or code in kept)
        ]
        self.tests: dict[str, list[tuple[float, int]]] = defaultdict(list)

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests can't be collected")
        self._find_tests(session)
        running: dict[int, _Running] = {}
        gc.freeze()  # the collector of a child then leaves the pages that it shares with this process alone
        if (child := os.fork()) == 0:
            os._exit(self._run("", session.items, 600))
        if os.waitpid(child, 0)[1] != 0:
            raise session.Failed("a test fails when it is run for the second time, without a mutant")
        for done, (path, name) in enumerate(self.queue):
            tests = [session.items[place] for _, place in self._of(name)]
            while len(running) >= PROCESSES:
                self._wait(running)
            self._set(path, name, UNTESTED)
            seconds = sum(each for each, _ in self._of(name))
            if tests and (child := os.fork()) == 0:
                os._exit(self._run(name, tests, seconds))
            elif tests:
                running[child] = _Running(path, name, time.monotonic() + 60 + 20 * seconds)
            if done % 20 == 0:
                session.config.get_terminal_writer().line(f"{done:6} of {len(self.queue)} mutants")
                self.save()
        while running:
            self._wait(running)
        self.save()
        return True

    def _of(self, name: str) -> list[tuple[float, int]]:
        return self.tests[name.rpartition("__mutmut_")[0]]

    def _find_tests(self, session: pytest.Session) -> None:
        """Run every test once without a mutant, noting which functions it calls and how long it takes."""
        from mutmut.state import state

        os.environ["MUTANT_UNDER_TEST"], os.environ["MUTMUT_DEPENDENCY_DEPTH"] = "stats", "-1"
        for place, item in enumerate(session.items):
            clear_caches()
            start = time.process_time()
            if any(each.failed for each in runtestprotocol(item, log=False)):
                raise session.Failed(f"{item.nodeid} fails without a mutant")
            for function in state()._stats:
                self.tests[function].append((time.process_time() - start, place))
            state()._stats.clear()
        for tests in self.tests.values():
            tests.sort()

    def _run(self, name: str, tests: list[pytest.Item], seconds: float) -> int:
        """In the child: 1 if a test fails, else 0; a mutant that takes very long is ended by a signal."""
        os.environ["MUTANT_UNDER_TEST"] = name
        limit = int(time.process_time() + 2 + 2 * seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1))
        if _PAGES.exists():  # Linux
            most = int(_PAGES.read_text().split()[0]) * resource.getpagesize() + _MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            clear_caches()
            return int(any(each.failed for item in tests for each in runtestprotocol(item, log=False)))
        except BaseException:  # such as pytest's own errors
            return 3

    def _wait(self, running: dict[int, _Running]) -> None:
        """Wait for a child to end; end those that wait for ever."""
        while True:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child in running:
                ended = running.pop(child)
                self._set(ended.path, ended.name, os.waitstatus_to_exitcode(status))
                return
            for child, each in running.items():
                if time.monotonic() > each.deadline:
                    os.kill(child, signal.SIGKILL)
            time.sleep(0.005)

    def _set(self, path: Path, name: str, code: int) -> None:
        self.results[path]["exit_code_by_key"][name] = code

    def save(self) -> None:
        for path in {path for path, _ in self.queue}:
            whole = path.with_suffix(".written")
            whole.write_text(json.dumps(self.results[path], indent=4))
            whole.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rest", action="store_true", help="only mutants that have not been run yet")
    parser.add_argument("--survivors", action="store_true", help="only mutants that survived, or that no test called")
    parser.add_argument("--tests", nargs="+", help="only the tests of these files")
    parser.add_argument("names", nargs="*", help='such as "metareward.method.elo*"; default: all')
    args = parser.parse_args()
    tests = generate()
    tests = args.tests or tests
    kept: set[int | None] | None = {None} if args.rest else {SURVIVED, UNTESTED} if args.survivors else None
    runner = Runner(args.names, kept)
    os.chdir(MUTANTS)
    code = pytest.main(["--rootdir=.", "-qq", "--tb=native", "-p", "no:cacheprovider", *tests], plugins=[runner])
    report(Path("src/metareward"), args.names)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
