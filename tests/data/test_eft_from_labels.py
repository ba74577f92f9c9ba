"""EFT from labels: templated judgments are readable, and neither length, position nor score gives the label away."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_models import seed_settings

from metareward.data.eft_from_labels import (
    labels_of_ranks,
    meta_from_written,
    nearest_value,
    select_labelled,
    templated_judgment,
    templated_winner,
    with_labels,
)
from metareward.data.ranked import RankedAnswer, RankedPrompt, RankedSet, read_ranked, write_labelled
from metareward.data.seed_sets import EftExample, JudgedAnswers, SeedSets, SeedSettings, split_prompts, write_seed_sets
from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import read_pairs
from metareward.method.judge import Reasoning, Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.method.verdict_format import Kind
from metareward.training.data import count_kinds, read_examples
from metareward.types import Judgment, Message, Prompt, Scored, Unparsed, Won

kinds = st.sampled_from(get_args(Kind))


@settings(max_examples=40, deadline=None)
@given(kinds, st.sampled_from([(), ("Points",), ("评分",)]), st.integers(0, 2), st.integers(3, 10), st.floats(0, 10))
def test_templated_judgments_are_read_as_the_nearest_score(
    kind: Kind, words: tuple[str, ...], low: int, high: int, label: float
) -> None:
    rubric = Rubric.load("judge", min_score=low, max_score=high, kind=kind, words=words)
    text = templated_judgment(rubric, label)
    assert rubric.read(text) == Scored(nearest_value(rubric, label))
    assert abs(nearest_value(rubric, label) - min(max(label, low), high)) <= 0.5
    thinking = Reasoning()
    assert thinking.split(templated_judgment(rubric, label, thinking))[1] == text


@settings(max_examples=15, deadline=None)
@given(kinds, st.sampled_from([(), ("Better",)]), st.booleans())
def test_templated_winners_are_read(kind: Kind, words: tuple[str, ...], first: bool) -> None:
    metarubric = MetaRubric.load("metajudge", kind=kind, words=words)
    assert metarubric.read(templated_winner(metarubric, first), first=7, second=9) == Won(7 if first else 9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 4).map(float), min_size=1, max_size=6))
def test_labels_order_answers_as_their_ranks_do(ranks: list[float]) -> None:
    labels = labels_of_ranks(ranks, Rubric.load("judge"))
    assert max(labels) == 5.0 and (len(set(ranks)) == 1 or min(labels) == 0.0)
    for one, a in zip(ranks, labels, strict=True):
        for other, b in zip(ranks, labels, strict=True):
            assert (one < other) == (a > b)


def labelled_prompts(count: int, labels: Sequence[float] = (0.0, 1.0), seed: int = 3) -> tuple[RankedPrompt, ...]:
    """Six answers to each prompt; the better they are, the longer most of them are."""
    draw, found = random.Random(seed), []
    for number in range(count):
        answers = []
        for place in range(6):
            label = draw.choice(labels)
            text = f"{place} " + "word " * (draw.randint(3, 30) + int(8 * label / max(labels)))
            answers.append(RankedAnswer(text, max(labels) - label, label))
        found.append(
            RankedPrompt(Prompt(f"p{number}", (Message("user", f"Write about thing {number}."),)), tuple(answers))
        )
    return tuple(found)


def binary() -> SeedSettings:
    how = seed_settings()
    rubric = Rubric.load("short_judge", max_score=1)
    return replace(how, annotation=replace(how.annotation, rubric=rubric), ift_share=0.0)


def build(prompts: Sequence[RankedPrompt], how: SeedSettings, meta: bool = True) -> SeedSets:
    ranked = RankedSet(tuple(prompts), {})
    return select_labelled(ranked, split_prompts(prompts, how), how, meta)


@pytest.fixture(scope="module")
def sets() -> SeedSets:
    return build(labelled_prompts(60), binary())


def test_length_tells_nothing_of_the_examples_and_the_held_out_answers(sets: SeedSets) -> None:
    before, *after = (sets.summary[f"longer_wins_{name}"] for name in ("labelled", "eft", "held_out"))
    assert isinstance(before, dict) and before["low"] > 0.55
    for each in after:
        assert isinstance(each, dict) and each["accuracy"] == 0.5 and each["longer"] == each["shorter"] > 0
    assert {"eft": len(sets.eft), "meta_eft": len(sets.meta)}.items() <= sets.summary.items()
    assert len(sets.eft) > 60


def test_without_balance_length_stays_a_short_cut_and_the_held_out_answers_are_neutral() -> None:
    how = binary()
    prompts = RankedSet(labelled_prompts(60), {})
    sets = select_labelled(prompts, split_prompts(prompts.prompts, how), how, balance=False)
    kept, tested = sets.summary["longer_wins_eft"], sets.summary["longer_wins_held_out"]
    assert isinstance(kept, dict) and isinstance(tested, dict)
    assert kept["low"] > 0.55 and tested["accuracy"] == 0.5


def test_every_example_says_its_label_and_each_prompt_has_as_many_of_both(sets: SeedSets) -> None:
    rubric, of_prompt = binary().annotation.rubric, dict[str, list[float]]()
    labels = {(p.prompt.id, a.text): a.label for p in labelled_prompts(60) for a in p.answers}
    for each in sets.eft:
        assert rubric.read(each.judgment) == Scored(each.score)
        (text,) = [text for name, text in labels if name == each.prompt_id and text.strip() in each.request[-1].content]
        assert labels[each.prompt_id, text] == each.score
        of_prompt.setdefault(each.prompt_id, []).append(each.score)
    assert all(scores.count(1.0) == scores.count(0.0) for scores in of_prompt.values())


def test_the_sets_share_no_prompt_and_all_is_counted(sets: SeedSets) -> None:
    eft, held_out = {each.prompt_id for each in sets.eft}, {each.prompt.id for each in sets.held_out}
    assert eft and held_out and not eft & held_out
    parts = split_prompts(labelled_prompts(60), binary())
    assert eft | {each.id for each in sets.rejected} == {each.prompt.id for each in parts.eft}
    assert held_out <= {each.prompt.id for each in parts.held_out} and not parts.ift
    kept, labels, dropped = (sets.summary[name] for name in ("labels_kept", "labels", "dropped"))
    assert isinstance(kept, dict) and isinstance(labels, dict) and isinstance(dropped, dict)
    assert sum(labels.values()) == sum(kept.values()) + sum(dropped.values())


def shown(example: EftExample) -> tuple[str, str, bool]:
    """The two judgments as shown, and whether the first wins."""
    text = example.request[-1].content
    first, second = (text.split(f"<judgment_{x}>\n")[1].split(f"\n</judgment_{x}>")[0] for x in "ab")
    return first, second, example.judgment.endswith("A")


@pytest.mark.parametrize("labels", [(0.0, 1.0), (0.0, 2.0, 3.0, 5.0)])
def test_neither_position_nor_score_nor_length_tells_the_better_judgment(labels: tuple[float, ...]) -> None:
    how = binary() if len(labels) == 2 else replace(seed_settings(), ift_share=0.0)
    sets, rubric = build(labelled_prompts(40, labels), how), how.annotation.rubric
    assert len(sets.meta) == 2 * len(sets.eft) > 0
    truths = {(each.prompt_id, each.index): each.score for each in sets.eft}
    first, higher, orders = 0, 0, set()
    for each in sets.meta:
        one, other, first_wins = shown(each)
        winner, loser = (one, other) if first_wins else (other, one)
        right, wrong = rubric.read(winner.replace("∶", ":")), rubric.read(loser.replace("∶", ":"))
        assert isinstance(right, Scored) and isinstance(wrong, Scored)
        assert right.score == truths[each.prompt_id, each.index] == each.score != wrong.score
        first, higher = first + first_wins, higher + (right.score > wrong.score)
        assert len(winner) == len(loser)
        orders.add((each.prompt_id, each.index, frozenset([one, other]), first_wins))
    assert 2 * first == 2 * higher == len(sets.meta) == len(orders)


def test_a_metajudge_without_scores_has_nothing_to_compare() -> None:
    how = binary()
    hidden = replace(how.annotation, metarubric=MetaRubric.load("metajudge", hide_scores=True))
    with pytest.raises(UserError, match=r"hide_scores: .* fix: --set meta_judgments.hide_scores=false, or --no-meta"):
        build(labelled_prompts(4), replace(how, annotation=hidden))
    narrow = replace(how.annotation, rubric=Rubric.load("short_judge", max_score=0.5))
    with pytest.raises(UserError, match=r"0 to 0.5 has no two whole scores; fix: widen"):
        build(labelled_prompts(4), replace(how, annotation=narrow))


def test_judgments_that_a_stronger_model_wrote_are_trained_on_as_they_are() -> None:
    prompts = [
        replace(each, answers=tuple(replace(a, judgment=f"I see. Score: {a.label:g}") for a in each.answers))
        for each in labelled_prompts(20)
    ]
    sets = build(prompts, binary(), meta=False)
    assert sets.eft and all(each.judgment == f"I see. Score: {each.score:g}" for each in sets.eft) and not sets.meta


def test_training_reads_the_files_and_labels_survive_theirs(sets: SeedSets, tmp_path: Path) -> None:
    write_seed_sets(tmp_path, sets)
    found = read_examples((tmp_path / "eft.jsonl", tmp_path / "meta_eft.jsonl"))
    assert count_kinds(found) == {"eft": len(sets.eft), "meta_eft": len(sets.meta)}
    assert len({each.id for each in (*sets.eft, *sets.meta)}) == len(found)
    assert json.loads((tmp_path / "summary.json").read_text()) == sets.summary
    labels = {(p.prompt.id, a.text): a.label for p in labelled_prompts(60) for a in p.answers}
    longer = 0
    for pair in read_pairs(tmp_path / "held_out_pairs.jsonl"):
        better, worse = pair.item.responses[:: 1 if pair.label == 1 else -1]
        name = pair.item.id.rpartition("/")[0]
        assert (labels[name, better.text], labels[name, worse.text]) == (1.0, 0.0)
        longer += (len(better.text) > len(worse.text)) - (len(better.text) < len(worse.text))
    assert abs(longer) <= 2  # exact over all comparisons of the answers in held_out.jsonl
    given = labelled_prompts(3)
    given = (
        replace(given[0], answers=(replace(given[0].answers[0], judgment="Score: 1"), *given[0].answers[1:])),
        *given[1:],
    )
    write_labelled(tmp_path / "labelled.jsonl", given)
    read = read_ranked(tmp_path / "labelled.jsonl").prompts
    assert [(each.prompt, [(a.text, a.label, a.judgment) for a in each.answers]) for each in read] == [
        (each.prompt, [(a.text, a.label, a.judgment) for a in each.answers]) for each in given
    ]
    assert all(min(a.rank for a in each.answers) == 0 for each in read)


def by_criteria(rubric: Rubric) -> SeedSettings:
    how = binary()
    return replace(how, annotation=replace(how.annotation, rubric=rubric), held_out_share=0.0)


def test_criteria_are_trained_on_as_they_are_asked_with_as_many_yes_as_no_for_each_question() -> None:
    rubric, draw = Rubric.load("criteria", max_score=1), random.Random(5)
    questions = ['Does the response follow this: "Write about thing {}."?', rubric.criteria[1].question]
    prompts = []
    for number, each in enumerate(labelled_prompts(60)):
        known = [[(q.format(number), draw.random() < 0.6) for q in questions] for _ in each.answers]
        answers = tuple(replace(a, criteria=tuple(k)) for a, k in zip(each.answers, known, strict=True))
        prompts.append(replace(each, answers=answers))
    sets = build(prompts, by_criteria(rubric), meta=False)
    truth = {(p.prompt.id, i, q): met for p in prompts for i, a in enumerate(p.answers) for q, met in a.criteria}
    of_question: dict[tuple[str, str], list[str]] = {}
    for example in sets.eft:
        prompt = next(p for p in prompts if p.prompt.id == example.prompt_id)
        requests = rubric.requests(prompt.prompt, prompt.answers[example.index].text)
        assert example.request in requests  # exactly what the judge is asked
        question = questions[requests.index(example.request)].format(example.prompt_id[1:])
        assert example.judgment == ("Yes" if truth[example.prompt_id, example.index, question] else "No")
        of_question.setdefault((example.prompt_id, question), []).append(example.judgment)
    assert len(sets.eft) > 200 and len({each.id for each in sets.eft}) == len(sets.eft)
    assert all(replies.count("Yes") == replies.count("No") for replies in of_question.values())
    found = sets.summary["longer_wins_eft"]
    assert isinstance(found, dict) and found["accuracy"] == 0.5


def test_one_question_is_met_by_the_best_and_several_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("criteria: ['Is it good?']")
    one = Rubric.load(str(tmp_path / "one.yaml"), max_score=1)
    sets = build(labelled_prompts(20), by_criteria(one), meta=False)
    assert sets.eft and all((each.judgment == "Yes") == (each.rank == 0) == (each.score == 1) for each in sets.eft)
    several = by_criteria(Rubric.load("criteria", max_score=1))
    with pytest.raises(
        UserError, match=r"criteria\.yaml: nothing says which criteria answers to p0 meet; fix: a verifier with"
    ):
        build(labelled_prompts(20), several, meta=False)
    with pytest.raises(UserError, match="--meta-judge: criteria make no judgments to compare; fix"):
        build(labelled_prompts(20), several)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"answers": ["a", "b"], "labels": [1]}, r'x\.jsonl:1: field "labels": 1 for 2 answers; fix: give one to each'),
        ({"answers": ["a"], "labels": ["good"]}, r'field "labels\[0\]": is not a number; fix'),
        ({"answers": ["a"], "labels": [1], "judgments": [3]}, r'field "judgments\[0\]": is a number; fix: write text'),
        ({"answers": ["a"], "labels": [1], "criteria": [{"Is it?": 1}]}, r'"criteria\[0\]": is no object of true'),
        ({"answers": "a", "labels": [1]}, r'field "answers": is not a list'),
    ],
)
def test_bad_labels_are_one_line(tmp_path: Path, row: dict[str, object], line: str) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "Why?", **row}))
    with pytest.raises(UserError, match=line):
        read_ranked(tmp_path / "x.jsonl")


def test_equal_answers_are_one() -> None:
    answers = (RankedAnswer("a", 0.0), RankedAnswer("b", 1.0), RankedAnswer("a", 2.0))
    found = with_labels(RankedPrompt(Prompt("p", (Message("user", "Why?"),)), answers), Rubric.load("judge"))
    assert [(each.text, each.label) for each in found.answers] == [("a", 5.0), ("b", 3.0)]


def test_of_written_judgments_the_one_nearer_to_the_label_wins() -> None:
    """As often with the higher score as with the lower one, and as often longer as shorter."""
    draw, how = random.Random(2), seed_settings()
    prompts, judged = labelled_prompts(60, (0.0, 2.0, 3.0, 5.0)), {}
    for each in prompts:
        judgments_AN = []
        for answer in each.answers:
            assert answer.label is not None
            judgments = []
            for n in range(4):
                score = min(5, max(0, answer.label + draw.choice((-2, -1, 0, 1, 2))))
                words = "so " * draw.randint(1, 20 + 20 * (score == answer.label))
                reading = Unparsed("missing") if draw.random() < 0.2 else Scored(score)
                judgments.append(Judgment(n, f"{words}Score: {score:g}", 3, reading))
            judgments_AN.append(tuple(judgments))
        judged[each.prompt.id] = JudgedAnswers(tuple(judgments_AN))
    found = meta_from_written(prompts, judged, how)
    assert len(found) > 100
    balance = {"first": 0, "higher": 0, "longer": 0}
    for example in found:
        one, other, first_wins = shown(example)
        winner, loser = (one, other) if first_wins else (other, one)
        scores = [float(text.rpartition(" ")[2]) for text in (winner, loser)]
        assert abs(scores[0] - example.score) < abs(scores[1] - example.score)
        balance["first"] += 1 if first_wins else -1
        balance["higher"] += 1 if scores[0] > scores[1] else -1
        balance["longer"] += (len(winner) > len(loser)) - (len(winner) < len(loser))
    assert balance == {"first": 0, "higher": 0, "longer": 0}
