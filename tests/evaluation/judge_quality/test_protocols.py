"""The papers' protocols by name, on stored scores and with engines that are asked."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from made_up import LABEL_PROMPT, lines, ranked_trees, session
from scripted_models import prompts, reply, settings

from metareward.engines.base import EngineError, ScriptedEngine
from metareward.errors import UserError
from metareward.evaluation.judge_quality.data import Comparison, Item, Pair, Response, Winner, read_rankings
from metareward.evaluation.judge_quality.rankings import (
    chosen_by_judge,
    gpt4_chosen,
    human,
    scored_by_length,
    self_chosen,
)
from metareward.evaluation.judge_quality.run import JudgeQualityCommand, protocol_named
from metareward.generation.annotate import annotate_prompt, annotation_fingerprint
from metareward.storage.records import record_to_json
from metareward.storage.store import RecordStore
from metareward.types import Completion, Message, Messages, Sampling, Tied, Won

Reply = Callable[[Messages, Sampling, int], str | Completion]
SAID = (Message("user", "Why?"),)


def item(name: str, *scores: float | None, comparisons: Sequence[Comparison] = ()) -> Item:
    return Item(
        name, SAID, tuple(Response("x" * (i + 1), i, (each,)) for i, each in enumerate(scores)), tuple(comparisons)
    )


def pair(name: str, label: Winner | None, one: float | None, other: float | None) -> Pair:
    return Pair(item(name, one, other), label, "", None)


def test_gpt4_chosen_counts_a_tie_one_half() -> None:
    rows = [pair("a", 1, 5, 3), pair("b", 2, 5, 3), pair("c", 1, 4, 4), pair("d", None, 5, 1), pair("e", 1, None, 3)]
    judge, length, chance = gpt4_chosen(rows, "mine")
    assert (judge.judge, judge.agreement, judge.agreement_without_ties) == ("mine", 0.5, 0.5)
    assert (judge.n_pairs, judge.n_ties, judge.n_left_out) == (3, 1, 2)
    assert (length.judge, length.agreement, length.n_pairs, length.n_left_out) == ("length only", 0.25, 4, 1)
    assert (chance.agreement, chance.agreement_without_ties) == (0.5, 0.5)
    assert judge.low is not None and judge.high is not None and judge.low <= 0.5 <= judge.high


def test_self_chosen_asks_about_best_and_worst() -> None:
    agrees = [Comparison(2, 0, Won(2)), Comparison(0, 2, Won(2))]
    differs = [Comparison(2, 0, Won(2)), Comparison(0, 2, Won(0))]
    rows = [
        item("a", 1, 3, 5, comparisons=agrees),
        item("b", 5, 3, 1, comparisons=agrees),  # the judge's best is the reference's worst
        item("c", 1, 3, 5, comparisons=differs),
        item("d", 1, 3, 5, comparisons=[Comparison(2, 0, Tied())]),
        item("e", 4, 4, 4, comparisons=agrees),  # the judge can't tell them apart
        item("f", 1, 3, 5, comparisons=[Comparison(0, 1, Won(0))]),  # about another pair
        item("g", 1, 3, 5, comparisons=[Comparison(2, 0, None), Comparison(0, 2, Won(2))]),  # unreadable in one order
        item("h", None, 3, None),
    ]
    judge, length, _ = self_chosen(rows, "mine")
    assert (judge.n_pairs, judge.n_ties, judge.n_left_out) == (5, 3, 3)
    assert judge.agreement == (1 + 0 + 0.5 * 3) / 5
    assert judge.agreement_without_ties == 0.5
    assert (length.n_pairs, length.agreement) == (4, (1 + 1 + 0.5 + 0.5) / 4)
    assert chosen_by_judge(rows[0]) == (2, 0)
    assert chosen_by_judge(item("t", 5, 5, 1, 1)) == (0, 2)  # the first of equals
    assert chosen_by_judge(rows[4]) is None


def test_human_averages_correlations_over_prompts(tmp_path: Path) -> None:
    items = read_rankings(ranked_trees(tmp_path / "trees.jsonl", trees=30))
    judge, length, chance = human(scored_by_length(items), "characters")
    assert judge == replace(length, judge="characters")
    # Two of three rows are ranked by length; in the third the order is turned by one place: one pair of three is right.
    assert length.agreement == pytest.approx(7 / 9) and length.spearman == pytest.approx((2 * 1 - 0.5) / 3)
    assert (length.n_pairs, length.n_left_out, chance.spearman) == (180, 0, 0.0)
    assert length.low is not None and length.high is not None and 0.68 < length.low < 7 / 9 < length.high < 0.88


def test_answers_without_a_readable_score_are_left_out() -> None:
    rows = [item("a", 5, None, 3), item("b", None, None)]
    judge, length, _ = human(rows, "mine")
    assert (judge.n_pairs, judge.n_left_out, judge.agreement) == (1, 3, 1.0)
    assert (length.n_pairs, length.n_left_out) == (4, 0)


def test_nothing_to_count_is_none_never_nan() -> None:
    for rows in (gpt4_chosen([], "mine"), self_chosen([], "mine"), human([], "mine")):
        json.dumps([asdict(each) for each in rows], allow_nan=False)
        assert rows[0].agreement is None and rows[0].n_pairs == 0


# --- from files, by engines ---


def rows_of(
    reply: Reply | None = None, reference: Reply | None = None, /, **options: object
) -> dict[str, Mapping[str, object]]:
    """The table's rows by judge: "mine" gives the replies, and a reference judge the others."""
    if reference is not None:
        options["reference_engine"] = "reference"
    command = JudgeQualityCommand.model_validate({"name": "mine", "judgments": 3, **options})
    return dict(asyncio.run(command.table(session(reply, reference, "mine"))).rows)


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    path = tmp_path / "clf.txt"
    path.write_text(LABEL_PROMPT, encoding="utf-8")
    return path


def answers(*texts: str) -> list[dict[str, object]]:
    return [{"text": text, "rank": i} for i, text in enumerate(texts)]


def grades_good(messages: Messages, sampling: Sampling, i: int) -> str:
    """5 for an answer that says "good", 2 for another; the last of three judgments can't be read."""
    return "hm" if i == 2 else f"Score: {5 if 'good' in messages[-1].content.partition('<answer>')[2] else 2}"


def prefers_good(messages: Messages, sampling: Sampling, i: int) -> str:
    return "m" if "Output m: good" in messages[-1].content else "M"


def test_a_judge_is_asked_for_its_scores(tmp_path: Path) -> None:
    rows = [{"id": str(i), "prompt": f"Why {i}?", "responses": answers("good", "bad", "ugly")} for i in range(4)]
    path = lines(tmp_path / "r.jsonl", rows)
    files = {"rankings": path, "cache": tmp_path / "cache.sqlite"}
    found = rows_of(grades_good, **files)
    assert list(found) == ["mine", "length only", "chance"]
    assert found["mine"]["n_unreadable"] == 12 and found["mine"]["score_histogram"] == {"2": 16, "5": 8}
    assert found["mine"]["best_of_match_ties_shared"] == 1.0 and found["mine"]["exact_match"] == 0.0
    agreement = rows_of(grades_good, **files, protocol="human")["mine"]
    assert agreement["agreement"] == 2.5 / 3 and agreement["agreement_without_ties"] == 1.0


def test_a_judge_s_scores_may_be_drawn_or_asked_for_again(tmp_path: Path) -> None:
    def grades(messages: Messages, sampling: Sampling, i: int) -> str:
        return sampling.choices[-1] if sampling.choices else grades_good(messages, sampling, i)

    path = lines(tmp_path / "r.jsonl", [{"id": "a", "prompt": "Why?", "responses": answers("good", "bad")}])
    drawn = rows_of(grades, rankings=path, cache=tmp_path / "drawn.sqlite", constrained=True)["mine"]
    assert (drawn["n_unreadable"], drawn["score_histogram"]) == (0, {"5": 6})
    # The third sample can't be read; the retry is the first of a request of its own.
    again = rows_of(grades, rankings=path, cache=tmp_path / "again.sqlite", retries=1)["mine"]
    assert (again["n_unreadable"], again["score_histogram"]) == (0, {"2": 3, "5": 3})


def test_an_answer_that_the_judge_refuses_has_no_score(tmp_path: Path) -> None:
    def refuses(messages: Messages, sampling: Sampling, i: int) -> str:
        if "ugly" in messages[-1].content:
            raise EngineError("not that")
        return grades_good(messages, sampling, i)

    rows = [{"id": "a", "prompt": "Why?", "responses": answers("good", "bad", "ugly")}]
    files = {"rankings": lines(tmp_path / "r.jsonl", rows), "cache": tmp_path / "cache.sqlite"}
    found = rows_of(refuses, **files)["mine"]
    assert (found["n_refused"], found["n_pairs"]) == (1, 1)


def test_the_judge_s_best_and_worst_go_to_the_reference(tmp_path: Path, prompt: Path) -> None:
    rows = [{"id": str(i), "prompt": "Why?", "responses": answers("bad", "good", "ugly")} for i in range(3)]
    files = {"rankings": lines(tmp_path / "r.jsonl", rows), "prompt": prompt, "cache": tmp_path / "cache.sqlite"}
    found = rows_of(grades_good, prefers_good, **files, protocol="self-chosen")
    assert (found["mine"]["agreement"], found["mine"]["n_pairs"]) == (1.0, 3)
    (tmp_path / "cache-reference.sqlite").unlink()
    by_position = rows_of(grades_good, lambda messages, sampling, i: "m", **files, protocol="self-chosen")
    assert by_position["mine"]["n_ties"] == 3


def test_the_reference_labels_pairs_where_it_agrees_with_itself(tmp_path: Path, prompt: Path) -> None:
    def sometimes(messages: Messages, sampling: Sampling, i: int) -> str:
        return "m" if "Why 2?" in messages[-1].content else prefers_good(messages, sampling, i)

    rows = [{"id": str(i), "input": f"Why {i}?", "output_1": "bad", "output_2": "good"} for i in range(3)]
    files = {"pairs": lines(tmp_path / "p.jsonl", rows), "prompt": prompt, "cache": tmp_path / "cache.sqlite"}
    found = rows_of(grades_good, sometimes, **files, protocol="gpt4-chosen")["mine"]
    assert (found["agreement"], found["n_pairs"], found["n_left_out"]) == (1.0, 2, 1)


def test_a_pairwise_judge_is_asked_in_both_orders(tmp_path: Path, prompt: Path) -> None:
    rows = [{"id": str(i), "input": "Why?", "output_1": "bad", "output_2": "good", "label": 2} for i in range(3)]
    files = {"pairs": lines(tmp_path / "p.jsonl", rows), "prompt": prompt, "cache": tmp_path / "cache.sqlite"}
    found = rows_of(prefers_good, **files)
    assert found["mine"]["accuracy"] == found["mine"]["positional_agreement"] == 1.0
    (tmp_path / "cache.sqlite").unlink()
    found = rows_of(lambda messages, sampling, i: "m", **files)
    assert (found["mine"]["accuracy"], found["mine"]["positional_agreement"]) == (0.5, 0.0)


def test_a_grading_judge_on_pairs(tmp_path: Path) -> None:
    rows = [{"id": str(i), "input": "Why?", "output_1": "bad", "output_2": "good", "label": 2} for i in range(3)]
    files = {"pairs": lines(tmp_path / "p.jsonl", rows), "cache": tmp_path / "cache.sqlite"}
    assert rows_of(grades_good, **files)["mine"]["accuracy"] == 1.0
    stored = [{**row, "score_1": 1, "score_2": 1} for row in rows]
    files = {"pairs": lines(tmp_path / "q.jsonl", stored)}
    assert rows_of(**files)["mine"]["accuracy"] == 0.5


def test_the_meta_judge_of_a_run_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "records.sqlite"
    with RecordStore.open(path, annotation_fingerprint(settings())) as store:
        for each in prompts(4):
            store.put(each.id, record_to_json(asyncio.run(annotate_prompt(ScriptedEngine(reply), each, settings()))))
    rows = rows_of(records=path, protocol="meta-judge")
    assert list(rows) == ["mine", "chance"]
    assert {"higher_score_wins", "same_score", "different_score", "all"} <= set(rows["mine"])


@pytest.mark.parametrize(
    ("files", "protocol", "line"),
    [
        ({}, None, "give one of --rankings, --pairs"),
        ({"rankings": Path("a"), "pairs": Path("b")}, None, "give one of"),
        ({"pairs": Path("a")}, "human", "--protocol human: takes --rankings, not --pairs"),
    ],
)
def test_what_doesn_t_fit_together_is_told(files: dict[str, Path], protocol: str | None, line: str) -> None:
    with pytest.raises(UserError, match=line):
        rows_of(**files, protocol=protocol)


def test_a_protocol_that_isn_t_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gpt4-chosen, self-chosen, human, meta-judge"):
        protocol_named("gpt5-chosen")


def test_an_engine_needs_a_file_for_its_answers(tmp_path: Path, prompt: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [{"id": "a", "prompt": "Why?", "responses": answers("good", "bad")}])
    with pytest.raises(UserError, match="needs --cache"):
        rows_of(grades_good, rankings=path)
    with pytest.raises(UserError, match="--reference-engine: needs --prompt"):
        rows_of(None, prefers_good, rankings=path, protocol="self-chosen")
