from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from metareward.config.schema import load_recipe
from metareward.generation.progress import ANSWERS, JUDGMENTS, META
from metareward.generation.throughput import Rates
from metareward.pipeline.plan import Plan, plan, plan_table

GIVEN = ["model=nowhere", "prompts.source=p"]


def calls(made: Plan, t: int) -> dict[str, int]:
    return {role.role: role.calls for role in made.iterations[t - 1].roles}


def shown(made: Plan) -> str:
    stream = io.StringIO()
    Console(file=stream, width=140).print(plan_table(made))
    return stream.getvalue()


def test_meta_rewarding_costs_what_the_paper_says() -> None:
    made = plan(load_recipe("meta-rewarding", GIVEN))
    assert calls(made, 1) == {ANSWERS: 35_000, JUDGMENTS: 385_000, META: 550_000}
    assert calls(made, 3) == {ANSWERS: 35_000, JUDGMENTS: 385_000, META: 0}
    assert [(each.actor_pairs, each.judge_pairs) for each in made.iterations] == [(5000, 5000)] * 2 + [(5000, 0)] * 2
    # 10,000 pairs in batches of 32 are 313 steps an epoch, and 6 of the 10 epochs are trained.
    assert [each.steps for each in made.iterations] == [313 * 6, 313 * 4, 157 * 2, 157 * 2]
    assert (made.prompts_needed, made.held_out) == (20_000, 256)


def test_some_pairs_of_judgments_cost_less_and_rounds_at_most_as_much() -> None:
    made = plan(load_recipe("meta-rewarding", [*GIVEN, "meta_judgments.max_pairs=22", "judgments.first_round=4"]))
    assert calls(made, 1) == {ANSWERS: 35_000, JUDGMENTS: 385_000, META: 220_000}
    more_than_there_are = plan(load_recipe("meta-rewarding", [*GIVEN, "meta_judgments.max_pairs=99"]))
    assert calls(more_than_there_are, 1)[META] == 550_000


def test_self_rewarding_asks_no_meta_judge() -> None:
    made = plan(load_recipe("self-rewarding", GIVEN))
    assert calls(made, 1) == {ANSWERS: 40_000, JUDGMENTS: 120_000, META: 0}
    assert all(role.calls == 0 for each in made.evaluations for role in each.roles if role.role == META)


def test_every_model_is_evaluated_and_later_ones_judge_the_answers_of_m0_too() -> None:
    changes = ["prompts.held_out=10", "evaluation.answers=2", "evaluation.judgments=3", "evaluation.meta_pairs=4"]
    made = plan(load_recipe("pocket", changes))
    assert [each.model for each in made.evaluations] == ["M0", "M1", "M2", "M3", "M4"]
    assert [role.calls for role in made.evaluations[0].roles] == [20, 60, 80]
    assert [role.calls for role in made.evaluations[1].roles] == [20, 120, 80]


def test_tokens_are_bounded_by_the_limits_until_they_are_measured() -> None:
    recipe = load_recipe("pocket", ["answers.max_tokens=10"])
    assert plan(recipe).iterations[0].roles[0].tokens == 10 * plan(recipe).iterations[0].roles[0].calls
    measured = plan(recipe, Rates(tokens_each={ANSWERS: 2.5}))
    assert measured.iterations[0].roles[0].tokens == round(2.5 * measured.iterations[0].roles[0].calls)
    assert "with measured lengths" in shown(measured)


def test_constrained_verdicts_and_retries_are_counted() -> None:
    changes = ["judgments.max_tokens=10", "meta_judgments.max_tokens=20", "iterations.2.judge_pairs=false"]
    plain = plan(load_recipe("pocket", changes))
    assert plain.verdict_requests == 0 and "verdicts:" not in shown(plain)
    drawn = ["judgments.verdict=constrained", "judgments.retries=1", "meta_judgments.retries=2"]
    made = plan(load_recipe("pocket", [*changes, *drawn]))
    assert calls(made, 1) == calls(plain, 1)
    tokens = {role.role: role.tokens / role.calls for role in made.iterations[0].roles}
    assert (tokens[JUDGMENTS], tokens[META]) == (2 * (10 + 8), 3 * 20)
    # A benchmark that is judged by the run's rubric has constrained verdicts, too.
    roles = [role for role in made.roles if role.role == JUDGMENTS]
    assert made.verdict_requests == sum(role.calls for role in roles)
    assert f"verdicts: constrained ones take {made.verdict_requests:,} more requests" in shown(made)


def test_how_many_gpus_of_a_cluster_are_kept_busy_is_said() -> None:
    assert "in_flight" not in plan(load_recipe("pocket", ["training.launcher=ray"])).engine
    replicas = plan(load_recipe("pocket", ["engine={kind: ray, engine: {dtype: float32}}", "prompts.in_flight=256"]))
    assert "; prompts.in_flight, 256, keeps about 4 GPUs busy" in replicas.engine


def test_time_needs_a_rate() -> None:
    recipe = load_recipe("pocket")
    assert plan(recipe).seconds is None
    assert "time: give --measure" in shown(plan(recipe))
    timed = plan(recipe, Rates(tokens_per_second=1000))
    assert timed.seconds == pytest.approx(timed.tokens / 1000)
    assert "hours to generate and evaluate" in shown(timed)


def test_disk_counts_a_model_for_each_iteration(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1_000_000)
    made = plan(load_recipe("pocket", [f"model={tmp_path}"]))
    assert made.model_bytes == 4_000_000
    assert "models 4 MB" in shown(made)
    assert "models unknown until" in shown(plan(load_recipe("meta-rewarding", GIVEN)))


def test_held_out_prompts_of_a_file_are_counted(tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    recipe = load_recipe("pocket", [f"prompts.held_out={held}"])
    assert plan(recipe).held_out is None
    assert "an unknown number" in shown(plan(recipe))
    held.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert plan(recipe).held_out == 2
    assert plan(recipe).prompts_needed == recipe.prompts.per_iteration * 4


def test_the_table_shows_every_iteration_and_the_sum() -> None:
    text = shown(plan(load_recipe("meta-rewarding", GIVEN)))
    assert text.count("550,000") == 2
    assert all(f"iteration {t}" in text for t in (1, 2, 3, 4))
    assert "evaluating M0..M4" in text and "20,000 to train on, 256 others" in text


def test_benchmarks_are_counted_where_they_ask(tmp_path: Path) -> None:
    turns = '{"question_id": 1, "category": "math", "turns": ["a", "b"]}\n'
    (tmp_path / "questions.jsonl").write_text(turns)
    (tmp_path / "recipe.yaml").write_text(
        f"""extends: pocket
benchmarks:
  - {{kind: alpaca_eval, judge: other-model, models: [2]}}
  - {{kind: arena_hard, judge: itself, against: previous, models: [1], judgments: 2}}
  - {{kind: mt_bench, questions: {tmp_path}/questions.jsonl, prompt: prompts.jsonl}}
  - {{kind: judge_quality}}
"""
    )
    recipe = load_recipe(str(tmp_path / "recipe.yaml"), ["prompts.held_out=10", "judgments.max_tokens=7"])
    made = plan(recipe, Rates(tokens_per_second=10))
    assert made.benchmarks is not None and made.uncounted is None and made.other_judges
    told = [[(role.role, role.calls, role.tokens) for role in each.roles] for each in made.benchmarks]
    # Judge quality on held-out answers counts what is there. Each model answers two turns, and both are judged.
    turn_by_turn = [(ANSWERS, 2, 2 * recipe.answers.max_tokens), (JUDGMENTS, 2, 2 * 2048)]
    assert told[0] == told[3] == told[4] == turn_by_turn
    assert told[1] == [(JUDGMENTS, 40, 280), *turn_by_turn]
    assert told[2] == [(JUDGMENTS, 60, 420), *turn_by_turn]
    assert made.benchmarks[2].roles[0].seconds == 0
    assert "and judges that are other models" in shown(made)


def test_questions_that_aren_t_there_are_told() -> None:
    asked = 'benchmarks=[{"kind": "alpaca_eval", "questions": "nowhere.json"}]'
    made = plan(load_recipe("pocket", [asked]))
    assert made.benchmarks is None and "nowhere.json" in str(made.uncounted)
    assert "benchmarks: not counted" in shown(made)


def test_the_preset_s_own_benchmarks_ask_nothing() -> None:
    made = plan(load_recipe("pocket"))
    assert made.benchmarks is not None and all(not each.roles for each in made.benchmarks)
    assert "benchmarks" not in shown(made)


def test_memory_of_training_follows_how_it_is_trained() -> None:
    full, lora, spread = (
        plan(load_recipe("pocket", changes)).training_bytes
        for changes in ([], ["training.method=lora"], ["training.num_processes=2", "training.sharding=fsdp2"])
    )
    assert full is not None and lora is not None and spread is not None
    assert spread[0] < full[0] and lora[0] < full[0]
    assert 2 * spread[1] == full[1]  # one model while it is saved; policy and reference while they are loaded
    assert plan(load_recipe("pocket", ["model=nowhere"])).training_bytes is None


def test_criteria_are_one_judgment_of_several_one_token_questions(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("criteria:\n  - Is it clear?\n  - 'Does it do this: {sentence}'\n", encoding="utf-8")
    one = ["judgments.n=1", "judgments.min_valid=1", "evaluation.judgments=1", "evaluation.meta_pairs=0"]
    without = [f"iterations.{t}.judge_pairs=false" for t in (1, 2, 3, 4)]
    made = plan(load_recipe("pocket", [*one, *without, f"judgments.rubric={mine}", "judgments.verdict=constrained"]))
    judged = next(role for role in made.iterations[0].roles if role.role == JUDGMENTS)
    assert judged.calls == calls(made, 1)[ANSWERS] and judged.tokens == 13 * judged.calls
    assert (made.questions, made.verdict_requests) == (13, 0)
    assert "criteria: each judgment asks up to 13 questions of one token" in shown(made)
