"""The files of Arena-Hard, v0.1 and v2, in the formats of the public repository lmarena/arena-hard-auto.

Questions (``question.jsonl``), answers (``model_answer/MODEL.jsonl``), judgments (``model_judgment/JUDGE/MODEL.jsonl``)
and the judge's configuration (YAML); v2's field names are read too. Judgments may also be a CSV with ``question_id,
model, game1, game2``, and answers one with ``question_id, model, token_len, header_count, list_count, bold_count``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from metareward.data.files import Row, read_all_rows, read_rows, read_text
from metareward.errors import UserError
from metareward.evaluation.input_checks import group_by_name, one_value, require_field, require_one_row, score_on_scale
from metareward.evaluation.judges import is_refusal
from metareward.method.template import require
from metareward.text import parse_yaml

Version = Literal["v0.1", "v2"]
Verdict = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"]

_DOUBLE = re.compile(r"\[\[([AB<>=]+)\]\]")
_SINGLE = re.compile(r"\[([AB<>=]+)\]")
_SYNONYMS: dict[str, Verdict] = {"B=A": "A=B", "A<B": "B>A", "A<<B": "B>>A", "B<A": "A>B", "B<<A": "A>>B"}
_SCORE_OF_A: dict[Verdict, float] = {"A>>B": 1.0, "A>B": 1.0, "A=B": 0.5, "B>A": 0.0, "B>>A": 0.0}


def version_named(name: str) -> Version:
    """The version of that name. Raises `UserError` for another one."""
    found: Version | None = next((each for each in get_args(Version) if each == name), None)
    if found is None:
        raise UserError(f"--version {name}: no such version; there is {', '.join(get_args(Version))}")
    return found


def verdict(label: str) -> Verdict | None:
    """A stored label as one of the five verdicts, else None; ``A<B`` is read as ``B>A``, ``[[A>B]]`` as ``A>B``."""
    bare = label.strip().strip("[]")
    return next((each for each in get_args(Verdict) if each == bare), _SYNONYMS.get(bare))


def _stored_verdict(row: Row, field: str) -> Verdict | None:
    """The verdict in a stored label, None for null, an empty text, or a label that v0.1's pattern finds but is none.

    Raises `UserError` for any other text: it would count as unreadable without being one.
    """
    label = row.fields[field]
    if label is None or (isinstance(label, float) and label != label):
        return None
    found = verdict(str(label))
    if found is None and not re.fullmatch(r"[\[\]AB<>=\s]*|None|nan", str(label)):
        raise row.error(field, f"is {str(label)[:40]!r}", "give A>>B, A>B, A=B, B>A or B>>A, or null if unreadable")
    return found


def read_verdict(text: str, version: Version) -> Verdict | None:
    """The verdict in the judge's text, or None.

    v0.1: only if the text has one distinct label. v2: the last label; single brackets only without double ones.
    """
    if version == "v0.1":
        labels = set(_DOUBLE.findall(text))
        return verdict(labels.pop()) if len(labels) == 1 else None
    found = _DOUBLE.findall(text.upper()) or _SINGLE.findall(text.upper())
    return verdict(found[-1]) if found else None


def needs_retry(text: str, version: Version) -> bool:
    """Whether the judge is asked to continue: once, in v0.1, if it gave no label."""
    return version == "v0.1" and not _DOUBLE.search(text)


def score_for_a(given: Verdict) -> float:
    """The score of assistant A: 1, 1/2 or 0."""
    return _SCORE_OF_A[given]


def is_significant(given: Verdict) -> bool:
    """Whether one side is called significantly better."""
    return ">>" in given


_CODE = re.compile(r"```[^`]*```")
_HEADER = re.compile(r"^#{1,6}\s", re.MULTILINE)
_LISTED = (re.compile(r"^\s*\d+\.\s", re.MULTILINE), re.compile(r"^\s*[-*+]\s", re.MULTILINE))
_BOLD = (re.compile(r"\*\*[^*\n]+\*\*"), re.compile(r"__[^_\n]+__"))


@dataclass(frozen=True, slots=True)
class Style:
    """What style control counts in an answer; ``tokens`` or ``chars`` is None where it isn't known."""

    tokens: float | None
    chars: float | None
    headers: float
    lists: float
    bolds: float


def count_style(text: str, tokens: float | None) -> Style:
    """The style of ``text``: markdown is counted outside of code blocks, ``tokens`` are the stored ones."""
    plain = _CODE.sub("", text)
    return Style(
        tokens=tokens,
        chars=len(text),
        headers=_matches(plain, _HEADER),
        lists=_matches(plain, *_LISTED),
        bolds=_matches(plain, *_BOLD),
    )


def _matches(text: str, *patterns: re.Pattern[str]) -> int:
    return sum(len(pattern.findall(text)) for pattern in patterns)


_ID = ("question_id", "uid")
_MOST = 1e9  # of tokens, headers and so on in an answer
_OLD_SLOTS = ("question_1", "answer_1", "answer_2")
_COUNTS = ("header_count", "list_count", "bold_count")


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt. v2 has a leaderboard per ``category``."""

    id: str
    category: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer to one question; ``text`` is None where a table gives only its style."""

    question: str
    model: str
    text: str | None
    style: Style


@dataclass(frozen=True, slots=True)
class Match:
    """The two games of a model against its baseline on one question: the baseline is A in game 1, the model in game 2.

    A game without a readable verdict is None; ``refused`` counts the games that the judge didn't answer.
    """

    question: str
    category: str
    model: str
    baseline: str
    games: tuple[Verdict | None, Verdict | None]
    refused: int = 0
    judge: str | None = None


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """The judge's system prompt, the template of the user message, and the SHA-256 of the file."""

    system: str
    template: str
    sha256: str


def read_questions(path: Path) -> tuple[Question, ...]:
    """The questions, in the order of the file. Raises `UserError` for a repeated id."""
    found: dict[str, Question] = {}
    for row in read_rows(path):
        text = row.text("prompt") if row.has("prompt") else row.first("turns").text("content")
        question = Question(row.text(*_ID), str(row.fields.get("category") or ""), text)
        if question.id in found:
            raise row.error(_ID[0], "repeats an earlier row", "keep one question to an id")
        found[question.id] = question
    return tuple(found.values())


def read_answers(path: Path) -> tuple[Answer, ...]:
    """The answers of a file, or of a folder's ``.jsonl`` files. Raises `UserError` for a second one to a question."""
    rows = read_all_rows(path)
    keyed = (((row.text("model_id", "model"), row.text(*_ID)), row) for row in rows)
    require_one_row(keyed, _ID[0], "keep one answer of each model to a question")
    group_by_name(rows, "model_id", "model")
    return tuple(_answer(row) for row in rows)


def _answer(row: Row) -> Answer:
    """Style is stored, or counted in the text; token counts are only known if stored."""
    text = None
    if row.has("messages"):
        row.first("messages")
        last = row.rows("messages")[-1]
        is_object = isinstance(last.fields.get("content"), dict)
        text = last.row("content").text("answer") if is_object else last.text("content")
    elif row.has("choices"):
        text = row.first("choices").first("turns").text("content")
    name, model = row.text(*_ID), row.text("model_id", "model")
    stored = row.fields.get("conv_metadata") or row.fields.get("metadata") or row.fields
    given = Row(row.where, stored) if isinstance(stored, dict) else row
    if given.has(*_COUNTS):
        counts = [_total(given, name) for name in _COUNTS]
        style = Style(_tokens(row, given), None if text is None else len(text), *counts)
    elif text is None:
        raise row.error("header_count", "is missing, and there is no text to count in", "add the answer or its counts")
    else:
        style = count_style(text, _tokens(row, given))
    return Answer(name, model, text, style)


def _total(row: Row, name: str) -> float:
    """A count, or the sum of its kinds (such as h1 to h6)."""
    kinds = row.fields[name]
    given = Row(row.where, kinds if isinstance(kinds, dict) else {name: kinds})
    return sum(_required_count(given, kind) for kind in given.fields)


def _required_count(row: Row, name: str) -> float:
    row.number(name)
    return _count(row, name) or 0.0


def _count(row: Row, name: str) -> float | None:
    return score_on_scale(row, name, 0, _MOST)


def _tokens(row: Row, given: Row) -> float | None:
    if given.has("token_len"):
        return _count(given, "token_len")
    turn = row.first("choices").first("turns") if row.has("choices") else row
    return _count(turn, "token_len")


def read_judgments(path: Path, baseline: str | None, version: Version) -> tuple[Match, ...]:
    """The matches of a file, or of all ``.jsonl`` files of a folder, without the baseline against itself.

    Raises `UserError` when neither the rows nor ``baseline`` name the baseline.
    """
    rows = read_all_rows(path)
    require_one_row(
        (((row.text("model"), row.text(*_ID)), row) for row in rows), _ID[0], "keep one row for each model and question"
    )
    for those in group_by_name(rows, "model").values():
        one_value(those, "judge")
        one_value(those, "baseline")
    matches = [_match(row, baseline, version) for row in rows]
    return tuple(match for match in matches if match.model != match.baseline)


def _match(row: Row, baseline: str | None, version: Version) -> Match:
    against = row.text("baseline") if row.has("baseline") else baseline
    if against is None:
        raise UserError(f"{row.where}: doesn't name the baseline; fix: give --baseline NAME")
    if baseline not in (None, against):
        raise row.error("baseline", f"is {against!r}, not {baseline!r}", "leave out --baseline, or name this one")
    if row.has("games"):
        games = [_game(row, game, version) for game in row.items("games")]
    else:
        for name in ("game1", "game2"):
            require_field(row, name, "give both games, the baseline first in game 1 and the model first in game 2")
        games = [_stored_verdict(row, name) for name in ("game1", "game2")]
    if len(games) != 2:
        raise row.error("games", f"has {len(games)} games", "give both: baseline first, then model first")
    category = str(row.fields.get("category") or "")
    refused = row.integer("refused") if row.has("refused") else _refusals(row, games)
    if not 0 <= refused <= games.count(None):
        problem = f"is {refused}, but {games.count(None)} of the games have no verdict"
        raise row.error("refused", problem, "count the games that the judge didn't answer")
    judge = row.text("judge") if row.has("judge") else None
    return Match(row.text(*_ID), category, row.text("model"), against, (games[0], games[1]), refused, judge)


def _refusals(row: Row, games: Sequence[Verdict | None]) -> int:
    """How many games without a verdict were declined in words."""
    texts = [str(each.get("judgment") or "") for each in row.fields.get("games") or () if isinstance(each, dict)]
    return sum(game is None and is_refusal(text) for game, text in zip(games, texts, strict=False))


def _game(row: Row, game: object, version: Version) -> Verdict | None:
    """The stored score, or the verdict read from the text if there is none. v2 stores null for a failed game."""
    if game is None:
        return None
    if not isinstance(game, dict):
        raise row.error("games", "holds something that is no game", 'write {"score": "A>B"} or null')
    if "score" in game:
        return _stored_verdict(Row(f"{row.where} games", game), "score")
    return read_verdict(Row(row.where, game).text("judgment"), version)


def read_judge_prompt(path: Path) -> JudgePrompt:
    """``system_prompt`` and ``prompt_template`` (with the slots of v0.1 or v2) of a YAML file.

    Raises `UserError` when one is missing.
    """
    text = read_text(path)
    try:
        config = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}: {error}; fix: name judge_config.yaml") from None
    row = Row(str(path), config if isinstance(config, dict) else {})
    given: Any = row.fields.get("prompt_template")  # text, or v0.1's list of one
    is_list = isinstance(given, list) and len(given) == 1 and isinstance(given[0], str)
    template = given[0] if is_list else row.text("prompt_template")
    newer = "{QUESTION}" in template
    require(template, str(path), *(("QUESTION", "ANSWER_A", "ANSWER_B") if newer else _OLD_SLOTS))
    return JudgePrompt(row.text("system_prompt"), template, hashlib.sha256(text.encode()).hexdigest())


def by_model(answers: Iterable[Answer]) -> dict[str, dict[str, Answer]]:
    """Answers by model and question."""
    found: dict[str, dict[str, Answer]] = {}
    for answer in answers:
        found.setdefault(answer.model, {})[answer.question] = answer
    return found
