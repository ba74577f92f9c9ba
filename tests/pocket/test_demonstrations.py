"""Demonstrations: right with clean habits, and with faults as often as the habits say."""

import random
from dataclasses import replace

from metareward.pocket.build import CARELESS, FAULTY
from metareward.pocket.demonstrations import CLEAN, METARUBRIC, RUBRIC, answer, demonstrations, judgment, verdict
from metareward.pocket.tasks import draw_instruction, parse_instruction
from metareward.pocket.world import check_answer
from metareward.types import Scored, Unparsed, Won


def test_clean_demonstrations_are_right() -> None:
    rng = random.Random(0)
    for _ in range(300):
        instruction = draw_instruction(rng)
        text = answer(parse_instruction(instruction), CLEAN, rng)
        assert check_answer(instruction, text).score == 5
        marks = check_answer(instruction, answer(parse_instruction(instruction), FAULTY, rng))
        assert RUBRIC.read(judgment(marks, CLEAN, rng), "stop") == Scored(marks.score)


def test_the_clean_meta_judge_names_the_better_judgment_in_both_orders() -> None:
    rng = random.Random(0)
    marks = check_answer("Write egg 2 times.", "egg, egg, egg")
    good, bad = judgment(marks, CLEAN, rng), "kind yes, count yes, items yes, order yes, brief yes. Score: 5"
    assert METARUBRIC.read(verdict(marks, good, bad, CLEAN, rng), "stop", 0, 1) == Won(0)
    assert METARUBRIC.read(verdict(marks, bad, good, CLEAN, rng), "stop", 0, 1) == Won(1)


def test_the_faulty_start_is_right_less_than_half_of_the_time() -> None:
    rng = random.Random(0)
    scores = []
    for _ in range(2000):
        instruction = draw_instruction(rng)
        scores.append(check_answer(instruction, answer(parse_instruction(instruction), FAULTY, rng)).score)
    assert sum(score == 5 for score in scores) < 0.5 * len(scores)
    assert 2.0 < sum(scores) / len(scores) < 3.5


def test_talk_seduces_and_unreadable_judgments_are_unreadable() -> None:
    rng = random.Random(0)
    chatty = check_answer("Write egg 2 times.", "Sure, here you are: fox")
    seduced = replace(CLEAN, chat_bias=1.0)
    assert RUBRIC.read(judgment(chatty, seduced, rng), "stop") == Scored(5)
    unreadable = replace(CLEAN, unreadable=1.0)
    assert all(isinstance(RUBRIC.read(judgment(chatty, unreadable, rng), "stop"), Unparsed) for _ in range(20))


def test_demonstrations_follow_from_their_seed_and_use_the_words_of_a_run() -> None:
    shown = list(demonstrations(50, 1, CARELESS.task_mix))
    assert shown == list(demonstrations(50, 1, CARELESS.task_mix))
    assert shown != list(demonstrations(50, 2, CARELESS.task_mix))
    assert {one.role for one in shown} == {"actor", "judge", "meta_judge"}
    heads = {one.role: one.messages[-1].content.split("\n")[0] for one in shown if one.role != "actor"}
    assert heads["judge"] == RUBRIC.template.text.split("\n")[0]
    assert heads["meta_judge"] == METARUBRIC.template.text.split("\n")[0]
