"""The guarded truth: what passes, and that no trick passes which a model could learn instead of answering."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from builders import RUBRIC, candidate, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.engines.base import ScriptedEngine
from metareward.evaluation.constraints.families import FAMILIES
from metareward.evaluation.constraints.prompts import draw_prompts, read_prompt
from metareward.evaluation.constraints.world import ConstraintOracle, ProgramReward, check_answer, criterion_holds
from metareward.evaluation.held_out import DetailedOracle, HeldOut, held_out_differences, held_out_metrics
from metareward.evaluation.verifiable.instructions import Instruction
from metareward.generation.annotate import RubricJudge
from metareward.method.judge import Rubric
from metareward.method.pairs import PairRules, build_pairs
from metareward.types import PromptRecord, Scored

TOMATOES = "Write a short text about growing tomatoes."
GOOD = "Tomatoes like sun and water. Put the plants into rich soil and tie them to a stick."
ITEMS = ("Sun warms the tomatoes.", "Water keeps them alive.", "A stick holds them up.", "Soil feeds the roots.")


def listed(form: str, count: int) -> str:
    return "\n".join(form.format(number, item) for number, item in enumerate(ITEMS[:count], 1))


# Of each family: the sentence, an answer that meets it, and one that doesn't; both pass every guard.
CASES = {
    "words at least": (
        "Use at least 40 words.",
        f"{GOOD} Then wait until late summer, pick what is red, and eat it with bread, salt and a little oil in the "
        "garden with your friends or your family.",
        GOOD,
    ),
    "words below": ("Use fewer than 20 words.", GOOD, f"{GOOD} Wait until late summer and pick what is red."),
    "sentences at least": ("Write at least 3 sentences.", f"{GOOD} Then wait.", GOOD),
    "different words": (
        "Use at least 30 different words.",
        f"{GOOD} Wait until late summer, pick what is red, then eat it from your garden during warm evenings.",
        GOOD,
    ),
    "bullets": ('Use exactly 3 bullet points that start with "- ".', listed("- {1}", 3), listed("- {1}", 4)),
    "numbered list": ("Write a numbered list with exactly 3 items.", listed("{0}. {1}", 3), listed("- {1}", 3)),
    "title": (
        "Begin with a title in double angle brackets, as in <<A title>>.",
        f"<<Red fruit>>\n{GOOD}",
        f"Red fruit\n{GOOD}",
    ),
    "postscript": (
        'Add a postscript that starts with "P.S." at the end.',
        f"{GOOD}\nP.S. Basil is a good neighbour.",
        GOOD,
    ),
    "one line": ("Write it as one paragraph without line breaks.", GOOD, GOOD.replace(". Put", ".\n\nPut")),
    "keyword": ('Use the word "water".', GOOD, GOOD.replace("water", "warmth")),
    "keyword twice": ('Use the word "water" at least twice.', f"{GOOD} Give them more water in July.", GOOD),
    "forbidden word": ('Don\'t use the word "important".', GOOD, f"{GOOD} Patience is important."),
    "no comma": ("Don't use any commas.", GOOD, GOOD.replace("sun and", "sun, wind and")),
    "word range": ("Use between 20 and 40 words.", f"{GOOD} Then wait until they turn red.", GOOD),
    "letters": ('Use the letter "w" at least 6 times.', f"{GOOD} We will wait a while, always with wonder.", GOOD),
    "opening": ('Begin with the words "Dear reader".', f"Dear reader, {GOOD}", f"Reader, {GOOD}"),
    "digits": ("Mention at least one number, written in digits.", f"{GOOD} Leave 40 cm.", f"{GOOD} Leave four feet."),
    "question": ("End with a question.", f"{GOOD} Will you try?", GOOD),
    "conjunctions": (
        "Use at least 2 different words of these: and, but, or, so, for, nor, yet.",
        f"{GOOD} Wait, but not too long.",
        GOOD,
    ),
    "pronouns": (
        "Use at least 3 pronouns, such as I, you, it, they.",
        f"I say: they like you. {GOOD}",
        GOOD.replace("them", "each"),
    ),
}


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_each_family_tells_an_answer_that_meets_it_from_one_that_does_not(name: str) -> None:
    sentence, met, unmet = CASES[name]
    asked = f"{TOMATOES} {sentence}"
    assert [each.family for each in read_prompt(asked).constraints] == [name]
    right, wrong = check_answer(asked, met), check_answer(asked, unmet)
    assert right.constraints == (True,) and wrong.constraints == (False,)
    assert right.passes and not wrong.passes
    assert right.guards == wrong.guards  # all of them


def test_the_library_checks_what_it_can() -> None:
    own = {"numbered list", "one line", "opening", "digits", "question"}
    for name, (sentence, _, _) in CASES.items():
        (constraint,) = read_prompt(f"{TOMATOES} {sentence}").constraints
        assert isinstance(constraint.check, Instruction) != (name in own)


WATER = f'{TOMATOES} Use the word "water".'
LOOP = "Tomatoes like the sun a lot. " * 4
# What a model could learn to answer instead, and which guards it fails.
TRICKS = {
    "the bare form": ("*water*", {"topic", "length", "finished"}),
    "the word and the topic alone": ("Tomatoes, water.", {"length"}),
    "off the topic": ("The weather is nice today, and we all went to the water with friends.", {"topic"}),
    "the prompt again": (WATER, {"topic"}),
    "the prompt and more": (f"Ok! {WATER} Ok.", {"topic"}),
    "cut off": ("Tomatoes like sun and water, and you should put the plants into a", {"finished"}),
    "cut off after a comma": ("Tomatoes like sun and water, and you should put the plants,", {"finished"}),
    "cut off in a list": ("Tomatoes like much:\n- sun and warm air.\n- water, and a stick to", {"finished"}),
    "a loop of sentences": (f"{LOOP}Water, too.", {"no_loops"}),
    "a loop without full stops": ("tomatoes and sun and more and " * 6 + "water.", {"no_loops"}),
    "one word again and again": ("Tomatoes need water: tomato tomato tomato tomato tomato.", {"no_loops"}),
    "a list of the same items": ("Tomatoes love:\n" + "- sun, water, soil, air.\n" * 4, {"no_loops"}),
    "punctuation": ("*!* " * 20 + ".", {"topic", "length", "finished", "no_loops"}),
    "nothing": ("", {"topic", "length", "finished", "no_loops"}),
    "white space": (" \n\t ", {"topic", "length", "finished", "no_loops"}),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_tricks_fail_the_guards_that_are_about_them_and_score_less_than_an_honest_miss(trick: str) -> None:
    answer, fails = TRICKS[trick]
    guards = check_answer(WATER, answer).guards
    assert {name for name in ("topic", "length", "finished", "no_loops") if not getattr(guards, name)} == fails
    oracle, given = ConstraintOracle(), prompt(WATER)
    honest = oracle.answer_score(given, GOOD.replace("water", "warmth"))
    assert oracle.answer_score(given, answer) < honest == pytest.approx(2.0)
    assert oracle.answer_score(given, GOOD) == 5.0


def test_three_guards_are_programs_of_criteria(tmp_path: Path) -> None:
    names = {"finished": "finished", "long_enough": "length", "without_loops": "no_loops"}
    path = "metareward.evaluation.constraints.world"
    mine = tmp_path / "mine.yaml"
    mine.write_text("criteria:\n" + "".join(f"  - {{program: '{path}:{name}'}}\n" for name in names), encoding="utf-8")
    judge = RubricJudge(ScriptedEngine(lambda m, s, i: "not asked"), Rubric.load(str(mine), max_score=3))
    for answer in (GOOD, *(answer for answer, _ in TRICKS.values())):
        ((judgment,), guards) = asyncio.run(judge.judge(prompt(WATER), answer, 1)), check_answer(WATER, answer).guards
        expected = [float(getattr(guards, guard)) for guard in names.values()]
        assert [each.probability for each in judgment.criteria] == expected
        assert judgment.reading == Scored(sum(expected), deviation=0.0)


@pytest.mark.parametrize(
    "end", ["they grow.", "they grow!", "do they grow?", 'they "grow."', "they grow (a lot).", "**grow.**"]
)
def test_finished_texts_end_in_many_ways(end: str) -> None:
    assert check_answer(
        f"{TOMATOES} Don't use any commas.", f"With sun and water tomatoes grow and {end}"
    ).guards.finished


def test_part_of_the_constraints_gives_part_of_the_score() -> None:
    asked = prompt(f"{TOMATOES} Don't use any commas. End with a question.")
    oracle = ConstraintOracle(0, 10)
    assert [oracle.answer_score(asked, text) for text in (GOOD, f"{GOOD} Try?")] == [pytest.approx(7.0), 10.0]
    assert oracle.answer_score(asked, f"{GOOD.replace('sun and', 'sun,')}") == pytest.approx(4.0)


@settings(max_examples=25)
@given(answer=st.text(max_size=200), seed=st.integers(0, 50), high=st.sampled_from([1.0, 5.0, 10.0]))
def test_any_text_has_a_score_on_the_scale_and_the_full_one_only_if_it_passes(
    answer: str, seed: int, high: float
) -> None:
    (asked,) = draw_prompts(1, seed)
    oracle = ConstraintOracle(-1.0, high)
    score = oracle.answer_score(asked, answer)
    assert -1.0 <= score <= high
    assert (score == oracle.full_score) == check_answer(asked.messages[-1].content, answer).passes
    assert oracle.answer_score(asked, answer) == score


def test_the_judgment_nearer_to_the_truth_has_the_smaller_error() -> None:
    asked, oracle = prompt(f"{TOMATOES} Don't use any commas."), ConstraintOracle()
    errors = [oracle.judgment_error(asked, GOOD, f"Score: {score}", score) for score in (5, 4, 0)]
    assert errors == [(0.0,), (1.0,), (5.0,)]


def test_the_program_as_reward_gives_its_scores() -> None:
    asked = prompt(f"{TOMATOES} Don't use any commas.")
    answers = [GOOD, GOOD.replace("sun and", "sun,"), "*word*"]
    scores = asyncio.run(ProgramReward().score(asked, answers))
    assert scores == [5.0, pytest.approx(2.0), pytest.approx(0.5)]


def test_the_metrics_of_the_held_out_evaluation_are_the_programs() -> None:
    asked = prompt(f"{TOMATOES} Don't use any commas.")
    own = (candidate(0, [5, 2], text=GOOD), candidate(1, [2, 2], text=GOOD.replace("sun and", "sun,")))
    record = HeldOut(asked, own, own, ())
    found = held_out_metrics([record], {asked.id: record}, ConstraintOracle(), 0)
    assert {name: found[name]["mean"] for name in ("answer_quality", "answer_perfect", "judgment_exact")} == {
        "answer_quality": pytest.approx(3.5),
        "answer_perfect": 0.5,
        "judgment_exact": 0.75,
    }


def test_pairs_of_the_program_prefer_the_answer_that_passes_and_leave_cut_off_ones_out() -> None:
    asked = prompt(f"{TOMATOES} Don't use any commas.")
    cut = replace(candidate(2, [], text=f"{GOOD} Wait."), finish="length")
    texts = (GOOD.replace("sun and", "sun,"), GOOD)
    found = [
        replace(each, reward=0.0) for each in (candidate(0, [], text=texts[0]), candidate(1, [], text=texts[1]), cut)
    ]
    scores = asyncio.run(ProgramReward().score(asked, [each.text for each in found]))
    scored = tuple(replace(each, reward=score) for each, score in zip(found, scores, strict=True))
    rules = PairRules(rho=0, max_answer_chars=None, judge_pairs=False, max_judgment_chars=None)
    pairs, _ = build_pairs([PromptRecord(asked, scored, (), None)], rules, RUBRIC, 0)
    assert [(each.chosen, each.rejected) for each in pairs] == [(texts[1], texts[0])]


def test_the_program_answers_criteria() -> None:
    prompt = f'{TOMATOES} Don\'t use any commas. Use the word "water".'
    whole, comma, other = GOOD, GOOD.replace(". Put", ", put"), "Cats like sun and milk, and a warm place on a chair"

    def holds(answer: str, question: str, sentence: str | None = None) -> bool | None:
        return criterion_holds(prompt, answer, question, sentence)

    for sentence, expected in (
        (TOMATOES, [True, True, False]),
        ("Don't use any commas.", [True, False, False]),
        ('Use the word "water".', [True, True, False]),
        ("Sing.", [None, None, None]),
    ):
        assert [holds(each, f'Does it "{sentence}"?', sentence) for each in (whole, comma, other)] == expected
    assert [holds(each, "Is the response complete?") for each in (whole, other)] == [True, False]
    assert [holds(each, "Is it about its topic?") for each in (whole, other)] == [True, False]
    assert holds(f"{GOOD} {GOOD}", "Does it not repeat itself?") is False
    assert holds(whole, "Is it good?") is None and holds(whole, "Is it complete and about its topic?") is None


def test_the_oracle_tells_the_kinds_of_held_out_prompts_and_the_guards_apart() -> None:
    text = f"{TOMATOES} Don't use any commas."
    oracle = ConstraintOracle(0.0, 1.0)
    assert isinstance(oracle, DetailedOracle)
    passed = oracle.details(prompt(text, "held-out-family-00007"), GOOD)
    guards = dict.fromkeys(("guard_topic", "guard_length", "guard_finished", "guard_no_loops"), True)
    assert passed == {"passes_family": True, "constraints_met": True, **guards}
    failed = oracle.details(prompt(text, "held-out-topic-00007"), "Tomatoes, and")
    lost = {"guard_length": False, "guard_finished": False}
    assert failed == {"passes_topic": False, "constraints_met": False, **guards, **lost}
    assert "passes_topic" not in oracle.details(prompt(text, "constraints-00001"), GOOD)  # a training prompt


def test_metrics_and_paired_differences_by_kind() -> None:
    """M1 passes one more new family, and nothing else changes: the difference is the mean of 1, 0 and 0."""

    def records(*answers: str) -> list[HeldOut]:
        text = f"{TOMATOES} Don't use any commas."
        names = [*(f"held-out-family-{i}" for i in range(3)), *(f"held-out-topic-{i}" for i in range(2))]
        made = ([candidate(0, [1.0], text=answer)] for answer in answers)
        return [HeldOut(prompt(text, name), tuple(own), tuple(own), ()) for name, own in zip(names, made, strict=True)]

    bad = GOOD.replace(" and", ",", 1)
    first, later = records(bad, bad, GOOD, GOOD, bad), records(GOOD, bad, GOOD, GOOD, bad)
    anchors = {each.prompt.id: each for each in first}
    oracle = ConstraintOracle(0.0, 1.0)
    found = held_out_metrics(later, anchors, oracle, 0)
    assert found["passes_family"]["mean"] == pytest.approx(2 / 3) and found["passes_family"]["n"] == 3
    assert found["passes_topic"]["mean"] == 0.5 and found["answer_perfect"]["mean"] == pytest.approx(0.6)
    assert found["constraints_met"]["mean"] == pytest.approx(0.6) and found["guard_topic"]["mean"] == 1.0
    paired = held_out_differences(later, anchors, oracle)
    t, error = 4.302653, (1 / 3) ** 0.5 / 3**0.5  # of 2 degrees of freedom; the values 1, 0, 0
    by_family = paired["passes_family"]
    assert by_family == {
        "mean": pytest.approx(1 / 3),
        "low": pytest.approx(1 / 3 - t * error),
        "high": pytest.approx(1 / 3 + t * error),
        "n": 3,
    }
    assert paired["passes_topic"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "n": 2}
    assert paired["answer_chars"]["mean"] == pytest.approx((len(GOOD) - len(bad)) / 5)
    assert "anchor_score" not in paired and "guard_topic" not in held_out_differences(later, anchors, None)
