"""The constraint world's prompts: read back from their text; those to train on and held-out ones are disjoint."""

from __future__ import annotations

import random
import re
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metareward.evaluation.constraints.families import FAMILIES, Family
from metareward.evaluation.constraints.prompts import (
    TASKS,
    TOPICS,
    Task,
    draw_held_out,
    draw_prompts,
    is_held_out_combination,
    is_held_out_topic,
    read_prompt,
)
from metareward.types import Prompt

seeds = st.integers(0, 2**32)
TAGS = {family.name: family.tags for family in FAMILIES}
NEW = {family.name for family in FAMILIES if family.held_out}


def task_of(prompt: Prompt) -> Task:
    return read_prompt(prompt.messages[-1].content)


def families(prompt: Prompt) -> frozenset[str]:
    return frozenset(each.family for each in task_of(prompt).constraints)


def test_there_are_at_least_fifteen_families_to_train_on_and_some_to_hold_out() -> None:
    assert len(TAGS) == len(FAMILIES)
    assert len(TAGS) - len(NEW) >= 15 and len(NEW) >= 3
    held_out = sum(map(is_held_out_topic, TOPICS))
    assert 20 <= held_out <= len(TOPICS) / 2


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_is_read_as_itself_with_the_value_that_it_drew(family: Family) -> None:
    for seed in range(20):
        sentence = family.draw(random.Random(seed))
        task = read_prompt(f"{TASKS[seed % len(TASKS)].format(topic='honey')} {sentence}")
        assert [(each.family, each.sentence) for each in task.constraints] == [(family.name, sentence)]
        assert task.topic == "honey"


@settings(max_examples=15)
@given(seed=seeds)
def test_a_prompt_is_its_task_and_the_sentences_of_its_families(seed: int) -> None:
    for prompt in (*draw_prompts(20, seed), *draw_held_out(12, seed)):
        text, task = prompt.messages[-1].content, task_of(prompt)
        starts = [each.format(topic=task.topic) for each in TASKS]
        assert text in [" ".join([start, *(each.sentence for each in task.constraints)]) for start in starts]
        names = [each.family for each in task.constraints]
        assert 1 <= len(names) <= 3 and len(set(names)) == len(names)
        assert not any(TAGS[first] & TAGS[second] for first, second in combinations(names, 2))


@settings(max_examples=10)
@given(training=seeds, evaluation=seeds)
def test_training_and_evaluation_share_no_topic_no_new_family_and_no_new_combination(
    training: int, evaluation: int
) -> None:
    trained_on, held_out = draw_prompts(60, training), draw_held_out(40, evaluation)
    assert not {task_of(each).topic for each in trained_on} & {task_of(each).topic for each in held_out}
    assert not {each.messages for each in trained_on} & {each.messages for each in held_out}
    kinds = {kind: [each for each in held_out if each.id.startswith(f"held-out-{kind}")] for kind in KINDS}
    assert {kind: len(each) for kind, each in kinds.items()} == {"topic": 20, "combination": 10, "family": 10}
    assert not any(families(each) & NEW for each in (*trained_on, *kinds["topic"], *kinds["combination"]))
    assert all(families(each) & NEW for each in kinds["family"])
    assert all(is_held_out_combination(sorted(families(each))) for each in kinds["combination"])
    assert not any(is_held_out_combination(sorted(families(each))) for each in (*trained_on, *kinds["topic"]))


KINDS = ("topic", "combination", "family")


def test_new_combinations_are_a_share_of_all_and_single_families_never_are() -> None:
    names = sorted(TAGS)
    pairs = [is_held_out_combination(pair) for pair in combinations(names, 2)]
    assert 0.1 < sum(pairs) / len(pairs) < 0.3
    assert not any(is_held_out_combination([name]) for name in names)
    assert all(is_held_out_combination(pair) == is_held_out_combination(pair[::-1]) for pair in combinations(names, 2))


def test_prompts_are_different_and_the_same_for_a_seed() -> None:
    drawn = draw_prompts(3000, 3)
    assert drawn[:50] == draw_prompts(50, 3) != draw_prompts(50, 4)
    assert len({prompt.messages for prompt in drawn}) == len({prompt.id for prompt in drawn}) == 3000
    assert draw_held_out(40, 3) == draw_held_out(40, 3) != draw_held_out(40, 4)


def test_topics_name_themselves() -> None:
    assert [topic for topic, named in TOPICS.items() if not re.search(rf"\b(?:{named})", topic, re.IGNORECASE)] == []


@pytest.mark.parametrize(
    "text",
    ["Write a poem.", "Write a short text about love.", "Write a short text about honey. Use some words.", ""],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        read_prompt(text)
