"""Answers that a program or a stronger engine labels: sources, resuming, what is never asked, and one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import model_folder

from metareward.config.schema import Recipe, load_recipe
from metareward.data.ranked import read_ranked
from metareward.errors import UserError
from metareward.evaluation.constraints.families import FAMILIES
from metareward.evaluation.constraints.prompts import is_held_out_topic, read_prompt
from metareward.evaluation.constraints.world import check_answer
from metareward.generation.progress import SILENT
from metareward.pipeline.labelling import AnswerSource, LabelSource, gather_labelled, prepare_labelling

MINE = """\
from pathlib import Path

class Words:
    async def score(self, prompt, answers):
        with Path("asked.txt").open("a") as file:
            file.write(prompt.id + "\\n")
        return [len(answer.split()) for answer in answers]
"""
TEACHER = """\
from metareward.types import Judgment, Scored, Unparsed

class Teacher:
    async def judge(self, prompt, answer, n):
        score = 2 * len(answer.split())
        reading = Scored(score) if score <= 5 else Unparsed("out_of_range")
        return [Judgment(i, f"It has words. Score: {score}", 5, reading) for i in range(n)]
"""
ANSWERS = ["Yes.", "Yes, it is so.", "It is.", ""]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    rows = [{"id": f"q{n}", "prompt": f"Is it {n}?", "answers": ANSWERS} for n in range(4)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(*changes: str) -> Recipe:
    own = model_folder(Path("model"), "m0")
    return load_recipe(
        "smollm2", [f"model={own}", "prompts.per_iteration=5", "prompts.held_out=4", "benchmarks=[]", *changes]
    )


def labels(
    source: LabelSource, answers: AnswerSource, *changes: str, out: str = "out"
) -> dict[str, list[tuple[str, float | None]]]:
    found = gather_labelled(recipe(*changes), Path(out), source, answers, SILENT)
    assert not isinstance(found, dict)
    assert hasattr(found, "ranked")
    return {each.prompt.id: [(a.text, a.label) for a in each.answers] for each in found.ranked.prompts}


FILE = AnswerSource(answers="answers.jsonl")


def test_a_program_of_the_users_labels_answers_of_a_file_once(here: Path) -> None:
    source = LabelSource(verifier="mine:Words", label_range=(0, 4))
    found = labels(source, FILE)
    assert found["q2"] == [("Yes.", 0.25), ("Yes, it is so.", 1.0), ("It is.", 0.5)]  # on the rubric's scale, 0 to 1
    assert sorted((here / "asked.txt").read_text().split()) == ["q0", "q1", "q2", "q3"]
    with (here / "answers.jsonl").open("a") as file:
        file.write(json.dumps({"id": "q4", "prompt": "Is it 4?", "answers": ["No."]}) + "\n")
    assert len(labels(source, FILE)) == 5
    assert (here / "asked.txt").read_text().split()[4:] == ["q4"]
    read = read_ranked(here / "out/labelled.jsonl").prompts
    assert {each.prompt.id: [(a.text, a.label) for a in each.answers] for each in read} == labels(source, FILE)
    with pytest.raises(UserError, match=r"labels\.sqlite: the records here were made with other settings: range"):
        labels(LabelSource(verifier="mine:Words", label_range=(0, 5)), FILE)


def test_benchmarks_that_a_program_checks_label_answers(here: Path) -> None:
    tasks = [{"id": "q0", "prompt": "6 * 7?", "kind": "number", "answer": 42}]
    (here / "tasks.jsonl").write_text(json.dumps(tasks[0]))
    given = {"id": "q0", "prompt": "6 * 7?", "answers": ["It is 42.", "41"]}
    (here / "answers.jsonl").write_text(json.dumps(given))
    answers = AnswerSource(answers="answers.jsonl", prompts="tasks.jsonl")
    (here / "answers.jsonl").write_text(json.dumps({**given, "id": "its text tells"}))
    assert set(labels(LabelSource(verifier="verifiable"), answers, out="a")) == {"its text tells"}
    (here / "answers.jsonl").write_text(json.dumps(given))
    assert labels(LabelSource(verifier="verifiable"), answers) == {"q0": [("It is 42.", 1.0), ("41", 0.0)]}
    instructed = {"key": "q0", "prompt": "6 * 7?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    (here / "tasks.jsonl").write_text(json.dumps(instructed))
    (here / "answers.jsonl").write_text(json.dumps({**given, "answers": ["It is 42.", "Well, 42."]}))
    assert labels(LabelSource(verifier="ifeval"), answers, out="b") == {"q0": [("It is 42.", 1.0), ("Well, 42.", 0.0)]}


def test_the_oracle_gives_the_highest_score_only_to_what_passes(here: Path) -> None:
    prompt = "Write a short text about the moon. Don't use any commas. Use at least 30 words. End with a question."
    texts = [
        "The moon is round. " + "It shines for all of us in every dark night of the year. " * 1,
        "The moon, oh.",
        "Moo.",
    ]
    (here / "answers.jsonl").write_text(json.dumps({"id": "q", "prompt": prompt, "answers": texts}))
    assert check_answer(prompt, texts[0]).share > 0.5  # nearer to 1 than to 0, and yet it fails
    assert {label for _, label in labels(LabelSource(verifier="oracle"), FILE)["q"] if label} == set()
    found = labels(LabelSource(verifier="oracle"), FILE, "judgments.max_score=5", out="b")["q"]
    assert [label for _, label in found] == [5 * check_answer(prompt, text).share for text in texts]


def test_the_oracle_says_which_criteria_an_answer_meets(here: Path) -> None:
    prompt = "Write a short text about the moon. Don't use any commas."
    texts = ["The moon is round and white and far away.", "The moon, white and round and far away, is"]
    (here / "answers.jsonl").write_text(json.dumps({"id": "q", "prompt": prompt, "answers": texts}))
    own = recipe("judgments.rubric=criteria")
    found = gather_labelled(own, Path("out"), LabelSource(verifier="oracle"), FILE, SILENT)
    assert not isinstance(found, dict) and hasattr(found, "ranked")
    criteria = [dict(answer.criteria) for answer in found.ranked.prompts[0].answers]
    assert [list(each.values()) for each in criteria] == [[True, True, True], [True, False, False]]
    assert list(criteria[0])[1] == 'Does the response follow this: "Don\'t use any commas."?'
    read = read_ranked(here / "out/labelled.jsonl").prompts
    assert [answer.criteria for answer in read[0].answers] == [tuple(each.items()) for each in criteria]
    with pytest.raises(
        UserError, match=r"judgments\.rubric criteria: a judge writes no judgments by criteria; fix: name"
    ):
        gather_labelled(own, Path("b"), LabelSource(judge="pocket", written=True), FILE, SILENT)


def test_a_stronger_judge_labels_answers_and_its_words_are_kept(here: Path) -> None:
    (here / "teaching.py").write_text(TEACHER)
    given = gather_labelled(
        recipe("judgments.max_score=5"),
        Path("out"),
        LabelSource(judge="teaching:Teacher", written=True),
        FILE,
        SILENT,
    )
    assert not isinstance(given, dict) and hasattr(given, "ranked")
    for each in given.ranked.prompts:
        assert [(a.text, a.label, a.judgment, a.rank) for a in each.answers] == [
            ("Yes.", 2.0, "It has words. Score: 2", 2.0),
            ("It is.", 4.0, "It has words. Score: 4", 0.0),
        ]
    assert given.ranked.skipped == {"answers: unreadable judgment": 4}


def test_seed_prompts_are_none_of_the_runs_and_of_training_topics_and_families(here: Path) -> None:
    own = recipe("prompts.per_iteration=40")
    labelling = prepare_labelling(own, Path("out"), LabelSource(verifier="oracle"), AnswerSource(count=60, held_out=12))
    training, held_out = labelling.prompts[:60], labelling.prompts[60:]
    used = {each.messages for t in range(3) for each in labelling.bound.choose_prompts(t)}
    assert len({each.id for each in labelling.prompts}) == 72 and not {each.messages for each in training} & used
    held_out_families = {each.name for each in FAMILIES if each.held_out}
    for each in training:
        task = read_prompt(each.messages[-1].content)
        assert not is_held_out_topic(task.topic) and not {c.family for c in task.constraints} & held_out_families
    assert all(is_held_out_topic(read_prompt(each.messages[-1].content).topic) for each in held_out)
    more = prepare_labelling(own, Path("out"), LabelSource(verifier="oracle"), AnswerSource(count=80))
    assert more.prompts[:60] == training  # so that a higher count continues


def test_prompts_of_a_file_are_those_that_the_run_leaves_over(here: Path) -> None:
    (here / "prompts.jsonl").write_text("".join(json.dumps(f"Is it {n}?") + "\n" for n in range(30)))
    file = "prompts.source=prompts.jsonl"
    source = LabelSource(verifier="mine:Words", label_range=(0, 9))
    labelling = prepare_labelling(recipe(file), Path("out"), source, AnswerSource(count=16))
    used = {each.messages for t in range(3) for each in labelling.bound.choose_prompts(t)}
    assert len(used) == 14 and not {each.messages for each in labelling.prompts} & used
    with pytest.raises(
        UserError, match=r"prompts\.jsonl: 16 prompts are left .* 17 are to be answered; fix: lower --co"
    ):
        prepare_labelling(recipe(file), Path("out"), source, AnswerSource(count=17))
    assert not (here / "out").exists()


def test_the_plan_counts_what_is_pending(here: Path) -> None:
    def plan(source: LabelSource, answers: AnswerSource) -> dict[str, object]:
        found = gather_labelled(recipe(), Path("out"), source, answers, SILENT, plan=True)
        assert isinstance(found, dict) and not (here / "out/answers.sqlite").exists()
        return found

    drawn = plan(LabelSource(verifier="oracle"), AnswerSource(count=10, held_out=4))
    assert drawn == {
        "prompts": 14,
        "answers": "84, of which 84 to draw, at most 160 tokens each",
        "labels": "84, by oracle",
    }
    judged = plan(LabelSource(judge="pocket", sets=2), FILE)
    assert judged["labels"] == "at most 24 judgments by pocket, at most 9 tokens each; 0 answers are judged"
    own = plan(LabelSource(verifier="mine:Words", written=True), FILE)
    assert own["judgments"] == "at most 12 by the recipe's model, at most 9 tokens each"


BAD = json.dumps({"prompt": "Why?", "answers": "So."})


@pytest.mark.parametrize(
    ("source", "answers", "line"),
    [
        (
            LabelSource(verifier="mine:Words"),
            FILE,
            r"gave 4 to an answer to prompt q0, outside 0 to 1; fix: --label-ran",
        ),
        (LabelSource(verifier="mine:Words", label_range=(3, 1)), FILE, "--label-range 3 1: the lowest label must"),
        (LabelSource(verifier="mine:None_"), FILE, "--verifier: can't import mine:None_"),
        (LabelSource(verifier="guess"), FILE, "--verifier guess: not known; fix: make it oracle, ifeval"),
        (LabelSource(verifier="ifeval"), FILE, "--verifier ifeval: needs --prompts"),
        (LabelSource(judge="nowhere"), FILE, "nowhere: no model here"),
        (LabelSource(verifier="oracle"), AnswerSource(answers="bad.jsonl"), r'bad\.jsonl:1: field "answers": is not a'),
        (LabelSource(verifier="oracle"), AnswerSource(answers="none.jsonl"), r"none\.jsonl: can't be read"),
        (
            LabelSource(verifier="verifiable"),
            AnswerSource(answers="answers.jsonl", prompts="tasks.jsonl"),
            r"prompt q0 is",
        ),
        (
            LabelSource(verifier="oracle"),
            AnswerSource(answers="answers.jsonl", count=3),
            "--answers: the file says which",
        ),
        (LabelSource(), AnswerSource(ranked="answers.jsonl", prompts="x"), "--ranked: has its own prompts and answers"),
    ],
)
def test_errors_are_one_line(here: Path, source: LabelSource, answers: AnswerSource, line: str) -> None:
    (here / "bad.jsonl").write_text(BAD)
    (here / "tasks.jsonl").write_text(json.dumps({"id": "t", "prompt": "6 * 7?", "kind": "number", "answer": 42}))
    with pytest.raises(UserError, match=line) as raised:
        gather_labelled(recipe(), Path("out"), source, answers, SILENT)
    assert "\n" not in str(raised.value)


def test_where_there_is_no_oracle_the_line_says_so(here: Path) -> None:
    (here / "prompts.jsonl").write_text('"Why?"\n')
    file = recipe("prompts.source=prompts.jsonl")
    with pytest.raises(
        UserError, match=r"--verifier oracle: prompts\.source prompts\.jsonl has none; fix: make it const"
    ):
        gather_labelled(file, Path("out"), LabelSource(verifier="oracle"), FILE, SILENT)
