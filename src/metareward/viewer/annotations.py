"""A person's judgments: which of two answers, or of two judgments of one answer, is better.

One JSON object a line in ``annotations.jsonl`` of the run folder, only ever appended to. A line holds what the person
saw (blind or not, which text came first), a digest of the two texts, and the model's own scores of them, so that
agreement needs no records. The last line of a person on a question counts.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from metareward.errors import UserError
from metareward.method.judge import Rubric
from metareward.method.scores import TOLERANCE
from metareward.method.stats import Interval, share_interval
from metareward.report.prompt_trace import PromptTrace
from metareward.seeds import derive
from metareward.storage.atomic import write_errors
from metareward.storage.serialization import json_lines
from metareward.types import Candidate, Messages, PairKind, PreferencePair, Scored
from metareward.viewer.index import Index
from metareward.viewer.runs import ViewedRun
from metareward.viewer.selection import Selection, matching

Choice = Literal["first", "second", "tie", "skip"]
CHOICES: tuple[Choice, ...] = ("first", "second", "tie", "skip")


@dataclass(frozen=True, slots=True)
class Annotation:
    """One person's judgment of two texts, shown as ``first`` and ``second`` (sample numbers).

    ``candidate``: the answer whose judgments these are, None for answers. ``scores``: the model's own, mean scores of
    answers or Elo ratings of judgments, None where it has none.
    """

    time: str
    person: str
    t: int
    kind: PairKind
    prompt_id: str
    candidate: int | None
    first: int
    second: int
    choice: Choice
    blind: bool
    scores: tuple[float | None, float | None]
    digest: str

    @property
    def question(self) -> tuple[int, PairKind, str, int | None, int, int]:
        """What it is about, whichever was shown first."""
        low, high = sorted((self.first, self.second))
        return self.t, self.kind, self.prompt_id, self.candidate, low, high

    @property
    def winner(self) -> int | None:
        """The sample number of the better one; None for neither."""
        return {"first": self.first, "second": self.second}.get(self.choice)

    @property
    def model_winner(self) -> int | None:
        """The one that the model scores higher; None if neither, or unknown."""
        first, second = self.scores
        if first is None or second is None or abs(first - second) <= TOLERANCE:
            return None
        return self.first if first > second else self.second

    @property
    def agrees(self) -> bool | None:
        """Whether person and model name the same; None where one of them names none."""
        if self.winner is None or self.model_winner is None:
            return None
        return self.winner == self.model_winner


def login_name() -> str:
    """The name of the user of this process; empty if it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


_LINE = TypeAdapter(Annotation)


@dataclass(frozen=True, slots=True)
class Question:
    """Two texts to judge, in the order in which they are shown."""

    trace: PromptTrace
    kind: PairKind
    candidate: int | None
    first: int
    second: int
    texts: tuple[str, str]
    scores: tuple[float | None, float | None]

    @property
    def digest(self) -> str:
        """A digest of the two texts, in the order of their sample numbers."""
        ordered = self.texts if self.first < self.second else self.texts[::-1]
        joined = json.dumps(ordered).encode("ascii")
        return hashlib.sha256(joined).hexdigest()[:32]


class Annotations:
    """The file of a run's annotations."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, annotation: Annotation) -> None:
        """Append one line, which is on disk when this returns. Raises `UserError` where it can't be written."""
        line = json_lines([asdict(annotation)]).encode()
        with write_errors(self.path), self.path.open("ab+", buffering=0) as file:
            if file.tell() and not self._ends_whole(file.fileno()):
                line = b"\n" + line  # a line that a kill cut off stays a line of its own
            file.write(line)  # one write at the end of the file, so that two people's lines don't mix
            os.fsync(file.fileno())

    @staticmethod
    def _ends_whole(descriptor: int) -> bool:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, 1, size - 1) == b"\n"

    def read(self) -> tuple[tuple[Annotation, ...], int]:
        """(the annotations that count, the number of lines that can't be read)."""
        found: dict[tuple[object, ...], Annotation] = {}
        unread = 0
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            lines = []
        except OSError as error:
            raise UserError(f"{self.path}: can't be read: {error.strerror}") from None
        for line in lines:
            try:
                each = _LINE.validate_json(line) if line.strip() else None
            except ValidationError:
                unread += 1
                continue
            if each is not None:
                found.pop((each.person, each.question), None)  # the last one counts, in its place
                found[each.person, each.question] = each
        return tuple(found.values()), unread


def pair_question(trace: PromptTrace, kind: PairKind, person: str) -> Question | None:
    """The two sides of a prompt's pair, in an order that person and prompt decide; None without a pair."""
    pair = trace.actor if kind == "actor" else trace.judge
    if not isinstance(pair, PreferencePair):
        return None
    order = derive(0, "shown first", person, trace.iteration, kind, pair.prompt_id) % 2
    sides = (pair.chosen_index, pair.rejected_index)
    return question(trace, kind, pair.candidate, *(sides if order else sides[::-1]))


def question(trace: PromptTrace, kind: PairKind, candidate: int | None, first: int, second: int) -> Question:
    """Two answers, or two judgments of answer ``candidate``. Raises `UserError` where there are none such."""
    if kind == "actor":
        texts = {each.index: each.reasoning + each.text for each in trace.record.candidates_K}
        scores = {each.candidate.index: each.score.mean for each in trace.answers if each.score is not None}
    else:
        of = next((each for each in trace.record.candidates_K if each.index == candidate), None)
        texts = {each.index: each.reasoning + each.text for each in of.judgments_N} if of else {}
        rated = trace.dispute.rated if trace.dispute and trace.dispute.candidate == candidate else ()
        scores = {each.judgment.index: each.rating for each in rated}
    if first == second or not {first, second} <= texts.keys():
        what = "answers" if kind == "actor" else f"judgments of answer {candidate}"
        raise UserError(f"{trace.record.prompt.id}: there are no two {what} {first} and {second}")
    pair = (texts[first], texts[second])
    return Question(trace, kind, candidate, first, second, pair, (scores.get(first), scores.get(second)))


def annotate(shown: Question, choice: Choice, person: str, blind: bool) -> Annotation:
    """The annotation of ``shown`` by ``person``, with the time of now."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    trace = shown.trace
    place = (trace.iteration, shown.kind, trace.record.prompt.id, shown.candidate, shown.first, shown.second)
    return Annotation(now, person, *place, choice, blind, shown.scores, shown.digest)


def next_prompt(
    index: Index, selection: Selection, done: Sequence[Annotation], person: str, shuffled: bool
) -> tuple[str | None, int, int]:
    """(the next prompt with a pair that ``person`` hasn't judged, how many are judged, of how many)."""
    keys = matching(index, selection, "yes")
    mine = (each for each in done if each.person == person)
    judged = {each.prompt_id for each in mine if each.t == selection.t and each.kind == selection.kind}
    left = [key for key in keys if key not in judged]
    if shuffled:
        left.sort(key=lambda key: (derive(0, "order", person, selection.t, selection.kind, key), key))
    return (left[0] if left else None), len(keys) - len(left), len(keys)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often people and model name the same: ``share`` over the annotations in which both name one."""

    kind: PairKind
    name: str
    total: int
    ties: int
    skipped: int
    share: Interval | None


def agreements(annotations: Sequence[Annotation]) -> Iterator[Agreement]:
    """Of each kind for everybody, then for blind judgments alone, then for each person if there are several."""
    people = sorted({each.person for each in annotations})
    kinds: tuple[PairKind, ...] = ("actor", "judge")
    for kind in kinds:
        of_kind = [each for each in annotations if each.kind == kind]
        groups = [("all", of_kind), ("judged blind", [each for each in of_kind if each.blind])]
        if len(people) > 1:
            groups += [(person or "no name", [each for each in of_kind if each.person == person]) for person in people]
        for name, those in groups:
            if those:
                agreed = [(each.agrees, each.prompt_id) for each in those if each.agrees is not None]
                share = share_interval([flag for flag, _ in agreed], [key for _, key in agreed]) if agreed else None
                counts = Counter(each.choice for each in those)
                yield Agreement(kind, name, len(those), counts["tie"], counts["skip"], share)


def exported_pairs(run: ViewedRun, kind: PairKind) -> str:
    """The judged pairs of a kind as JSON Lines that ``metareward evaluate judge-quality --pairs`` reads.

    Where people disagree, most decide; null if as many say one as the other. Of answers the judge's scores are added.
    Raises `UserError` when there are none.
    """
    found, _ = Annotations(run.annotations).read()
    by_question: dict[tuple[object, ...], list[Annotation]] = {}
    for each in found:
        if each.kind == kind and each.choice != "skip":
            by_question.setdefault(each.question, []).append(each)
    rows = [row for those in by_question.values() if (row := _row(run, those)) is not None]
    if not rows:
        raise UserError(f"{run.annotations}: no judged pair of this kind; fix: judge some in `metareward view`")
    return json_lines(rows)


def _row(run: ViewedRun, those: Sequence[Annotation]) -> dict[str, object] | None:
    """One question with its label; None if its texts are no longer those that were judged."""
    t, kind, key, candidate, one, other = those[0].question
    trace = run.trace(t, key)
    if trace is None:
        return None
    shown = question(trace, kind, candidate, one, other)
    if any(each.digest != shown.digest for each in those):
        return None
    votes = Counter({None: 0, one: 1, other: 2}[each.winner] for each in those)
    (label, most), *rest = votes.most_common()
    tied = bool(rest) and rest[0][1] == most
    number = f"{t}/{key}/{one}-{other}" if kind == "actor" else f"{t}/{key}/{candidate}/{one}-{other}"
    turns = [{"role": each.role, "text": each.content} for each in _messages(run, shown)]
    row: dict[str, object] = {
        "id": number,
        "conversation": turns,
        "output_1": shown.texts[0],
        "output_2": shown.texts[1],
    }
    row |= {"label": None if tied else label, "subset": f"iteration {t}"}
    if kind == "actor":
        answers = {each.index: each for each in trace.record.candidates_K}
        row |= {"scores_1": _scores(answers[one]), "scores_2": _scores(answers[other])}
    return row


def _messages(run: ViewedRun, shown: Question) -> Messages:
    """The prompt of the two texts: the prompt itself, or the judge's prompt about the answer."""
    trace, record = shown.trace, shown.trace.record
    if shown.candidate is None:
        return record.prompt.messages
    if isinstance(trace.judge, PreferencePair) and trace.judge.candidate == shown.candidate:
        return trace.judge.prompt
    section = run.recipe.judgments
    rubric = Rubric.load(section.rubric, min_score=section.min_score, max_score=section.max_score)
    answer = next(each for each in record.candidates_K if each.index == shown.candidate)
    return rubric.render(record.prompt, answer.text)


def _scores(answer: Candidate) -> list[float | None]:
    return [each.reading.score if isinstance(each.reading, Scored) else None for each in answer.judgments_N]
