"""An index of a run for fast lists and searches: one SQLite file outside of the run folder, derived from its records.

A row for each prompt of an iteration and for each held-out prompt of a model, the outcome of each pair, and the words
of all judgments. `Index.refresh` adds what is new, decoding one record at a time; a replaced store is read anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pydantic import TypeAdapter

from metareward.config.schema import Recipe, pairs_rules
from metareward.errors import UserError
from metareward.evaluation.held_out import HeldOut, Oracle, held_out_from_json
from metareward.evaluation.worlds import oracle_of
from metareward.method.elo import PositionWeights
from metareward.method.scores import TOLERANCE, answer_scores, mean, valid_scores
from metareward.method.stats import mean_or_none
from metareward.storage.atomic import write_errors
from metareward.storage.pair_files import iterate_pairs, read_dropped
from metareward.storage.records import record_from_json
from metareward.storage.run_dir import IterationDir, RunDir
from metareward.storage.store import MEND, RecordStore
from metareward.text import fold
from metareward.types import (
    Candidate,
    Dispute,
    Dropped,
    Messages,
    PairKind,
    PreferencePair,
    Prompt,
    PromptRecord,
    Tied,
    Won,
)

_LAYOUT = 2
_BATCH = 20  # records between two commits
TITLE_CHARS = 300
_TABLES = f"""
CREATE TABLE source (name TEXT PRIMARY KEY, state TEXT NOT NULL, row INTEGER NOT NULL, count INTEGER NOT NULL,
    total INTEGER NOT NULL, problem TEXT, inode INTEGER NOT NULL);
CREATE TABLE prompt (id INTEGER PRIMARY KEY AUTOINCREMENT, t INTEGER NOT NULL, key TEXT NOT NULL, title TEXT NOT NULL,
    digest TEXT, problem TEXT, failed INTEGER NOT NULL DEFAULT 0, answers INTEGER, judgments INTEGER,
    unreadable INTEGER, metas INTEGER, unreadable_metas INTEGER, means TEXT, best REAL, worst REAL,
    lost_best INTEGER, cut_off INTEGER, flipped INTEGER, first_wins INTEGER, second_wins INTEGER, chars REAL,
    score REAL, truth REAL, actor TEXT, actor_margin REAL, judge TEXT, judge_margin REAL, UNIQUE (t, key));
CREATE TABLE text (id INTEGER PRIMARY KEY, folded TEXT NOT NULL);
CREATE VIRTUAL TABLE word USING fts5 (judgments, content='', detail=none, columnsize=0);
CREATE TABLE outcome (t INTEGER, kind TEXT, key TEXT, pair INTEGER, document TEXT, PRIMARY KEY (t, kind, key))
    WITHOUT ROWID;
CREATE TABLE held_out (t INTEGER, key TEXT, title TEXT NOT NULL, digest TEXT, folded TEXT NOT NULL, problem TEXT,
    score REAL, truth REAL, anchor_score REAL, chars REAL, unreadable INTEGER, PRIMARY KEY (t, key));
PRAGMA user_version = {_LAYOUT};
"""
_OUTCOMES: dict[bool, TypeAdapter[PreferencePair] | TypeAdapter[Dropped]] = {
    True: TypeAdapter(PreferencePair),
    False: TypeAdapter(Dropped),
}


def default_cache() -> Path:
    """Where indexes are kept: ``$XDG_CACHE_HOME/metareward/view``, by default in ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "metareward" / "view"


@dataclass(frozen=True, slots=True)
class Source:
    """One store or one iteration's pair files: ``count`` of ``total`` documents are in the index."""

    name: str
    count: int
    total: int
    problem: str | None


class Index:
    """The index of one run. Any thread may read; `refresh` is for one thread at a time."""

    def __init__(self, run: RunDir, cache: Path) -> None:
        self.run = run
        name = hashlib.sha256(os.fsencode(run.path.resolve())).hexdigest()[:24]
        self.path = cache / f"{name}.sqlite"
        self._lock = threading.Lock()
        with write_errors(cache):
            cache.mkdir(parents=True, exist_ok=True)
        self._create()

    def connect(self) -> sqlite3.Connection:
        """A connection to the index, with rows by name; the caller closes it."""
        connection = sqlite3.connect(self.path, timeout=10, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    def _create(self) -> None:
        """Make the tables; a file of another layout, or one that is damaged, is rebuilt."""
        try:
            with closing(self.connect()) as connection:
                (layout,) = connection.execute("PRAGMA user_version").fetchone()
                if layout == _LAYOUT:
                    connection.execute("SELECT COUNT(*) FROM source").fetchone()
                    return
        except sqlite3.DatabaseError:
            pass
        self.rebuild()

    def rebuild(self) -> None:
        """Delete the index and make an empty one."""
        try:
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            with closing(self.connect()) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"{self.path}: no index can be made ({error}); fix: give another folder with --cache"
            ) from None

    def sources(self) -> tuple[Source, ...]:
        """What the index is made of, by name: ``records 1``, ``pairs 1``, ``held-out 0``."""
        with closing(self.connect()) as connection:
            rows = connection.execute("SELECT name, count, total, problem FROM source ORDER BY name").fetchall()
        return tuple(Source(*row) for row in rows)

    def refresh(self, recipe: Recipe, stop: Callable[[], bool] = lambda: False) -> bool:
        """Add what is new in the run; whether anything was. ``stop`` is asked between records."""
        changed = False
        with self._lock, closing(self.connect()) as connection:
            connection.execute("PRAGMA synchronous = OFF")  # it can be made again
            for t in range(len(recipe.iterations) + 1):
                folder = self.run.iteration(t)
                if t:
                    changed |= _StoreIndexer(connection, f"records {t}", folder.records, stop).refresh(t, recipe)
                evaluated = folder.evaluation / "records.sqlite"
                changed |= _StoreIndexer(connection, f"held-out {t}", evaluated, stop).refresh(t, recipe)
                if t:
                    changed |= _refresh_pairs(connection, t, folder)
        return changed

    def weights(self, t: int) -> PositionWeights:
        """The position weights of all comparisons of iteration ``t`` so far."""
        query = "SELECT SUM(first_wins), SUM(second_wins) FROM prompt WHERE t = ?"
        with closing(self.connect()) as connection:
            first, second = (int(each or 0) for each in connection.execute(query, (t,)).fetchone())
        return PositionWeights.from_wins(first, second)

    def outcome(self, t: int, kind: PairKind, key: str) -> PreferencePair | Dropped | None:
        """The pair of a prompt, or why there is none; None before pairs are built."""
        query = "SELECT pair, document FROM outcome WHERE t = ? AND kind = ? AND key = ?"
        with closing(self.connect()) as connection:
            row = connection.execute(query, (t, kind, key)).fetchone()
        return None if row is None else _OUTCOMES[bool(row["pair"])].validate_json(row["document"])


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _state(*paths: Path) -> str:
    """Size, time and inode of each file: another text once one of the files has changed."""
    found = []
    for path in paths:
        try:
            stat = path.stat()
            found.append([stat.st_size, stat.st_mtime_ns, stat.st_ino])
        except OSError:
            found.append([])
    return json.dumps(found)


@dataclass(frozen=True, slots=True)
class _StoreIndexer:
    """Adds the documents of one store to the index. ``name``: its row in the table ``source``."""

    connection: sqlite3.Connection
    name: str
    path: Path
    stop: Callable[[], bool]

    def refresh(self, t: int, recipe: Recipe) -> bool:
        """Add the store's new documents; whether anything that pages show has changed."""
        log = self.path.with_name(f"{self.path.name}-wal")
        known = self.connection.execute("SELECT * FROM source WHERE name = ?", (self.name,)).fetchone()
        state = _state(self.path, log)
        if not self.path.is_file():
            if known is not None:
                self._clear(t)
            return known is not None
        if known is not None and known["state"] == state:
            return False
        row, done = (known["row"], known["count"]) if known is not None else (0, 0)
        try:
            with RecordStore.read(self.path, immutable=True) as store:
                total, last = store.extent()
                failures = store.failures() if self.name.startswith("records") else {}
            other = known is not None and (known["problem"] or known["inode"] != self._inode)
            if total < done or last < row or other:
                self._clear(t)
                row = done = 0
            row, done = self._add(t, recipe, row, done, total)
            problem = None
        except UserError as error:
            total, failures, problem = done, {}, str(error)
        with _transaction(self.connection):
            failed = self._put_failures(t, failures)
            finished = done >= total or problem is not None
            self._note(state if finished else "", row, done, total, problem)
        before = None if known is None else (known["row"], known["problem"])
        return failed or before != (row, problem)

    def _add(self, t: int, recipe: Recipe, row: int, done: int, total: int) -> tuple[int, int]:
        """Add the documents after ``row``, a batch at a time; the last row, and how many are in the index."""
        rows = _RecordRows if self.name.startswith("records") else _HeldOutRows
        add = rows(self.connection, t, recipe).add
        while not self.stop():
            with RecordStore.read(self.path, immutable=True) as store:
                batch = list(store.documents_after(row, _BATCH))
            if not batch:
                break
            with _transaction(self.connection):
                for at, key, document in batch:
                    add(key, document)
                    row, done = at, done + 1
                self._note("", row, done, max(total, done), None)
        return row, done

    def _put_failures(self, t: int, failures: dict[str, str]) -> bool:
        """Put failed prompts into the list; whether others were there before."""
        if self.name.startswith("held-out"):
            return False
        found = self.connection.execute("SELECT key, problem FROM prompt WHERE t = ? AND failed", (t,)).fetchall()
        new = {key: f"failed: {error}" for key, error in failures.items()}
        if dict(map(tuple, found)) == new:
            return False
        self.connection.execute("DELETE FROM prompt WHERE t = ? AND failed", (t,))
        rows = [(t, key, problem) for key, problem in new.items()]
        query = "INSERT INTO prompt (t, key, title, problem, failed) VALUES (?, ?, '', ?, 1) ON CONFLICT DO NOTHING"
        self.connection.executemany(query, rows)
        return True

    def _clear(self, t: int) -> None:
        table = "prompt" if self.name.startswith("records") else "held_out"
        with _transaction(self.connection):
            if table == "prompt":
                self.connection.execute("DELETE FROM text WHERE id IN (SELECT id FROM prompt WHERE t = ?)", (t,))
            self.connection.execute(f"DELETE FROM {table} WHERE t = ?", (t,))
            self.connection.execute("DELETE FROM source WHERE name IN (?, ?)", (self.name, f"pairs {t}"))

    def _note(self, state: str, row: int, done: int, total: int, problem: str | None) -> None:
        values = (self.name, state, row, done, total, problem, self._inode)
        self.connection.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    @property
    def _inode(self) -> int:
        """Tells a file from an earlier one of the same name."""
        return self.path.stat().st_ino if self.path.is_file() else 0


class _RecordRows:
    """The rows of an iteration's records."""

    def __init__(self, connection: sqlite3.Connection, t: int, recipe: Recipe) -> None:
        self._connection, self._t = connection, t
        self._min_valid = pairs_rules(recipe, t).min_valid
        self._oracle = _oracle(recipe)

    def add(self, key: str, document: str | None) -> None:
        """Add one record; of one that can't be read the reason. None: it isn't what was stored."""
        self._connection.execute("DELETE FROM prompt WHERE t = ? AND key = ?", (self._t, key))
        try:
            record = record_from_json(_stored(document))
            row = {**_named(record.prompt), **_figures(record, self._min_valid)}
            row["truth"] = _truth(self._oracle, record.prompt, record.candidates_K)
        except (UserError, ValueError) as error:
            row = {"title": "", "problem": " ".join(str(error).split())}
            self._insert(key, row)
            return
        at = self._insert(key, row)
        texts = [message.content for message in record.prompt.messages] + [each.text for each in record.candidates_K]
        self._connection.execute("INSERT INTO text VALUES (?, ?)", (at, fold("\n".join([key, *texts])).text))
        judged = [judgment.text for answer in record.candidates_K for judgment in answer.judgments_N]
        judged += [meta.text for meta in record.dispute.meta] if record.dispute else []
        self._connection.execute("INSERT INTO word (rowid, judgments) VALUES (?, ?)", (at, "\n".join(judged)))

    def _insert(self, key: str, row: dict[str, object]) -> int:
        outcomes = "SELECT kind, pair, document FROM outcome WHERE t = ? AND key = ?"
        for kind, pair, document in self._connection.execute(outcomes, (self._t, key)):
            row[kind], row[f"{kind}_margin"] = _outcome_columns(_OUTCOMES[bool(pair)].validate_json(document))
        names = ", ".join(["t", "key", *row])
        marks = ", ".join("?" * (len(row) + 2))
        done = self._connection.execute(f"INSERT INTO prompt ({names}) VALUES ({marks})", (self._t, key, *row.values()))
        assert done.lastrowid is not None
        return done.lastrowid


def _named(prompt: Prompt) -> dict[str, str]:
    """The beginning of the last message, and what tells the conversation from another one."""
    text = json.dumps([[message.role, message.content] for message in prompt.messages])
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return {"title": _title(prompt.messages), "digest": digest}


def _oracle(recipe: Recipe) -> Oracle | None:
    return oracle_of(recipe.prompts.source, recipe.judgments.min_score, recipe.judgments.max_score)


def _truth(oracle: Oracle | None, prompt: Prompt, answers: tuple[Candidate, ...]) -> float | None:
    """The mean true score of the answers; None without an oracle, and for a prompt that it doesn't know."""
    try:
        return None if oracle is None else mean_or_none([oracle.answer_score(prompt, each.text) for each in answers])
    except ValueError:
        return None


def _title(messages: Messages) -> str:
    return " ".join((messages[-1].content if messages else "")[: 4 * TITLE_CHARS].split())[:TITLE_CHARS]


def _figures(record: PromptRecord, min_valid: int) -> dict[str, object]:
    """The columns of a record. A best answer is lost if every answer with the best mean is left out of the scores."""
    answers = record.candidates_K
    judgments = [judgment for answer in answers for judgment in answer.judgments_N]
    scores = {each.index: each.mean for each in answer_scores(record, min_valid)}
    means = {answer.index: mean(values) for answer in answers if (values := valid_scores(answer))}
    lost = False
    if means and all(answer.reward is None for answer in answers):
        best = max(means.values()) - TOLERANCE
        lost = all(index not in scores for index, value in means.items() if value >= best)
    return {
        "answers": len(answers),
        "judgments": len(judgments),
        "unreadable": sum(judgment.reading.kind != "scored" for judgment in judgments),
        "means": json.dumps([round(value, 3) for value in scores.values()]),
        "best": max(scores.values(), default=None),
        "worst": min(scores.values(), default=None),
        "lost_best": int(lost),
        "cut_off": sum(answer.finish == "length" for answer in answers),
        "chars": mean_or_none([len(answer.text) for answer in answers]),
        "score": mean_score(answers),
        **(_battles(record.dispute) if record.dispute else {"metas": 0, "unreadable_metas": 0, "flipped": 0}),
    }


def _battles(dispute: Dispute) -> dict[str, object]:
    """The columns of the meta-judgments; a verdict is flipped if both orders have a winner, but not the same."""
    won = {(each.first, each.second): each.verdict.winner for each in dispute.meta if isinstance(each.verdict, Won)}
    both = [(won.get((a, b)), won.get((b, a))) for a, b in combinations(dispute.judgments_M, 2)]
    return {
        "metas": len(dispute.meta),
        "unreadable_metas": sum(not isinstance(each.verdict, Won | Tied) for each in dispute.meta),
        "flipped": sum(None not in winners and winners[0] != winners[1] for winners in both),
        "first_wins": sum(winner == first for (first, _), winner in won.items()),
        "second_wins": sum(winner == second for (_, second), winner in won.items()),
    }


class _HeldOutRows:
    """The rows of one model's held-out records."""

    def __init__(self, connection: sqlite3.Connection, t: int, recipe: Recipe) -> None:
        self._connection, self._t = connection, t
        self._oracle = _oracle(recipe)

    def add(self, key: str, document: str | None) -> None:
        """Add one record; of one that can't be read the reason. None: it isn't what was stored."""
        try:
            record = held_out_from_json(_stored(document))
        except UserError as error:
            values: tuple[object, ...] = (self._t, key, "", None, "", str(error), None, None, None, None, None)
        else:
            texts = [message.content for message in record.prompt.messages] + [each.text for each in record.own]
            named, truth = _named(record.prompt), _truth(self._oracle, record.prompt, record.own)
            values = (
                *(self._t, key, named["title"], named["digest"], fold("\n".join([key, *texts])).text, None),
                *(mean_score(record.own), truth, mean_score(record.anchors_K)),
                mean_or_none([len(each.text) for each in record.own]),
                sum(judgment.reading.kind != "scored" for each in record.own for judgment in each.judgments_N),
            )
        self._connection.execute("INSERT OR REPLACE INTO held_out VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _stored(document: str | None) -> str:
    if document is None:
        raise UserError(f"record: its checksum is another one: it isn't what was stored; fix: {MEND}")
    return document


def mean_score(answers: tuple[Candidate, ...]) -> float | None:
    """The mean of all readable scores of the answers; None without any."""
    return mean_or_none([score for answer in answers for score in valid_scores(answer)])


def read_held_out(path: Path, key: str) -> HeldOut | None:
    """One held-out record, None if there is none. Raises `UserError` for one that can't be read."""
    if not path.is_file():
        return None
    with RecordStore.read(path, immutable=True) as store:
        document = store.get(key)
    try:
        return None if document is None else held_out_from_json(document)
    except UserError as error:
        raise UserError(f"{path}: {key}: {error}") from None


def _outcome_columns(outcome: PreferencePair | Dropped) -> tuple[str, float | None]:
    """(``paired`` or the drop reason, the chosen score minus the rejected one)."""
    if isinstance(outcome, Dropped):
        return outcome.reason, None
    return "paired", outcome.chosen_score - outcome.rejected_score


def _refresh_pairs(connection: sqlite3.Connection, t: int, folder: IterationDir) -> bool:
    """Read the pair files of an iteration again if they changed; whether they had."""
    name = f"pairs {t}"
    files = [folder.pairs("actor"), folder.pairs("judge")]
    state = _state(folder.summary, folder.dropped, *files)
    known = connection.execute("SELECT state FROM source WHERE name = ?", (name,)).fetchone()
    if (known is not None and known["state"] == state) or (known is None and not folder.summary.is_file()):
        return False
    problem, count = None, 0
    with _transaction(connection):
        connection.execute("DELETE FROM outcome WHERE t = ?", (t,))
        clear = "UPDATE prompt SET actor = NULL, actor_margin = NULL, judge = NULL, judge_margin = NULL WHERE t = ?"
        connection.execute(clear, (t,))
        try:
            for outcome in _outcomes(folder) if folder.summary.is_file() else ():
                _put_outcome(connection, t, outcome)
                count += 1
        except UserError as error:
            problem = str(error)
        values = (name, state, 0, count, count, problem, 0)
        connection.execute("INSERT OR REPLACE INTO source VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    return True


def _outcomes(folder: IterationDir) -> Iterator[PreferencePair | Dropped]:
    yield from read_dropped(folder.dropped)
    for path in (folder.pairs("actor"), folder.pairs("judge")):
        if path.is_file():  # an iteration without judge pairs has no file of them
            yield from iterate_pairs(path)


def _put_outcome(connection: sqlite3.Connection, t: int, outcome: PreferencePair | Dropped) -> None:
    pair = isinstance(outcome, PreferencePair)
    document = _OUTCOMES[pair].dump_json(outcome).decode()  # type: ignore[arg-type]
    values = (t, outcome.kind, outcome.prompt_id, int(pair), document)
    connection.execute("INSERT OR REPLACE INTO outcome VALUES (?, ?, ?, ?, ?)", values)
    query = f"UPDATE prompt SET {outcome.kind} = ?, {outcome.kind}_margin = ? WHERE t = ? AND key = ?"
    connection.execute(query, (*_outcome_columns(outcome), t, outcome.prompt_id))
