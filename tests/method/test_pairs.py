"""Preference pairs of actor and judge, and the reasons for dropped prompts."""

import math
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from builders import RUBRIC, candidate, dispute, judgment, record, records
from hypothesis import given
from hypothesis import strategies as st

from metareward.method.elo import PositionWeights, battle_matrix, fit_elo, position_weights
from metareward.method.pairs import (
    OnTie,
    PairRules,
    actor_pair,
    build_pairs,
    iteration_weights,
    judge_pair,
    of_kind,
    tiers,
)
from metareward.method.scores import answer_scores
from metareward.seeds import derive
from metareward.types import Candidate, Dropped, PreferencePair, PromptRecord, Scored, Tied, Truncated

EVEN = PositionWeights(0.5, 0.5, 0, 0)
rules_drawn = st.builds(
    PairRules,
    rho=st.one_of(st.just(0.0), st.floats(0, 1)),
    on_tie=st.sampled_from(["shortest", "random", "lowest_variance"]),
    mask_truncated_completions=st.booleans(),
    max_answer_chars=st.one_of(st.none(), st.integers(1, 6)),
    judge_pairs=st.booleans(),
    max_judgment_chars=st.one_of(st.none(), st.integers(1, 12)),
    min_valid=st.integers(1, 4),
    position_weights_scope=st.sampled_from(["iteration", "answer"]),
    elo_prior=st.sampled_from([0.01, 0.1, 1.0]),
    min_battles=st.integers(1, 6),
)
some_records = st.lists(records(), max_size=4).map(
    lambda made: [replace(each, prompt=replace(each.prompt, id=f"p{n}")) for n, each in enumerate(made)]
)


def scored(means_and_chars: list[tuple[float, int]]) -> PromptRecord:
    """Answers with these mean scores and lengths."""
    return record([candidate(n, [mean, mean], chars=chars) for n, (mean, chars) in enumerate(means_and_chars)])


WORKED = scored([(5.0, 1900), (4.2, 1500), (3.5, 1200), (2.5, 2400), (2.0, 1800)])


def made(outcome: PreferencePair | Dropped) -> PreferencePair:
    assert isinstance(outcome, PreferencePair), outcome
    return outcome


def reason(outcome: PreferencePair | Dropped) -> str:
    assert isinstance(outcome, Dropped), outcome
    return outcome.reason


# Actor pairs.


def test_tiers_of_the_worked_example() -> None:
    top, bottom = tiers(answer_scores(WORKED, 2), 0.32)
    assert [score.mean for score in top] == [5.0, 4.2]
    assert [score.mean for score in bottom] == [2.5, 2.0]
    on_the_edge = scored([(5.0, 1), (4.04, 1), (4.039999, 1), (2.960001, 1), (2.96, 1), (2.0, 1)])
    top, bottom = tiers(answer_scores(on_the_edge, 2), 0.32)
    assert [score.mean for score in top] == [5.0, 4.04]
    assert [score.mean for score in bottom] == [2.96, 2.0]


@pytest.mark.parametrize(("rho", "chosen", "rejected"), [(0.32, (1, 4.2), (3, 2.5)), (0.0, (0, 5.0), (4, 2.0))])
def test_pair_of_the_worked_example(rho: float, chosen: tuple[int, float], rejected: tuple[int, float]) -> None:
    pair = made(actor_pair(WORKED, PairRules(rho=rho)))
    assert ((pair.chosen_index, pair.chosen_score), (pair.rejected_index, pair.rejected_score)) == (chosen, rejected)
    assert pair.chosen == WORKED.candidates_K[chosen[0]].text
    assert pair.prompt == WORKED.prompt.messages
    assert pair.candidate is None


def test_rho_zero_takes_the_shortest_best_and_the_longest_worst() -> None:
    tied = scored([(5, 30), (5, 10), (5, 10), (1, 20), (1, 40), (1, 40), (3, 1), (3, 99)])
    pair = made(actor_pair(tied, PairRules()))
    assert (pair.chosen_index, pair.rejected_index) == (1, 4)


def renumbered(of: PromptRecord, name: str) -> PromptRecord:
    return replace(of, prompt=replace(of.prompt, id=name))


@given(records(), rules_drawn, st.sampled_from(["random", "lowest_variance"]), st.randoms(), st.integers(0, 3))
def test_without_shortest_on_tie_lengths_and_order_play_no_part_at_rho_zero(
    of: PromptRecord, rules: PairRules, on_tie: OnTie, shuffler: random.Random, seed: int
) -> None:
    rules = replace(rules, rho=0.0, on_tie=on_tie, max_answer_chars=None)
    other = [replace(each, text=each.text[0] * shuffler.randint(1, 50)) for each in of.candidates_K]
    shuffler.shuffle(other)
    before, after = (actor_pair(each, rules, seed) for each in (of, replace(of, candidates_K=tuple(other))))
    if isinstance(before, Dropped):
        assert after == before
    else:
        assert (made(after).chosen_index, made(after).rejected_index) == (before.chosen_index, before.rejected_index)


@given(records(), rules_drawn.filter(lambda rules: rules.rho > 0), st.integers(0, 3))
def test_on_tie_changes_nothing_where_there_are_tiers(of: PromptRecord, rules: PairRules, seed: int) -> None:
    outcomes = [actor_pair(of, replace(rules, on_tie=each), seed) for each in ("shortest", "random", "lowest_variance")]
    assert outcomes[0] == outcomes[1] == outcomes[2]


def test_a_random_tie_takes_each_answer_as_often_by_prompt_and_by_seed() -> None:
    tied = scored([(5, 30), (5, 10), (5, 20), (1, 20), (1, 40)])
    rules = PairRules(on_tie="random")
    by_prompt = [made(actor_pair(renumbered(tied, f"p{n}"), rules, 1)) for n in range(600)]
    by_seed = [made(actor_pair(tied, rules, n)) for n in range(600)]
    for drawn in (by_prompt, by_seed):
        chosen, rejected = Counter(each.chosen_index for each in drawn), Counter(each.rejected_index for each in drawn)
        assert all(150 < chosen[index] < 250 for index in (0, 1, 2)), chosen
        assert all(250 < rejected[index] < 350 for index in (3, 4)), rejected
        both = Counter((pair.chosen_index, pair.rejected_index) for pair in drawn)
        assert len(both) == 6 and min(both.values()) > 60  # the two sides are drawn independently


def test_lowest_variance_takes_the_answers_whose_judgments_agree_most() -> None:
    of = record(
        [
            candidate(0, [5, 3], "a"),
            candidate(1, [4, 4], "bbb"),
            candidate(2, [4, 4, None], "cc"),
            candidate(3, [2, 0], "d"),
            candidate(4, [1, 1], "ee"),
        ]
    )
    pairs = [made(actor_pair(of, PairRules(on_tie="lowest_variance"), seed)) for seed in range(20)]
    assert {pair.chosen_index for pair in pairs} == {1, 2}
    assert {pair.rejected_index for pair in pairs} == {4}


def test_a_single_judgment_counts_as_the_least_certain() -> None:
    of = record([candidate(0, [4], "a"), candidate(1, [5, 3], "b"), candidate(2, [1], "c")])
    for seed in range(10):
        pair = made(actor_pair(of, PairRules(on_tie="lowest_variance", min_valid=1), seed))
        assert (pair.chosen_index, pair.rejected_index) == (1, 2)


# Cut-off answers.


def cut_off(answer: Candidate) -> Candidate:
    return replace(answer, finish="length")


def test_a_cut_off_answer_is_neither_chosen_nor_rejected() -> None:
    best, second, third, worst = (candidate(n, [score, score]) for n, score in enumerate((5, 4, 2, 1)))
    of = record([cut_off(best), second, third, cut_off(worst)])
    pair = made(actor_pair(of, PairRules()))
    assert (pair.chosen_index, pair.rejected_index) == (1, 2)
    pair = made(actor_pair(of, PairRules(mask_truncated_completions=False)))
    assert (pair.chosen_index, pair.rejected_index) == (0, 3)


def test_cut_off_answers_do_not_widen_the_tiers() -> None:
    scores = [(5.0, 30), (4.0, 20), (3.5, 10), (1.0, 20)]
    of = scored(scores)
    assert made(actor_pair(of, PairRules(rho=0.4))).chosen_index == 2  # 3.4 and more
    of = replace(of, candidates_K=(cut_off(of.candidates_K[0]), *of.candidates_K[1:3], candidate(3, [3, 3])))
    assert made(actor_pair(of, PairRules(rho=0.4))).chosen_index == 1  # 3.6 and more


def test_why_cut_off_answers_leave_no_pair() -> None:
    of = record([candidate(0, [5, 5]), cut_off(candidate(1, [3, 3])), cut_off(candidate(2, [1, None]))])
    outcome = actor_pair(of, PairRules())
    assert reason(outcome) == "answers_truncated"
    assert isinstance(outcome, Dropped)
    assert outcome.detail == "1 of 2 scored answers are cut off, 2 whole ones are needed"
    assert reason(actor_pair(of, PairRules(min_valid=3))) == "too_few_valid_answers"
    assert made(actor_pair(of, PairRules(mask_truncated_completions=False))).rejected_index == 1


@given(records(), rules_drawn, st.integers(0, 2**5 - 1))
def test_no_cut_off_answer_is_in_an_actor_pair(of: PromptRecord, rules: PairRules, cut: int) -> None:
    answers = [cut_off(each) if cut >> n & 1 else each for n, each in enumerate(of.candidates_K)]
    whole = [each for each in answers if each.finish == "stop"]
    masked = actor_pair(replace(of, candidates_K=tuple(answers)), replace(rules, mask_truncated_completions=True))
    without = actor_pair(replace(of, candidates_K=tuple(whole)), rules)
    if isinstance(masked, PreferencePair) or isinstance(without, PreferencePair):
        assert masked == without
    else:
        assert masked.reason in (without.reason, "answers_truncated")


def test_rounding_does_not_change_tiers() -> None:
    thirds = record(
        [candidate(0, [4.1, 4.2, 4.3], "aaa"), candidate(1, [4.2, 4.2, 4.2], "b"), candidate(2, [1, 1, 1], "c")]
    )
    assert made(actor_pair(thirds, PairRules())).chosen_index == 1
    assert reason(actor_pair(replace(thirds, candidates_K=thirds.candidates_K[:2]), PairRules())) == "all_scores_equal"


def test_too_few_valid_answers() -> None:
    assert reason(actor_pair(record([candidate(0, [5, 5])]), PairRules())) == "too_few_valid_answers"
    one_each = record([candidate(0, [5, None]), candidate(1, [1, Truncated()])])
    assert reason(actor_pair(one_each, PairRules())) == "too_few_valid_answers"
    assert made(actor_pair(one_each, PairRules(min_valid=1))).chosen_index == 0


def test_an_answer_without_a_score_is_never_rejected() -> None:
    pair = made(
        actor_pair(record([candidate(0, [5, 5]), candidate(1, [None, None]), candidate(2, [3, 3])]), PairRules())
    )
    assert (pair.chosen_index, pair.rejected_index) == (0, 2)


def test_the_length_filter_drops_the_pair_without_a_substitute() -> None:
    assert reason(actor_pair(WORKED, PairRules(max_answer_chars=1899))) == "chosen_answer_too_long"
    assert made(actor_pair(WORKED, PairRules(max_answer_chars=1900))).chosen_index == 0
    assert made(actor_pair(WORKED, PairRules(rho=0.32, max_answer_chars=1500))).rejected_index == 3


def test_overlapping_tiers_with_one_answer_on_both_sides() -> None:
    assert reason(actor_pair(scored([(5, 20), (3, 10), (1, 5)]), PairRules(rho=0.5))) == "tiers_overlap"
    middle = made(actor_pair(scored([(5, 20), (3, 10), (1, 12)]), PairRules(rho=0.6)))
    assert (middle.chosen_index, middle.rejected_index) == (1, 2)


def test_a_worse_answer_is_never_chosen_over_a_better_one() -> None:
    # With rho 1 the tiers are everything: the shortest answer scores 2, the longest 4.
    outcome = actor_pair(scored([(5, 20), (2, 5), (1, 10), (4, 30)]), PairRules(rho=1.0))
    assert reason(outcome) == "tiers_overlap"


@given(records(), rules_drawn)
def test_properties_of_actor_pairs(of: PromptRecord, rules: PairRules) -> None:
    outcome = actor_pair(of, rules)
    if isinstance(outcome, Dropped):
        assert outcome.reason and outcome.detail and "\n" not in outcome.detail
        return
    means = {score.index: score for score in answer_scores(of, rules.min_valid)}
    best, worst = max(s.mean for s in means.values()), min(s.mean for s in means.values())
    assert best > worst
    assert outcome.chosen_score >= outcome.rejected_score - 1e-9
    assert outcome.chosen_index != outcome.rejected_index
    assert outcome.chosen_score >= (1 - rules.rho) * best + rules.rho * worst - 1e-6
    assert outcome.rejected_score <= (1 - rules.rho) * worst + rules.rho * best + 1e-6
    assert len(outcome.chosen) <= (rules.max_answer_chars or 10**9)
    for score in means.values() if rules.rho > 0 or rules.on_tie == "shortest" else ():
        if score.mean >= (1 - rules.rho) * best + rules.rho * worst:
            assert score.chars >= len(outcome.chosen)
        if score.mean <= (1 - rules.rho) * worst + rules.rho * best:
            assert score.chars <= len(outcome.rejected)


@given(records())
def test_rho_zero_is_best_against_worst(of: PromptRecord) -> None:
    outcome = actor_pair(of, PairRules())
    if isinstance(outcome, PreferencePair):
        means = [score.mean for score in answer_scores(of, 2)]
        assert outcome.chosen_score == pytest.approx(max(means))
        assert outcome.rejected_score == pytest.approx(min(means))


def test_rewards_make_actor_pairs_without_judgments() -> None:
    answers = [replace(candidate(n, []), reward=reward) for n, reward in enumerate((0.0, 1.0, 0.5))]
    pairs, dropped = build_pairs([record(answers)], PairRules())
    assert [(pair.kind, pair.chosen_index, pair.rejected_index, pair.chosen_score) for pair in pairs] == [
        ("actor", 1, 0, 1.0)
    ]
    assert [(drop.kind, drop.reason) for drop in dropped] == [("judge", "too_few_judgments")]


# Judge pairs.


def argued(verdicts: dict[tuple[int, int], Any], texts: tuple[str, ...] = ("zero", "one", "two")) -> PromptRecord:
    """One disputed answer, number 4, with three judgments and these comparisons."""
    judgments = tuple(judgment(n, float(n), text) for n, text in enumerate(texts))
    answer = Candidate(4, "the answer", "stop", 5, judgments)
    return record([candidate(0, [3, 3, 3]), answer], dispute(verdicts, len(texts), 4))


CLEAR = {(0, 1): 1, (1, 0): 1, (0, 2): 2, (2, 0): 2, (1, 2): 2, (2, 1): 2}


def test_the_highest_rated_judgment_is_chosen() -> None:
    pair = made(judge_pair(argued(CLEAR), PairRules(), EVEN, RUBRIC, 0))
    assert (pair.chosen, pair.rejected) == ("two", "zero")
    assert (pair.chosen_index, pair.rejected_index, pair.candidate) == (2, 0, 4)
    assert pair.chosen_score == pytest.approx(1.7584, abs=1e-4)
    assert pair.rejected_score == pytest.approx(-1.7584, abs=1e-4)
    assert pair.prompt == RUBRIC.render(argued(CLEAR).prompt, "the answer")


def test_ties_between_ratings_are_broken_by_the_seed() -> None:
    both_lose = argued({(0, 1): 0, (1, 0): 0, (0, 2): 0, (2, 0): 0, (1, 2): 1, (2, 1): 2})
    pairs = [made(judge_pair(both_lose, PairRules(), EVEN, RUBRIC, seed)) for seed in range(30)]
    assert {pair.chosen_index for pair in pairs} == {0}
    assert {pair.rejected_index for pair in pairs} == {1, 2}


@pytest.mark.parametrize(
    ("of", "rules", "expected"),
    [
        (record([candidate(0, [1, 5]), candidate(1, [3, 3])]), PairRules(), "no_dispute"),
        (record([candidate(0, [3, 3]), candidate(1, [4, 4])]), PairRules(), "no_variance"),
        (record([candidate(0, [3, None]), candidate(1, [None, 4])]), PairRules(), "too_few_judgments"),
        (argued(CLEAR), PairRules(min_valid=4), "too_few_judgments"),
        (argued(dict.fromkeys(CLEAR)), PairRules(), "too_few_battles"),
        (argued(CLEAR | {(0, 1): None}), PairRules(min_battles=6), "too_few_battles"),
        (argued(dict.fromkeys(CLEAR, Tied())), PairRules(), "all_ratings_equal"),
        (argued({(m, n): m for m, n in CLEAR}), PairRules(), "all_ratings_equal"),
        (argued(CLEAR, ("same", "other", "same")), PairRules(), "same_judgment_text"),
        (argued(CLEAR, ("a", "b", "longest")), PairRules(max_judgment_chars=6), "chosen_judgment_too_long"),
    ],
)
def test_why_there_is_no_judge_pair(of: PromptRecord, rules: PairRules, expected: str) -> None:
    assert reason(judge_pair(of, rules, EVEN, RUBRIC, 0)) == expected


TRUNCATED = replace(WORKED, candidates_K=tuple(replace(each, finish="length") for each in WORKED.candidates_K[:4]))


@pytest.mark.parametrize(
    ("of", "rules", "detail"),
    [
        (record([candidate(0, [5, 5])]), PairRules(), "1 answers with 2 valid judgments or more, 2 are needed"),
        (TRUNCATED, PairRules(), "4 of 4 scored answers are cut off, 2 whole ones are needed"),
        (scored([(3.5, 1), (3.5, 2)]), PairRules(), "all 2 answers have the mean score 3.5"),
        (
            scored([(5, 20), (3, 10), (1, 5)]),
            PairRules(rho=0.5),
            "answer 1 would be chosen and rejected at rho 0.5",
        ),
        (
            scored([(5, 20), (2, 5), (1, 10), (4, 30)]),
            PairRules(rho=1.0),
            "answer 1 (2) would be chosen over answer 3 (4) at rho 1",
        ),
        (WORKED, PairRules(max_answer_chars=1899), "1900 characters, at most 1899 are allowed"),
    ],
)
def test_what_is_said_of_an_actor_pair_that_is_dropped(of: PromptRecord, rules: PairRules, detail: str) -> None:
    outcome = actor_pair(of, rules)
    assert isinstance(outcome, Dropped)
    assert (outcome.kind, outcome.prompt_id, outcome.detail) == ("actor", "p", detail)


@pytest.mark.parametrize(
    ("of", "rules", "detail"),
    [
        (record([candidate(0, [1, 5])]), PairRules(), "no judgments of this prompt were compared"),
        (record([candidate(0, [3, 3])]), PairRules(), "the judgments of each answer all give the same score"),
        (record([candidate(0, [3, None])]), PairRules(min_valid=1), "no answer has 2 valid judgments"),
        (record([candidate(0, [3, 4])]), PairRules(min_valid=3), "no answer has 3 valid judgments"),
        (argued(CLEAR), PairRules(min_valid=4), "3 valid judgments of answer 4, 4 are needed"),
        (argued(CLEAR | {(0, 1): None}), PairRules(min_battles=6), "5 of 6 comparisons readable, 6 are needed"),
        (argued(dict.fromkeys(CLEAR, Tied())), PairRules(), "3 judgments, no one rated above another"),
        (argued(CLEAR, ("same", "b", "same")), PairRules(), "judgments 2 and 0 have the same text"),
        (argued(CLEAR, ("a", "b", "long")), PairRules(max_judgment_chars=3), "4 characters, at most 3 are allowed"),
    ],
)
def test_what_is_said_of_a_judge_pair_that_is_dropped(of: PromptRecord, rules: PairRules, detail: str) -> None:
    outcome = judge_pair(of, rules, EVEN, RUBRIC, 0)
    assert isinstance(outcome, Dropped)
    assert (outcome.kind, outcome.prompt_id, outcome.detail) == ("judge", "p", detail)


def test_ties_of_ratings_have_seeds_of_their_own() -> None:
    """Judgments 0 and 1 win against 2 and 3, and nothing else is decided."""
    verdicts = {(m, n): Tied() for m in range(4) for n in range(4) if m != n}
    wins = {(m, n): m for m in (0, 1) for n in (2, 3)} | {(n, m): m for m in (0, 1) for n in (2, 3)}
    of = argued(verdicts | wins, ("zero", "one", "two", "three"))
    for seed in range(12):
        pair = made(judge_pair(of, PairRules(), EVEN, RUBRIC, seed))
        own = derive(seed, "p", "judge pair")
        expected = derive(own, "highest") % 2, 2 + derive(own, "lowest") % 2
        assert (pair.chosen_index, pair.rejected_index) == expected


def test_ties_of_answers_have_seeds_of_their_own() -> None:
    tied = scored([(5, 1), (5, 2), (5, 3), (1, 4), (1, 5)])
    for seed in range(12):
        pair = made(actor_pair(tied, PairRules(on_tie="random"), seed))
        own = derive(seed, "p", "actor pair")
        expected = derive(own, "chosen") % 3, 3 + derive(own, "rejected") % 2
        assert (pair.chosen_index, pair.rejected_index) == expected


def test_reasoning_is_part_of_what_is_trained() -> None:
    answers = [
        replace(candidate(n, [score, score], text), reasoning=f"<think>{n}</think>")
        for n, (score, text) in enumerate(((5, "good"), (1, "bad")))
    ]
    pair = made(actor_pair(record(answers), PairRules()))
    assert (pair.chosen, pair.rejected) == ("<think>0</think>good", "<think>1</think>bad")
    of = argued(CLEAR)
    judged = replace(
        of.candidates_K[1],
        judgments_N=tuple(replace(each, reasoning=f"<{each.index}>") for each in of.candidates_K[1].judgments_N),
    )
    pair = made(judge_pair(replace(of, candidates_K=(of.candidates_K[0], judged)), PairRules(), EVEN, RUBRIC, 0))
    assert (pair.chosen, pair.rejected) == ("<2>two", "<0>zero")


def test_only_the_chosen_judgment_is_limited() -> None:
    long_loser = argued(CLEAR, ("a very long one", "b", "c"))
    assert made(judge_pair(long_loser, PairRules(max_judgment_chars=1), EVEN, RUBRIC, 0)).chosen == "c"


def test_position_weights_scope() -> None:
    of = argued({(0, 1): 0, (0, 2): 0, (2, 1): 1, (1, 0): None, (2, 0): None, (1, 2): None})
    assert of.dispute is not None
    iteration = PositionWeights(0.9, 0.1, 1, 9)
    own = position_weights(of.dispute.meta)
    for rules, used in (
        (PairRules(position_weights_scope="iteration"), iteration),
        (PairRules(position_weights_scope="answer"), own),
    ):
        pair = made(judge_pair(of, rules, iteration, RUBRIC, 0))
        ratings = fit_elo(battle_matrix(of.dispute, used)).values_M
        assert (pair.chosen_score, pair.rejected_score) == (max(ratings), min(ratings))


@pytest.mark.parametrize("prior", [0.02, 0.1, 1.0])
def test_ratings_have_the_prior_of_the_rules(prior: float) -> None:
    of = argued(CLEAR)
    assert of.dispute is not None
    ratings = fit_elo(battle_matrix(of.dispute, EVEN), prior).values_M
    pair = made(judge_pair(of, PairRules(elo_prior=prior), EVEN, RUBRIC, 0))
    assert (pair.chosen_score, pair.rejected_score) == (max(ratings), min(ratings))


def test_lengths_are_in_characters_not_in_bytes() -> None:
    answers = [
        candidate(0, [5, 5], "ééé"),
        candidate(1, [5, 5], "abcd"),
        candidate(2, [1, 1], "漢字"),
        candidate(3, [1, 1], "xyz"),
    ]
    pair = made(actor_pair(record(answers), PairRules(max_answer_chars=3)))
    assert (pair.chosen, pair.rejected) == ("ééé", "xyz")
    judged = argued(CLEAR, ("zéro", "un", "déüx"))
    assert made(judge_pair(judged, PairRules(max_judgment_chars=4), EVEN, RUBRIC, 0)).chosen == "déüx"


@given(records(), rules_drawn, st.integers(0, 3))
def test_properties_of_judge_pairs(of: PromptRecord, rules: PairRules, seed: int) -> None:
    outcome = judge_pair(of, rules, EVEN, RUBRIC, seed)
    if isinstance(outcome, Dropped):
        assert outcome.reason and outcome.detail and "\n" not in outcome.detail
        return
    assert of.dispute is not None
    assert {outcome.chosen_index, outcome.rejected_index} <= set(of.dispute.judgments_M)
    assert outcome.chosen_score > outcome.rejected_score
    assert outcome.chosen != outcome.rejected
    assert len(outcome.chosen) <= (rules.max_judgment_chars or 10**9)


# All pairs.


def test_position_weights_of_the_whole_iteration() -> None:
    first_wins = argued({(0, 1): 0, (1, 0): 1, (0, 2): 0})
    second_wins = argued({(0, 1): 1})
    weights = iteration_weights([first_wins, second_wins])
    assert weights == PositionWeights(1 / 4, 3 / 4, 3, 1)
    rules = PairRules(min_battles=1)
    pairs, _ = build_pairs([first_wins, second_wins], rules)
    assert of_kind(pairs, "judge")[0] == judge_pair(first_wins, rules, weights, RUBRIC, 0)


def test_the_seed_of_the_run_breaks_the_ties_of_both_kinds() -> None:
    tied = argued({(0, 1): 0, (1, 0): 0, (0, 2): 0, (2, 0): 0, (1, 2): 1, (2, 1): 2})
    answers = tuple(candidate(index, [score] * 3) for index, score in ((7, 5), (8, 5), (9, 1)))
    of, rules = replace(tied, candidates_K=(*answers, tied.candidates_K[1])), PairRules(on_tie="random")
    weights = iteration_weights([of])
    made_by_seed = {seed: build_pairs([of], rules, RUBRIC, seed) for seed in range(12)}
    for seed, (pairs, dropped) in made_by_seed.items():
        assert dropped == ()
        assert pairs == (actor_pair(of, rules, seed), judge_pair(of, rules, weights, RUBRIC, seed))
    for side in ("chosen_index", "rejected_index"):
        assert len({getattr(pair, side) for pairs, _ in made_by_seed.values() for pair in pairs}) > 1
    assert build_pairs([of], rules) == made_by_seed[0]
    assert actor_pair(of, rules) == made_by_seed[0][0][0]


@pytest.mark.parametrize("rules", [PairRules(), PairRules(min_valid=1), PairRules(min_battles=2)])
def test_two_judgments_and_two_comparisons_are_enough(rules: PairRules) -> None:
    judgments = (judgment(0, 1.0, "zero"), judgment(1, 4.0, "one"))
    of = record([Candidate(4, "the answer", "stop", 5, judgments)], dispute({(0, 1): 1, (1, 0): 1}, 2, 4))
    assert made(judge_pair(of, rules, EVEN, RUBRIC, 0)).chosen == "one"


@given(some_records, rules_drawn, st.integers(0, 2**40))
def test_every_prompt_gives_a_pair_or_a_reason(of: list[PromptRecord], rules: PairRules, seed: int) -> None:
    pairs, dropped = build_pairs(of, rules, RUBRIC, seed)
    assert pairs == of_kind(pairs, "actor") + of_kind(pairs, "judge")
    outcomes: list[PreferencePair | Dropped] = [*pairs, *dropped]
    for kind in ("actor", "judge"):
        ids = [outcome.prompt_id for outcome in outcomes if outcome.kind == kind]
        expected = [each.prompt.id for each in of] if kind == "actor" or rules.judge_pairs else []
        assert sorted(ids) == sorted(expected)


@given(some_records, rules_drawn, st.integers(0, 2**40))
def test_pairs_depend_on_records_and_seed_only(of: list[PromptRecord], rules: PairRules, seed: int) -> None:
    pairs, dropped = build_pairs(of, rules, RUBRIC, seed)
    assert build_pairs(iter(of), rules, RUBRIC, seed) == (pairs, dropped)
    reversed_pairs, _ = build_pairs(of[::-1], rules, RUBRIC, seed)
    for kind in ("actor", "judge"):
        assert of_kind(reversed_pairs, kind)[::-1] == of_kind(pairs, kind)
    assert iteration_weights(of[::-1]) == iteration_weights(of)


@pytest.mark.parametrize(
    "wrong",
    [{"rho": -0.1}, {"rho": 1.1}, {"elo_prior": 0.0}, {"elo_prior": math.inf}, {"min_valid": 0}, {"min_battles": 0}],
)
def test_rules_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PairRules(**wrong)


def test_a_pair_says_how_its_answers_ended() -> None:
    rules = PairRules(min_valid=2, mask_truncated_completions=False)
    for good, bad in (("length", "stop"), ("stop", "length")):
        answers = [cut_off(candidate(0, [5, 5])), candidate(1, [1, 1])]
        if good == "stop":
            answers = [candidate(0, [5, 5]), cut_off(candidate(1, [1, 1]))]
        pair = made(actor_pair(record(answers), rules))
        assert (pair.chosen_finish, pair.rejected_finish) == (good, bad)


@pytest.mark.parametrize(("margin", "made"), [(0.0, True), (1.9, True), (2.1, False)])
def test_a_margin_is_in_standard_errors_of_the_difference(margin: float, made: bool) -> None:
    sides = (Scored(4.0, deviation=0.3), Scored(3.0, deviation=0.4))  # a lead of 1 with a standard error of 0.5
    of = record([candidate(n, [side]) for n, side in enumerate(sides)])
    outcome = actor_pair(of, PairRules(min_valid=1, min_margin=margin))
    assert isinstance(outcome, PreferencePair) == made
    if isinstance(outcome, Dropped):
        assert (outcome.reason, outcome.detail) == (
            "margin_too_small",
            "the scores differ by 1 with a standard error of 0.5; 2.1 times that is needed",
        )


def test_a_margin_needs_the_uncertainty_of_both_scores() -> None:
    of = record([candidate(0, [Scored(4.0, deviation=0.1)]), candidate(1, [Scored(1.0)])])
    outcome = actor_pair(of, PairRules(min_valid=1, min_margin=1.0))
    assert isinstance(outcome, Dropped) and outcome.detail == "it isn't known how sure the judge is of both scores"


def test_a_margin_below_0_is_refused() -> None:
    for margin in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="min_margin must be 0 or more"):
            PairRules(min_margin=margin)
