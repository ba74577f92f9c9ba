"""EFT examples from labelled answers, without a model that can judge: every judgment is nothing but a verdict.

    the judge        the rubric about an answer                -> ``Score: 4``, the label in the rubric's own format
    a criterion      one of its questions about an answer      -> ``Yes`` or ``No``
    the meta-judge   two such judgments of an answer           -> ``Winner: Judgment A``

Labels are values of the rubric that a program, a stronger engine or human ranks give. Examples are chosen by
`metareward.data.length_balance`, so that neither length nor a label's frequency is a short cut.

The meta-judge's examples come from the pairs (better, worse) that are kept for the judge. Of each of the two answers
there are two judgments, one with its own label and one with the other's label, in both orders. So of all examples the
winner is shown first in half, has the higher score in half, and is longer as often as shorter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

from metareward.data.length_balance import Labelled, Pair, balance_lengths, check_lengths, match_opposite, pair_labels
from metareward.data.ranked import RankedAnswer, RankedPrompt, RankedSet
from metareward.data.seed_sets import (
    EftExample,
    JudgedAnswers,
    RejectedPrompt,
    SeedSets,
    SeedSettings,
    SeedSplit,
    score_bin,
)
from metareward.errors import UserError
from metareward.method.criteria import criterion_example
from metareward.method.judge import Reasoning, Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.method.scores import TOLERANCE
from metareward.types import Judgment, Scored

# --- labels ---


def require_two_values(rubric: Rubric) -> None:
    """Raise `UserError` for a rubric whose judgments can't tell a good answer from a bad one by whole scores."""
    if len(rubric.verdict.values) < 2:
        scale = f"{rubric.min_score:g} to {rubric.max_score:g}"
        raise UserError(f"judgments.max_score: {scale} has no two whole scores; fix: widen the rubric's scale")


def nearest_value(rubric: Rubric, label: float) -> float:
    """The score nearest to ``label`` that a judgment can state; of two equally near ones the higher."""
    values = [float(value) for value in rubric.verdict.values]
    return min(values, key=lambda value: (round(abs(value - label), 9), -value))


def labels_of_ranks(ranks: Sequence[float], rubric: Rubric) -> tuple[float, ...]:
    """Labels that order answers as ``ranks`` (lower is better) do, spread evenly over the rubric's scale.

    Ranks say which answer is better, not how good it is: the best gets the highest score whatever it is worth.
    """
    levels = sorted(set(ranks), reverse=True)
    low, high = rubric.min_score, rubric.max_score
    if len(levels) < 2:
        return tuple(nearest_value(rubric, high) for _ in ranks)
    step = (high - low) / (len(levels) - 1)
    return tuple(nearest_value(rubric, low + step * levels.index(rank)) for rank in ranks)


def with_labels(ranked: RankedPrompt, rubric: Rubric) -> RankedPrompt:
    """``ranked`` with a label for every answer, its own or one by its rank; of equal texts only the first is kept."""
    texts = [answer.text for answer in ranked.answers]
    spread = labels_of_ranks([answer.rank for answer in ranked.answers], rubric)
    answers = tuple(
        replace(answer, label=by_rank if answer.label is None else nearest_value(rubric, answer.label))
        for place, (answer, by_rank) in enumerate(zip(ranked.answers, spread, strict=True))
        if texts.index(answer.text) == place
    )
    return replace(ranked, answers=answers)


# --- judgments without words ---


def templated_judgment(rubric: Rubric, label: float, reasoning: Reasoning | None = None) -> str:
    """The judgment that says nothing but ``label``, in the rubric's format: ``Score: 4``, ``<score>4</score>``, ...

    A reasoning model's has empty reasoning before it.
    """
    verdict, value = rubric.verdict, nearest_value(rubric, label)
    choices = {float(each): choice for each, choice in zip(verdict.values, verdict.choices, strict=True)}
    return _no_thoughts(reasoning) + verdict.prefix + choices[value]


def templated_winner(metarubric: MetaRubric, first_wins: bool, reasoning: Reasoning | None = None) -> str:
    """The meta-judgment that says nothing but who wins: ``Winner: Judgment A``, ..."""
    verdict = metarubric.verdict
    return _no_thoughts(reasoning) + verdict.prefix + verdict.choices[0 if first_wins else 1]


def _no_thoughts(reasoning: Reasoning | None) -> str:
    return f"{reasoning.start}\n\n{reasoning.end}\n\n" if reasoning else ""


# --- choosing ---


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An example that could be trained on: of answer ``place`` of a prompt."""

    labelled: Labelled
    prompt: RankedPrompt
    place: int

    @property
    def answer(self) -> RankedAnswer:
        return self.prompt.answers[self.place]


def select_labelled(
    ranked: RankedSet, split: SeedSplit, settings: SeedSettings, meta_judge: bool = False, balance: bool = True
) -> SeedSets:
    """The three sets, EFT from labels; with ``meta_judge`` also the meta-judge's examples.

    Judgments that a stronger engine wrote are taken as they are. Without ``balance`` only labels are balanced in EFT,
    not lengths. The held-out prompts keep the answers that balance their lengths in any case, so that "longer wins" is
    right in half of their comparisons.
    """
    rubric, metarubric = settings.annotation.rubric, settings.annotation.metarubric
    require_two_values(rubric)
    if meta_judge and metarubric.hide_scores:
        raise UserError(
            "meta_judgments.hide_scores: without their scores templated judgments are empty; fix: "
            "--set meta_judgments.hide_scores=false, or --no-meta-judge"
        )
    if rubric.criteria and meta_judge:
        raise UserError(
            "--meta-judge: criteria make no judgments to compare; fix: leave it out, or name another rubric"
        )
    # Answers of the same score may still differ in a criterion.
    asked = _asked((*split.eft, *split.unused), rubric) if rubric.criteria else _judged(split.eft, rubric)
    candidates = {each.labelled.id: each for each in asked}
    labelled = [each.labelled for each in candidates.values()]
    if balance:
        balanced = balance_lengths(labelled, settings.seed, settings.max_score_share)
    else:
        balanced = pair_labels(labelled, settings.seed)
    kept = [each for each in labelled if each.id in balanced.ids]
    examples = tuple(_judges_example(candidates[each.id], settings) for each in kept)
    meta: tuple[EftExample, ...] = ()
    if meta_judge:
        meta = tuple(
            example for pair in balanced.pairs for example in _meta_judges_examples(pair, candidates, settings)
        )
    held_out = _neutral(split.held_out, settings)
    rejected = tuple(_rejected(candidates.values(), {each.prompt_id for each in kept}))
    summary = {
        "read": {"prompts": len(ranked.prompts), "answers": sum(len(each.answers) for each in ranked.prompts)},
        "skipped": {**ranked.skipped, "nothing to compare": 0 if rubric.criteria else len(split.unused)},
        "ift": len(split.ift),
        "labels": _count_labels(labelled),
        "labels_kept": _count_labels(kept),
        "dropped": dict(balanced.dropped),
        "eft": len(examples),
        **({"meta_eft": len(meta)} if meta_judge else {}),
        **check_lengths(labelled, settings.seed).summary("labelled"),
        **check_lengths(kept, settings.seed).summary("eft"),
        **held_out.summary(settings.seed),
    }
    return SeedSets(split.ift, examples, held_out.prompts, rejected, summary, meta, held_out.pairs)


def _judged(prompts: Iterable[RankedPrompt], rubric: Rubric) -> Iterator[_Candidate]:
    """A candidate for every answer, with its label."""
    for prompt in (with_labels(each, rubric) for each in prompts):
        for place, answer in enumerate(prompt.answers):
            assert answer.label is not None, "with_labels gives every answer one"
            name = prompt.prompt.id
            yield _Candidate(Labelled(f"{name}/eft/{place}", name, answer.label, len(answer.text)), prompt, place)


def _asked(prompts: Iterable[RankedPrompt], rubric: Rubric) -> Iterator[_Candidate]:
    """A candidate for every question of a criterion about every answer, with the label 1 for yes and 0 for no.

    Where no criteria are known and the rubric has one question, the answers with the highest score meet it.
    """
    own = [each for each in rubric.criteria if each.program is None]
    for each in _judged(prompts, rubric):
        prompt, known = each.prompt.prompt, dict(each.answer.criteria)
        asked = [question for criterion in own for question in criterion.questions(prompt)]
        if not known and len(asked) == 1:
            known = {asked[0]: each.labelled.label >= rubric.max_score}
        if not known:
            raise UserError(
                f"judgments.rubric {rubric.template.name}: nothing says which criteria answers to {prompt.id} meet; "
                'fix: a verifier with a method "holds", "criteria" in labelled rows, or a rubric of one question'
            )
        for number, question in enumerate(asked):
            if question in known:
                name = f"{each.labelled.id}/{number}"
                label = float(known[question])
                yield replace(each, labelled=replace(each.labelled, id=name, label=label, question=question))


@dataclass(frozen=True, slots=True)
class _Neutral:
    """Held-out prompts with the answers that balance their lengths, their pairs, and counts of the other answers."""

    prompts: tuple[RankedPrompt, ...]
    pairs: tuple[tuple[RankedPrompt, RankedAnswer, RankedAnswer], ...]
    answers: tuple[Labelled, ...]
    dropped: Mapping[str, int]

    def summary(self, seed: int) -> dict[str, object]:
        counts = {"prompts": len(self.prompts), "answers": len(self.answers), **self.dropped}
        return {"held_out": counts, **check_lengths(self.answers, seed).summary("held_out")}


def _neutral(prompts: Sequence[RankedPrompt], settings: SeedSettings) -> _Neutral:
    candidates = {each.labelled.id: each for each in _judged(prompts, settings.annotation.rubric)}
    labelled = [each.labelled for each in candidates.values()]
    balanced = balance_lengths(labelled, settings.seed, over_groups=False)
    kept = [each for each in candidates.values() if each.labelled.id in balanced.ids]
    answers: dict[str, list[RankedAnswer]] = {}
    for each in kept:
        answers.setdefault(each.labelled.prompt_id, []).append(each.answer)
    high = settings.annotation.rubric.max_score
    found = tuple(
        replace(each, answers=tuple(replace(one, rank=high - (one.label or 0.0)) for one in answers[each.prompt.id]))
        for each in prompts
        if each.prompt.id in answers
    )
    pairs = ((candidates[better.id], candidates[worse.id]) for better, worse in balanced.pairs)
    return _Neutral(
        found,
        tuple((better.prompt, better.answer, worse.answer) for better, worse in pairs),
        tuple(each.labelled for each in kept),
        balanced.dropped,
    )


def _rejected(candidates: Iterable[_Candidate], used: Set[str]) -> Iterator[RejectedPrompt]:
    labels: dict[str, list[float]] = {}
    for each in candidates:
        labels.setdefault(each.labelled.prompt_id, []).append(each.labelled.label)
    for prompt_id, those in labels.items():
        if prompt_id not in used:
            counts = ", ".join(f"{number} with {label:g}" for label, number in sorted(Counter(those).items()))
            yield RejectedPrompt(prompt_id, "one_label" if len(set(those)) == 1 else "unbalanced", f"answers: {counts}")


def _count_labels(examples: Iterable[Labelled]) -> dict[str, int]:
    return {f"{label:g}": number for label, number in sorted(Counter(each.label for each in examples).items())}


# --- written judgments ---


def balance_written(sets: SeedSets, split: SeedSplit, settings: SeedSettings, balance: bool) -> SeedSets:
    """``sets`` of judgments that the model wrote, with what length tells about their scores in the summary.

    With ``balance`` only examples and held-out answers are kept of which length tells nothing.
    """
    answers = {each.prompt.id: each.answers for each in split.eft}
    labelled = [
        Labelled(each.id, each.prompt_id, score_bin(each.score), len(answers[each.prompt_id][each.index].text))
        for each in sets.eft
    ]
    if not balance:
        return replace(sets, summary={**sets.summary, **check_lengths(labelled, settings.seed).summary("eft")})
    balanced = balance_lengths(labelled, settings.seed, settings.max_score_share)
    kept = [each for each in labelled if each.id in balanced.ids]
    held_out = _neutral(split.held_out, settings)
    summary = {
        **sets.summary,
        "scores_kept": _count_labels(kept),
        "dropped": dict(balanced.dropped),
        "eft": len(kept),
        **check_lengths(labelled, settings.seed).summary("agreeing"),
        **check_lengths(kept, settings.seed).summary("eft"),
        **held_out.summary(settings.seed),
    }
    examples = tuple(each for each in sets.eft if each.id in balanced.ids)
    return replace(sets, eft=examples, held_out=held_out.prompts, summary=summary, held_out_pairs=held_out.pairs)


def meta_from_written(
    prompts: Iterable[RankedPrompt], judged: Mapping[str, JudgedAnswers], settings: SeedSettings
) -> tuple[EftExample, ...]:
    """The meta-judge's examples from judgments that the model wrote, in both orders.

    Of each answer the judgments whose scores are nearest to its label and farthest from it. They are chosen so that the
    nearer one has the higher score as often as the lower one, and in both cases is longer as often as shorter.
    """
    rubric, found = settings.annotation.rubric, dict[str, tuple[RankedPrompt, int, Judgment, Judgment, float]]()
    sides: dict[tuple[bool, int], list[Pair]] = {}
    for each in (each for each in prompts if each.prompt.id in judged):
        spread = labels_of_ranks([answer.rank for answer in each.answers], rubric)
        for place, of_answer in enumerate(judged[each.prompt.id].judgments_AN):
            label = each.answers[place].label
            truth = spread[place] if label is None else label
            read = [(abs(j.reading.score - truth), j) for j in of_answer if isinstance(j.reading, Scored) and j.text]
            ordered = sorted(read, key=lambda one: one[0])
            if not ordered or ordered[-1][0] - ordered[0][0] <= TOLERANCE:
                continue
            (near, right), (far, wrong) = ordered[0], ordered[-1]
            name = f"{each.prompt.id}/{place}"
            pair = Labelled(name, name, -near, len(right.text)), Labelled(name, name, -far, len(wrong.text))
            found[name] = each, place, right, wrong, truth
            difference = len(right.text) - len(wrong.text)
            sides.setdefault((_score(right) > _score(wrong), (difference > 0) - (difference < 0)), []).append(pair)
    matches = [
        pair
        for sign in (1, 0, -1)
        for both in match_opposite(sides.get((True, sign), []), sides.get((False, -sign), []))
        for pair in both
    ]
    return tuple(
        example
        for near, _ in matches
        for each, place, right, wrong, truth in [found[near.id]]
        for example in _both_orders(each, place, right.text, wrong.text, truth, settings)
    )


def _score(judgment: Judgment) -> float:
    assert isinstance(judgment.reading, Scored)
    return judgment.reading.score


# --- examples ---


def _judges_example(candidate: _Candidate, settings: SeedSettings) -> EftExample:
    annotation, answer, labelled = settings.annotation, candidate.answer, candidate.labelled
    prompt, rubric = candidate.prompt.prompt, annotation.rubric
    if labelled.question:
        request, reply = criterion_example(
            prompt, answer.text, labelled.question, labelled.label > 0, rubric.template, rubric.system_prompt
        )
        text, part = _no_thoughts(annotation.reasoning) + reply, labelled.id.rpartition("/")[2]
        return EftExample(prompt.id, candidate.place, request, text, answer.rank, labelled.label, part=part)
    text = answer.judgment or templated_judgment(rubric, labelled.label, annotation.reasoning)
    request = rubric.render(prompt, answer.text)
    return EftExample(prompt.id, candidate.place, request, text, answer.rank, labelled.label)


def _meta_judges_examples(
    pair: Pair, candidates: Mapping[str, _Candidate], settings: SeedSettings
) -> Iterator[EftExample]:
    """Four examples: of each answer the judgment with its own label beats that with the other's, in both orders."""
    texts = [templated_judgment(settings.annotation.rubric, each.label) for each in pair]
    for own, (right, wrong) in zip(pair, (texts, texts[::-1]), strict=True):
        candidate = candidates[own.id]
        yield from _both_orders(candidate.prompt, candidate.place, right, wrong, own.label, settings)


def _both_orders(
    prompt: RankedPrompt, place: int, right: str, wrong: str, label: float, settings: SeedSettings
) -> Iterator[EftExample]:
    """The examples in which the judgment ``right`` of answer ``place`` wins, shown first and second."""
    metarubric, answer = settings.annotation.metarubric, prompt.answers[place]
    for part, shown in (("first", (right, wrong)), ("second", (wrong, right))):
        request = metarubric.render(prompt.prompt, answer.text, *shown)
        winner = templated_winner(metarubric, part == "first", settings.annotation.reasoning)
        yield EftExample(prompt.prompt.id, place, request, winner, answer.rank, label, kind="meta_eft", part=part)
