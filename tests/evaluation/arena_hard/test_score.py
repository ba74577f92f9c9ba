"""Arena-Hard: verdicts, scores, bootstrap intervals and style control against scikit-learn."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args

import builders  # noqa: F401  (sets hypothesis up)
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_up import lines, match, table
from sklearn.linear_model import LogisticRegression

from metareward.errors import UserError
from metareward.evaluation.arena_hard.data import (
    Answer,
    Match,
    Style,
    Verdict,
    Version,
    by_model,
    count_style,
    needs_retry,
    read_answers,
    read_judge_prompt,
    read_judgments,
    read_questions,
    read_verdict,
    verdict,
    version_named,
)
from metareward.evaluation.arena_hard.run import results
from metareward.evaluation.arena_hard.score import evaluate, rating, scores, style_battles, to_battles
from metareward.method.elo import fit_elo

VERDICTS = get_args(Verdict)
MIRROR: dict[Verdict, Verdict] = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}
games = st.tuples(st.sampled_from([*VERDICTS, None]), st.sampled_from([*VERDICTS, None]))


# --- verdicts ---


@pytest.mark.parametrize(
    ("text", "older", "newer"),
    [
        ("My final verdict is [[A>B]].", "A>B", "A>B"),
        ("[[B>>A]] and again [[B>>A]]", "B>>A", "B>>A"),
        ("[[A=B]], no: [[A>B]]", None, "A>B"),
        ("verdict [B>A]", None, "B>A"),
        ("[[a>>b]]", None, "A>>B"),
        ("[[A<<B]]", "B>>A", "B>>A"),
        ("[[B=A]]", "A=B", "A=B"),
        ("[[A]] or [[AB]]", None, None),
        ("nothing", None, None),
    ],
)
def test_a_verdict_is_read(text: str, older: Verdict | None, newer: Verdict | None) -> None:
    assert read_verdict(text, "v0.1") == older
    assert read_verdict(text, "v2") == newer


def test_only_v0_1_asks_again_after_a_reply_without_a_label() -> None:
    assert needs_retry("I wonder", "v0.1") and not needs_retry("I wonder", "v2")
    assert not needs_retry("[[A>B]] [[B>A]]", "v0.1")


def test_unknown_versions_are_refused() -> None:
    assert version_named("v2") == "v2"
    with pytest.raises(UserError, match=r"v0\.1, v2"):
        version_named("v1")
    assert verdict("A>C") is None


# --- scores ---


def test_a_score_by_hand() -> None:
    # Game 1: the model is B and wins strongly (3 battles won). Game 2: the model is A and ties.
    fought = to_battles([match("q", "m", "B>>A", "A=B")], "v0.1")
    assert scores(fought) == [pytest.approx(100 * 3.5 / 4)]
    assert rating(87.5) == pytest.approx(1000 + 400 * np.log10(7))
    assert rating(50.0) == 1000
    assert rating(100.0) is rating(0.0) is rating(None) is None


def test_a_game_without_a_verdict_is_left_out_in_v0_1_and_its_question_in_v2() -> None:
    matches = [match("q", "m", None, "A>B"), match("r", "m", "A>B", "B>A")]
    assert scores(to_battles(matches, "v0.1")) == [pytest.approx(100 / 3)]
    assert scores(to_battles(matches, "v2")) == [0.0]


@given(st.lists(games, min_size=1, max_size=8))
def test_swapping_the_models_gives_100_minus_the_win_rate(drawn: list[tuple[Verdict | None, Verdict | None]]) -> None:
    here = [match(str(i), "m", *pair) for i, pair in enumerate(drawn)]
    there = [match(str(i), "m", *(each and MIRROR[each] for each in pair)) for i, pair in enumerate(drawn)]
    version: Version
    for version in ("v0.1", "v2"):
        (one,), (other,) = scores(to_battles(here, version)), scores(to_battles(there, version))
        assert (one is None) == (other is None)
        assert one is None or other is None or one == pytest.approx(100 - other)


@given(st.lists(games, min_size=1, max_size=8))
def test_the_order_of_the_two_games_does_not_matter(drawn: list[tuple[Verdict | None, Verdict | None]]) -> None:
    here = [match(str(i), "m", *pair) for i, pair in enumerate(drawn)]
    there = [match(str(i), "m", *(each and MIRROR[each] for each in pair[::-1])) for i, pair in enumerate(drawn)]
    for version in get_args(Version):
        assert scores(to_battles(here, version)) == pytest.approx(scores(to_battles(there, version)))


@given(st.lists(games, min_size=2, max_size=12), st.lists(games, min_size=2, max_size=12))
def test_the_score_is_the_bradley_terry_fit(
    one: list[tuple[Verdict | None, Verdict | None]], other: list[tuple[Verdict | None, Verdict | None]]
) -> None:
    drawn = {"one": one, "other": other}
    matches = [match(str(i), name, *pair) for name, pairs in drawn.items() for i, pair in enumerate(pairs)]
    fought = to_battles(matches, "v0.1")
    found = scores(fought)
    if any(score is None or not 0 < score < 100 for score in found):
        return  # without both wins and losses there is no finite rating
    wins = np.zeros((3, 3))  # the baseline is last
    for m, outcome, weight in zip(fought.model_R, fought.outcome_R, fought.weight_R, strict=True):
        wins[m, 2] += outcome * weight
        wins[2, m] += (1 - outcome) * weight
    ratings = np.array(fit_elo(wins, prior=0.0).values_M)
    for i, score in enumerate(found):
        assert score == pytest.approx(100 / (1 + np.exp(ratings[2] - ratings[i])), abs=1e-6)
        assert rating(score) == pytest.approx(1000 + 400 / np.log(10) * (ratings[i] - ratings[2]), abs=1e-4)


@given(st.lists(games, max_size=6))
def test_incomplete_data_gives_numbers_or_none_never_nan(drawn: list[tuple[Verdict | None, Verdict | None]]) -> None:
    matches = [match(str(i), "m", *pair) for i, pair in enumerate(drawn)] + [match("0", "n", None, None)]
    for version in get_args(Version):
        for result in evaluate(matches, {}, version, rounds=20):
            json.dumps(result.as_dict(), allow_nan=False)  # raises for NaN
            by_name = {each.model: each for each in result.models}
            assert (by_name["n"].score, by_name["n"].questions, by_name["n"].n_unreadable) == (None, None, 2)


def test_intervals_repeat_and_depend_on_the_seed() -> None:
    matches = [match(str(i), "m", VERDICTS[i % 5], VERDICTS[i % 3]) for i in range(40)]
    one, same, other = (evaluate(matches, {}, "v0.1", 200, seed=seed)[0].models[0] for seed in (1, 1, 2))
    assert (one.questions, one.rows) == (same.questions, same.rows)
    assert one.questions != other.questions
    assert one.questions is not None and one.score is not None
    assert one.questions.low < one.score < one.questions.high


def test_a_bootstrap_of_thirty_models_takes_less_than_ten_seconds() -> None:
    generator = np.random.default_rng(0)
    drawn = generator.integers(5, size=(30, 500, 2))
    matches = [
        match(str(q), f"m{m}", VERDICTS[drawn[m, q, 0]], VERDICTS[drawn[m, q, 1]])
        for m in range(30)
        for q in range(500)
    ]
    began = time.process_time()
    evaluate(matches, {}, "v0.1")
    assert time.process_time() - began < 10


def test_two_baselines_are_refused() -> None:
    matches = [match("q", "m", "A>B", "A>B"), Match("q", "", "n", "other", ("A>B", "A>B"))]
    with pytest.raises(UserError, match="two baselines, base and other"):
        evaluate(matches, {}, "v0.1")


def test_v2_has_a_leaderboard_per_category() -> None:
    matches = [match("q", "m", "A>B", "A>B", category="hard"), match("r", "m", "B>A", "A>B", category="creative")]
    assert [(each.category, each.models[0].score) for each in evaluate(matches, {}, "v2")] == [
        ("hard", 50.0),
        ("creative", 100.0),
    ]
    assert [each.models[0].score for each in evaluate(matches, {}, "v0.1")] == [75.0]


# --- style ---


def answered(model: str, lengths: Mapping[str, float], tokens: bool = True) -> dict[str, Answer]:
    styles = {q: Style(n if tokens else None, n, 0, 0, 0) for q, n in lengths.items()}
    return {q: Answer(q, model, None, style) for q, style in styles.items()}


def length_lovers(count: int = 300) -> tuple[list[Match], dict[str, dict[str, Answer]]]:
    """Two equally good models; the judge prefers the longer answer more often, and one model writes longer ones."""
    generator = np.random.default_rng(7)
    base = {str(q): float(n) for q, n in enumerate(generator.integers(100, 900, count))}
    lengths = {
        name: {q: n * generator.uniform(0.6, factor) for q, n in base.items()}
        for name, factor in (("long", 3.0), ("even", 1.6))
    }
    matches = []
    for name, those in lengths.items():
        for q, n in those.items():
            chance = 1 / (1 + np.exp(-4 * (n - base[q]) / (n + base[q])))
            one, two = generator.uniform(size=2) < chance
            matches.append(match(q, name, "B>A" if one else "A>B", "A>B" if two else "B>A"))
    return matches, {name: answered(name, those) for name, those in (lengths | {"base": base}).items()}


@pytest.mark.parametrize("version", get_args(Version))
def test_style_control_removes_the_effect_of_length(version: Version) -> None:
    matches, answers = length_lovers()
    (result,) = evaluate(matches, answers, version, rounds=10, style_rounds=20)
    long = next(each for each in result.models if each.model == "long")
    even = next(each for each in result.models if each.model == "even")
    assert long.score is not None and even.score is not None and long.score > even.score + 8
    assert abs((long.controlled["length"] or 0) - (even.controlled["length"] or 0)) < 4
    ends = long.controlled_ranges["length"]
    assert ends is not None and ends.low < (long.controlled["length"] or 0) < ends.high
    assert result.coefficients["length"]["length"] > 0 and result.length_in == "tokens"


def test_lengths_are_in_characters_if_a_token_count_is_missing() -> None:
    matches, answers = length_lovers(30)
    answers["even"] = answered("even", {q: each.style.chars or 0 for q, each in answers["even"].items()}, tokens=False)
    (result,) = evaluate(matches, answers, "v0.1", rounds=5)
    assert result.length_in == "characters"


def test_missing_answers_are_excluded_and_counted() -> None:
    matches, answers = length_lovers(30)
    del answers["long"]["3"], answers["base"]["4"]
    (result,) = evaluate(matches, answers, "v0.1", rounds=5)
    assert result.n_without_style == 3
    assert style_battles(to_battles(matches, "v0.1"), "nobody", answers, "v0.1") is None


def test_a_model_that_always_wins_has_finite_scores() -> None:
    matches, answers = length_lovers(30)
    matches += [match(each.question, "best", "B>A", "A>B") for each in matches[:30]]
    answers["best"] = {q: Answer(q, "best", None, each.style) for q, each in answers["base"].items()}
    for version in get_args(Version):
        (result,) = evaluate(matches, answers, version, rounds=5)
        best = next(each for each in result.models if each.model == "best")
        assert best.score == 100 and best.rating is None
        assert 70 < (best.controlled["style"] or 0) <= 100


def test_markdown_is_counted_outside_of_code() -> None:
    code = "```py\n# no\n- no\n**no**\n```"
    text = f"# Title\n\n- one\n* two\n  1. three\n**bold** and __bold__ and ** not\n{code}\n####### no\n"
    assert count_style(text, 12) == Style(12, len(text), 1, 3, 2)


# --- files ---


def test_judgments_of_both_versions_are_read(tmp_path: Path) -> None:
    older = {
        "question_id": "q",
        "model": "m",
        "games": [{"judgment": "[[A>B]]", "score": "A>B"}, {"judgment": "", "score": None}],
    }
    newer = {"uid": "q", "category": "hard", "model": "m", "baseline": "b", "games": [{"score": "B>A"}, None]}
    unread = {"uid": "q", "model": "b", "baseline": "b", "games": [{"judgment": "[[A>B]]"}, {"judgment": "so [[B>A]]"}]}
    one = read_judgments(lines(tmp_path / "a.jsonl", [older]), "base", "v0.1")
    assert one == (Match("q", "", "m", "base", ("A>B", None)),)
    other = read_judgments(lines(tmp_path / "b.jsonl", [newer, unread]), None, "v2")
    assert other == (Match("q", "hard", "m", "b", ("B>A", None)),)  # the baseline against itself is left out
    texts = read_judgments(lines(tmp_path / "c.jsonl", [{**unread, "model": "m"}]), None, "v2")
    assert texts[0].games == ("A>B", "B>A")


def test_answers_of_both_versions_and_tables_are_read(tmp_path: Path) -> None:
    turn = {"content": "# Hi\n**you**", "token_len": 5}
    older = {"question_id": "q", "model_id": "m", "choices": [{"index": 0, "turns": [turn]}]}
    counted = {
        "token_len": 7,
        "header_count": {"h1": 1, "h2": 2},
        "list_count": {"ordered": 0},
        "bold_count": {"**": 4},
    }
    newer = {
        "uid": "q",
        "model": "n",
        "messages": [{"role": "assistant", "content": {"answer": "Hi"}}],
        "metadata": counted,
    }
    plain = {"uid": "r", "model": "n", "messages": [{"role": "assistant", "content": "- Hi"}]}
    found = by_model(read_answers(lines(tmp_path / "a.jsonl", [older, newer, plain])))
    assert found["m"]["q"].style == Style(5, 12, 1, 0, 1)
    assert found["n"]["q"].style == Style(7, 2, 3, 0, 4)
    assert found["n"]["r"].style == Style(None, 4, 0, 1, 0)
    row = {"question_id": "q", "model": "t", "token_len": 9, "header_count": 1, "list_count": 2, "bold_count": 3}
    (cells,) = read_answers(table(tmp_path / "a.csv", [row]))
    assert (cells.text, cells.style) == (None, Style(9, None, 1, 2, 3))


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"question_id": "q", "model": "m", "games": [None, None]}, "doesn't name the baseline"),
        ({"question_id": "q", "model": "m", "baseline": "b", "games": [None]}, "has 1 games"),
        ({"question_id": "q", "model": "m", "baseline": "b", "games": [1, 2]}, "no game"),
        ({"model": "m", "baseline": "b", "games": [None, None]}, 'field "question_id": is missing'),
    ],
)
def test_invalid_judgments_are_refused(tmp_path: Path, row: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        read_judgments(lines(tmp_path / "a.jsonl", [row]), None, "v0.1")


def test_judgments_of_the_baseline_only_are_refused(tmp_path: Path) -> None:
    row = {"question_id": "q", "model": "b", "baseline": "b", "games": [None, None]}
    with pytest.raises(UserError, match="only the baseline itself"):
        results(lines(tmp_path / "a.jsonl", [row]), None, "v0.1")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", 'field "prompt_template": is missing'),
        ("prompt_template: '{QUESTION} {ANSWER_A}'", r"lacks \{ANSWER_B\}"),
        ("prompt_template: ['{question_1} {answer_1} {answer_2}']", 'field "system_prompt": is missing'),
    ],
)
def test_invalid_judge_configurations_are_refused(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=line):
        read_judge_prompt(path)


def test_a_judge_s_configuration_of_both_versions_is_read(tmp_path: Path) -> None:
    texts = {"v0.1": "- '<|Q|>{question_1}<|A|>{answer_1}<|B|>{answer_2}'", "v2": "'{QUESTION} {ANSWER_A} {ANSWER_B}'"}
    for version, template in texts.items():
        path = tmp_path / f"{version}.yaml"
        path.write_text(f"judge_model: some\nsystem_prompt: Be fair.\nprompt_template:\n  {template}\n", "utf-8")
        found = read_judge_prompt(path)
        assert (found.system, found.template) == ("Be fair.", template.strip("- ").strip("'"))


def test_questions_of_both_versions_are_read(tmp_path: Path) -> None:
    older = {"question_id": "q", "category": "arena-hard-v0.1", "cluster": "c", "turns": [{"content": "Why?"}]}
    newer = {"uid": "r", "category": "hard_prompt", "prompt": "How?"}
    found = read_questions(lines(tmp_path / "question.jsonl", [older, newer]))
    assert [(each.id, each.category, each.text) for each in found] == [
        ("q", "arena-hard-v0.1", "Why?"),
        ("r", "hard_prompt", "How?"),
    ]
    with pytest.raises(UserError, match="repeats an earlier row"):
        read_questions(lines(tmp_path / "twice.jsonl", [older, older]))


def test_style_control_is_one_ridge_regression_of_scikit_learn() -> None:
    """Rows as upstream's v0.1 makes them: a column to each model, four differences, a ridge of 1 on doubled battles."""
    matches, answers = length_lovers(80)
    generator = np.random.default_rng(3)
    for by_question in answers.values():
        for question, answer in by_question.items():
            headers, lists, bolds = map(float, generator.integers(0, 9, 3))
            by_question[question] = replace(answer, style=Style(answer.style.tokens, None, headers, lists, bolds))
    (result,) = evaluate(matches, answers, "v0.1", rounds=5)
    names = ["long", "even"]
    rows, won = [], []
    for each in matches:
        styles = [answers[name][each.question].style for name in ("base", each.model)]
        counts = [np.array([s.tokens or 0.0, s.headers, s.lists, s.bolds]) for s in styles]
        difference = (counts[0] - counts[1]) / (counts[0] + counts[1] + 1)
        rating = [float(name == each.model) for name in names] + [-1.0]
        for game, verdict_of_model in zip(each.games, ("B>A", "A>B"), strict=True):
            rows.append([*np.log(10) * np.array(rating), *difference])
            won.append(game == verdict_of_model)
    x = np.array(rows)
    x[:, 3:] = (x[:, 3:] - x[:, 3:].mean(axis=0)) / x[:, 3:].std(axis=0)
    upstream = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=10_000)
    ratings = upstream.fit(np.vstack([x, x]), np.tile(won, 2)).coef_[0]
    for place, name in enumerate(names):
        (found,) = (each.controlled["style"] for each in result.models if each.model == name)
        assert found == pytest.approx(100 / (1 + 10 ** (ratings[2] - ratings[place])), abs=1e-4)
    assert list(result.coefficients["style"].values()) == pytest.approx((-ratings[3:]).tolist(), abs=1e-5)


def test_intervals_are_those_of_a_plain_bootstrap() -> None:
    """Whole questions or single battles drawn with replacement, one round after the other."""
    generator = np.random.default_rng(9)
    drawn = generator.choice(len(VERDICTS), size=(150, 2), p=[0.05, 0.3, 0.2, 0.35, 0.1])
    matches = [match(str(q), "m", VERDICTS[a], VERDICTS[b]) for q, (a, b) in enumerate(drawn)]
    fought = to_battles(matches, "v0.1")
    (each,) = evaluate(matches, {}, "v0.1", rounds=2000)[0].models
    by_question = [np.flatnonzero(fought.question_R == q) for q in range(150)]
    singly = np.repeat(fought.outcome_R, fought.weight_R.astype(int))
    of_questions, of_battles = [], []
    for _ in range(2000):
        picked = np.concatenate([by_question[q] for q in generator.integers(150, size=150)])
        of_questions.append(100 * np.average(fought.outcome_R[picked], weights=fought.weight_R[picked]))
        of_battles.append(100 * generator.choice(singly, size=len(singly)).mean())
    for found, means in ((each.questions, of_questions), (each.rows, of_battles)):
        assert found is not None
        assert (found.low, found.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.6)
