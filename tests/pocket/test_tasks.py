"""The pocket world's instructions: understood from their text alone, and split once and for all."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metareward.pocket.tasks import FAMILIES, Family, draw_instructions, is_held_out, parse_instruction
from metareward.pocket.world import check_answer, prompts

seeds = st.integers(0, 2**32)


def test_there_are_at_least_eight_families() -> None:
    assert len({family.name for family in FAMILIES}) >= 8


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@given(seed=seeds)
def test_what_a_family_writes_is_understood_as_its_own_and_its_right_answer_scores_five(
    family: Family, seed: int
) -> None:
    instruction = family.draw(random.Random(seed))
    task = parse_instruction(instruction)
    assert task.family == family.name
    assert check_answer(instruction, ", ".join(task.expected)).score == 5


@pytest.mark.parametrize(
    ("instruction", "answer"),
    [
        ("Sort from high to low: 4, 30, 12.", "30, 12, 4"),
        ("Say backwards: cat, red, saw.", "saw, red, cat"),
        ("Count from 7 to 4.", "7, 6, 5, 4"),
        ("Write egg 3 times.", "egg, egg, egg"),
        ("Keep only the foods: egg, dog, rice, red.", "egg, rice"),
        ("Leave out dog: egg, dog, rice.", "egg, rice"),
        ("Pick the smallest: 9, 3, 30.", "3"),
        ("Fill in town, name: Ann is 31 and lives in Oslo.", "town Oslo, name Ann"),
    ],
)
def test_right_answers(instruction: str, answer: str) -> None:
    assert ", ".join(parse_instruction(instruction).expected) == answer


def test_other_text_is_refused() -> None:
    with pytest.raises(ValueError, match="not an instruction"):
        parse_instruction("Write a poem.")


@given(seed=seeds)
def test_held_out_instructions_are_never_among_the_others(seed: int) -> None:
    assert not any(is_held_out(text) for text in draw_instructions(20, seed))
    assert all(is_held_out(text) for text in draw_instructions(5, seed, held_out=True))


def test_prompts_are_different_and_the_same_for_a_seed() -> None:
    drawn = prompts(200, 3)
    assert drawn == prompts(200, 3)
    assert drawn != prompts(200, 4)
    assert len({prompt.messages for prompt in drawn}) == len({prompt.id for prompt in drawn}) == 200
