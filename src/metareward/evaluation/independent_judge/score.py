"""What an independent judge's verdicts say of one model: of its answers, and of its own judgments.

Answers: the mean score, and the win rate against M0 by the scores of both answers. Judgments: the agreement with the
independent judge on M0's answers (`metareward.evaluation.independent_judge.agreement`), against that of M0's judgments;
and over every two answers to one prompt whether the model prefers the one that the independent judge prefers. An answer
without a readable verdict is left out and counted: unreadable, or refused where the engine failed on the request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any, Literal

from metareward.evaluation.held_out import HeldOut, win_rate_by
from metareward.evaluation.independent_judge.agreement import JudgedAnswer, agreement, changes, judge_change
from metareward.evaluation.judges import Output
from metareward.method.judge import Rubric
from metareward.method.scores import TOLERANCE, mean, valid_scores
from metareward.method.stats import Interval, mean_interval
from metareward.types import Candidate, Judgment, Prompt, Scored, Unparsed

Metrics = dict[str, dict[str, float]]
UNREADABLE = ("missing", "out_of_range", "ambiguous", "truncated")
Status = Literal["judged", "unreadable", "refused"]


def graded_outputs(records: Iterable[HeldOut], answers: int) -> tuple[Output, ...]:
    """What the judge is asked: the first ``answers`` answers of the model and of M0 to each prompt, each text once."""
    outputs = (
        Output.of(record.prompt, answer.text)
        for record in records
        for answer in (*record.own[:answers], *record.anchors_K[:answers])
    )
    return tuple({output.id: output for output in outputs}.values())


@dataclass(frozen=True, slots=True)
class Verdicts:
    """The independent judge's documents (`metareward.evaluation.judges.grade`) by the id of the output."""

    judge: str
    documents: Mapping[str, Mapping[str, Any]]

    def scores(self, prompt: Prompt, text: str) -> tuple[float, ...]:
        """The readable scores of an answer."""
        document = self._document(prompt, text)
        return tuple(score for score in document["scores"] if score is not None) if document else ()

    def status(self, prompt: Prompt, text: str) -> Status:
        """Whether the answer has a score, or why not."""
        if self._document(prompt, text) is None:
            return "refused"
        return "judged" if self.scores(prompt, text) else "unreadable"

    def outcomes(self, prompt: Prompt, text: str) -> Sequence[str]:
        """How each judgment was read."""
        document = self._document(prompt, text)
        return document["outcomes"] if document else ()

    def judged(self, prompt: Prompt, answer: Candidate) -> Candidate:
        """The answer with this judge's judgments."""
        document = self._document(prompt, answer.text)
        scores = document["scores"] if document else ()
        readings = (Unparsed("missing") if score is None else Scored(score) for score in scores)
        return replace(answer, judgments_N=tuple(Judgment(i, "", 0, each) for i, each in enumerate(readings)))

    def _document(self, prompt: Prompt, text: str) -> Mapping[str, Any] | None:
        return self.documents.get(Output.of(prompt, text).id)


def half_point(model: Rubric, judge: Rubric) -> float | None:
    """Half a point of the scale that both rubrics have (a twentieth of a scale below 2 points); None for two scales."""
    if (model.min_score, model.max_score) != (judge.min_score, judge.max_score):
        return None
    size = judge.max_score - judge.min_score
    return 0.5 if size >= 2 else size / 20


def model_figures(
    model: str,
    records: Sequence[HeldOut],
    first: Sequence[HeldOut],
    verdicts: Verdicts,
    half: float | None,
    answers: int,
    seed: int,
) -> dict[str, object]:
    """The figures of one model, ready for JSON; ``first`` are M0's records, ``half`` is `half_point`."""
    records, first = (
        [replace(each, own=each.own[:answers], anchors_K=each.anchors_K[:answers]) for each in side]
        for side in (records, first)
    )
    on_first = [JudgedAnswers.of(side, verdicts) for side in (records, first)]
    is_first = model == "M0"
    found: dict[str, Any] = {"model": model, "judge": verdicts.judge, **_counts(records, verdicts)}
    metrics = _answer_metrics(records, verdicts, half, seed)
    agreed = agreement(on_first[0].answers, half, seed)
    metrics |= _as_metrics(agreed)
    metrics |= _pair_metrics(records, verdicts, seed)
    changed = {} if is_first else changes(on_first[0].answers, on_first[1].answers, half, seed)
    itself = agreement([replace(a, scores_N=a.reference_N) for a in on_first[0].answers], half, seed)
    found |= {
        "metrics": metrics,
        "win_rate": None if is_first else _win_rate(_rejudged(records, verdicts), verdicts.judge, seed),
        "own_win_rate": None if is_first else _win_rate(records, "itself", seed),
        "changes": _as_metrics(changed),
        "judge_change": judge_change(changed) if changed else None,
        "n_judgments_compared": sum(len(each.scores_N) for each in on_first[0].answers),
        "n_unreadable_by_model": on_first[0].n_unreadable,
        "reference": {name: itself[name].mean for name in ("self_agreement", "reliability") if name in itself},
        "same_scale": half is not None,
    }
    return found


@dataclass(frozen=True, slots=True)
class JudgedAnswers:
    """M0's answers that both judges could score, and how many only the independent judge could."""

    answers: tuple[JudgedAnswer, ...]
    n_unreadable: int

    @classmethod
    def of(cls, records: Iterable[HeldOut], verdicts: Verdicts) -> JudgedAnswers:
        """The judgments of M0's answers in the records of one model."""
        known = [
            (record.prompt.id, valid_scores(answer), reference)
            for record in records
            for answer in record.anchors_K
            if (reference := verdicts.scores(record.prompt, answer.text))
        ]
        judged = tuple(JudgedAnswer(key, scores, reference) for key, scores, reference in known if scores)
        return cls(judged, len(known) - len(judged))


def _counts(records: Sequence[HeldOut], verdicts: Verdicts) -> dict[str, int]:
    """What became of the verdicts on the model's own answers; refused ones also of M0's."""
    own = [(record.prompt, answer.text) for record in records for answer in record.own]
    status = Counter(verdicts.status(*each) for each in own)
    outcomes = Counter(outcome for each in own for outcome in verdicts.outcomes(*each))
    every = {Output.of(r.prompt, a.text).id for r in records for a in (*r.own, *r.anchors_K)}
    return {
        "n_answers": len(own),
        "n_judged": status["judged"],
        "n_unreadable": status["unreadable"],
        "n_refused": status["refused"],
        "n_judgments": outcomes.total(),
        **{f"n_{reason}": outcomes[reason] for reason in UNREADABLE},
        "n_asked": len(every),
        "n_not_answered": len(every - verdicts.documents.keys()),
    }


def _answer_metrics(records: Sequence[HeldOut], verdicts: Verdicts, half: float | None, seed: int) -> Metrics:
    """The scores of the model's own answers, and how far the model's own scores of them lie above."""
    scored = [
        (record.prompt.id, mean(scores), valid_scores(answer))
        for record in records
        for answer in record.own
        if (scores := verdicts.scores(record.prompt, answer.text))
    ]
    rows = {"score": [(key, score) for key, score, _ in scored]}
    if half is not None:
        rows["excess"] = [(key, mean(own) - score) for key, score, own in scored if own]
    intervals = {
        name: mean_interval([value for _, value in each], [key for key, _ in each], seed)
        for name, each in rows.items()
        if each
    }
    return _as_metrics(intervals)


def _as_metrics(intervals: Mapping[str, Interval]) -> Metrics:
    return {name: {"mean": i.mean, "low": i.low, "high": i.high, "n": i.n} for name, i in intervals.items()}


def _rejudged(records: Sequence[HeldOut], verdicts: Verdicts) -> list[HeldOut]:
    return [
        replace(
            record,
            own=tuple(verdicts.judged(record.prompt, answer) for answer in record.own),
            anchors_K=tuple(verdicts.judged(record.prompt, answer) for answer in record.anchors_K),
        )
        for record in records
    ]


def _win_rate(records: Sequence[HeldOut], judge: str, seed: int) -> dict[str, object] | None:
    found = win_rate_by(judge, records, seed)
    return None if found is None else asdict(found)


def _pair_metrics(records: Sequence[HeldOut], verdicts: Verdicts, seed: int) -> Metrics:
    """Over pairs that the independent judge decides: how often the model is right, and its confidence."""
    rows = [(record.prompt.id, *pair) for record in records for pair in _decided_pairs(record, verdicts)]
    if not rows:
        return {}
    keys = [key for key, _, _ in rows]
    right = [0.5 if abs(lead) <= TOLERANCE else float(lead > 0) for _, lead, _ in rows]
    confidence = [max(share, 1 - share) for _, _, share in rows]
    found = {
        "pair_accuracy": mean_interval(right, keys, seed),
        "pair_confidence": mean_interval(confidence, keys, seed),
    }
    return _as_metrics(found)


def _decided_pairs(record: HeldOut, verdicts: Verdicts) -> Iterator[tuple[float, float]]:
    """Of two answers to one prompt, the better by the independent judge against the other: how far the model's mean
    score of it leads, and the share of pairs of the model's scores that it wins.
    """
    by_text = {answer.text: valid_scores(answer) for answer in (*record.anchors_K, *record.own)}
    known = [(own, mean(ref)) for text, own in by_text.items() if own and (ref := verdicts.scores(record.prompt, text))]
    for (one, first), (other, second) in combinations(known, 2):
        if abs(first - second) <= TOLERANCE:
            continue
        better, worse = (one, other) if first > second else (other, one)
        points = (0.5 if abs(a - b) <= TOLERANCE else float(a > b) for a in better for b in worse)
        yield mean(better) - mean(worse), sum(points) / (len(better) * len(worse))


def verdict_rows(
    model: str, records: Sequence[HeldOut], verdicts: Verdicts, answers: int
) -> Iterator[dict[str, object]]:
    """A row for each own answer, as ``metareward evaluate compare`` reads it: ``score`` is null where there is none."""
    for record in records:
        for number, answer in enumerate(record.own[:answers]):
            scores = verdicts.scores(record.prompt, answer.text)
            yield {
                "id": f"{record.prompt.id} {number}" if number else record.prompt.id,
                "model": model,
                "judge": verdicts.judge,
                "score": mean(scores) if scores else None,
                "scores": scores,
                "status": verdicts.status(record.prompt, answer.text),
                "own_scores": valid_scores(answer),
            }
