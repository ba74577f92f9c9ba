"""Judges of two outputs behind one interface: what two models that change places do to every number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_up import LABEL_PROMPT, json_file, judge_client

from metareward.engines.base import EngineError, ScriptedEngine, StripReasoning
from metareward.engines.local.engine import LocalEngine
from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import Output
from metareward.evaluation.alpaca_eval.run import AlpacaEvalCommand, Matchup, annotate, label_judge, model_first
from metareward.evaluation.alpaca_eval.score import AlpacaResult
from metareward.evaluation.compare import (
    FirstShare,
    OracleJudge,
    OutputPair,
    PairwiseJudge,
    RubricPairwiseJudge,
    StoredScoresJudge,
    load_label_prompt,
)
from metareward.evaluation.judges import JudgeClient, is_refusal, judge_kind
from metareward.generation.verdicts import RubricGrader
from metareward.method.judge import Reasoning, Rubric
from metareward.pocket.demonstrations import RUBRIC
from metareward.pocket.world import MODEL, PocketOracle, prompts
from metareward.types import Completion, Judgment, Message, Messages, Prompt, Sampling, Scored, Step, TopLogprob

ASKED = prompts(12, 3, held_out=True)
GRADER = RubricGrader(RUBRIC, 2, Sampling(1.0, 0.95, 48))
MakeJudge = Callable[[Path], PairwiseJudge]


@pytest.fixture(scope="module")
def answers() -> tuple[list[str], list[str]]:
    """Two pocket models' answers: the shipped one cool, and hot, which makes it another."""

    async def drawn() -> tuple[list[str], list[str]]:
        engine = LocalEngine.open(MODEL, device="cpu", dtype="float32", max_num_seqs=128, deterministic=False)

        async def of(temperature: float) -> list[str]:
            sampling = Sampling(temperature, 1.0, 48, 5)
            calls = (engine.complete(prompt.messages, sampling, 1) for prompt in ASKED)
            return [written[0].text for written in await asyncio.gather(*calls)]

        try:
            return await of(0.0), await of(1.2)
        finally:
            await engine.aclose()

    return asyncio.run(drawn())


def evaluated(judge: PairwiseJudge, base: Sequence[str], own: Sequence[str], folder: Path) -> AlpacaResult:
    """A whole evaluation: annotations in a file, and that file read as any stored one."""
    met = [
        Matchup(i, prompt, Output(prompt.messages[0].content, one, "", "A"), Output(prompt.id, other, "", "B"))
        for i, (prompt, one, other) in enumerate(zip(ASKED, base, own, strict=True))
    ]
    rows = asyncio.run(annotate(judge, met))
    (result,) = AlpacaEvalCommand(annotations=(json_file(folder / "annotations.json", rows),)).results()
    return result


def change_places(
    judge: PairwiseJudge, other: PairwiseJudge, answers: tuple[list[str], list[str]], folder: Path
) -> None:
    there, back = evaluated(judge, *answers, folder), evaluated(other, *answers[::-1], folder)
    assert there.raw.win_rate is not None and back.raw.win_rate is not None
    assert 0 < there.raw.win_rate < 100 and there.raw.win_rate != 50
    assert there.raw.win_rate + back.raw.win_rate == pytest.approx(100, abs=1e-9)
    assert there.raw.discrete_win_rate == pytest.approx(100 - (back.raw.discrete_win_rate or 0))
    assert there.raw.standard_error == pytest.approx(back.raw.standard_error) and there.raw.standard_error
    assert there.controlled is not None and back.controlled is not None
    assert there.controlled.win_rate + back.controlled.win_rate == pytest.approx(100, abs=1e-4)
    assert (there.raw.n_wins, there.raw.n_draws) == (back.raw.n_wins_base, back.raw.n_draws)
    assert there.avg_length != back.avg_length and not there.official


def test_by_the_oracle_changing_places_turns_the_rate_round(
    answers: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    change_places(OracleJudge(PocketOracle()), OracleJudge(PocketOracle()), answers, tmp_path)


def test_by_the_pocket_judge_changing_places_turns_the_rate_round(
    answers: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    """It is asked again from nothing, and says the same of each answer wherever that stands."""

    def opened() -> LocalEngine:
        return LocalEngine.open(MODEL, device="cpu", dtype="float32", max_num_seqs=16, deterministic=True)

    one, other = (RubricPairwiseJudge(judge_client(opened(), tmp_path / f"{i}.sqlite"), GRADER) for i in range(2))
    change_places(one, other, answers, tmp_path)


def shown(number: int, first: str = "one", second: str = "other") -> OutputPair:
    return OutputPair(Prompt(f"p{number}", (Message("user", f"Ask {number}."),)), first, second)


def test_the_share_is_that_of_the_pairs_of_scores_won() -> None:
    scores = {
        ("p0", "one"): (3.0, 5.0, None),
        ("p0", "other"): (3.0, 4.0),
        ("p1", "one"): (None,),
        ("p1", "other"): (1.0,),
    }
    judge = StoredScoresJudge("M1", scores)
    told = asyncio.run(judge.shares([shown(0), shown(1), shown(2)]))
    assert told == {"p0": FirstShare(2.5 / 4, "scores of each alone"), "p1": "unreadable", "p2": "refused"}


def test_an_output_is_graded_once_and_kept(tmp_path: Path) -> None:
    def reply(messages: Messages, sampling: Sampling, i: int) -> str:
        if "long beyond" in messages[-1].content:
            raise EngineError("too long")
        return f"Score: {i % 6}" if "fine text" in messages[-1].content else "no idea"

    engine = ScriptedEngine(reply)
    judge = RubricPairwiseJudge(
        judge_client(engine, tmp_path / "k.sqlite"), RubricGrader(Rubric.load("judge"), 4, Sampling(1, 1, 9))
    )
    pairs = [shown(0), shown(1, "fine text", "another fine text"), shown(2, "long beyond", "fine text")]
    told = asyncio.run(judge.shares(pairs))
    assert told["p0"] == "unreadable" and told["p2"] == "refused"
    assert told["p1"] == FirstShare(0.5, "scores of each alone")
    asked = len(engine.calls)
    assert asked == 6
    assert asyncio.run(judge.shares(pairs)) == told
    assert len(engine.calls) == asked + 1  # the refused one is tried again
    turned = [OutputPair(pair.prompt, pair.second, pair.first) for pair in pairs]
    asyncio.run(judge.shares(turned))
    assert len(engine.calls) == asked + 2


def test_other_grading_is_refused_by_the_same_store(tmp_path: Path) -> None:
    engine = ScriptedEngine(lambda m, s, i: "Score: 3")
    rubric, at = Rubric.load("judge"), judge_client(engine, tmp_path / "k.sqlite")
    asyncio.run(RubricPairwiseJudge(at, RubricGrader(rubric, 2, Sampling(1, 1, 9))).shares([shown(0)]))
    with pytest.raises(Exception, match="made with other settings: n 2 -> 3"):
        asyncio.run(RubricPairwiseJudge(at, RubricGrader(rubric, 3, Sampling(1, 1, 9))).shares([shown(0)]))


def test_a_label_judge_is_behind_the_same_interface(tmp_path: Path) -> None:
    path = tmp_path / "clf.txt"
    path.write_text(LABEL_PROMPT, encoding="utf-8")
    judge = label_judge(
        judge_client(ScriptedEngine(lambda m, s, i: "m"), tmp_path / "k.sqlite"), load_label_prompt(path)
    )
    met = [Matchup(0, shown(0).prompt, Output("Ask 0.", "a", "", "A"), Output("Ask 0.", "b", "", "B"))]
    (row,) = asyncio.run(annotate(judge, met))
    assert row["preference"] == (2.0 if model_first("Ask 0.") else 1.0)


def test_what_is_thought_is_no_part_of_what_is_said() -> None:
    texts = ("<think>", "m?", "</think>", "\n", "M")
    steps = tuple(Step(text, (TopLogprob(text, 0.0),)) for text in texts)
    inner = ScriptedEngine(lambda m, s, i: Completion("".join(texts), "stop", 5, steps) if i else "<think>no end")
    engine = StripReasoning(inner, Reasoning(), extra_tokens=100)
    unended, said = asyncio.run(engine.complete((), Sampling(1, 1, max_tokens=1), 2))
    assert inner.calls[0].sampling.max_tokens == 101
    assert (unended.text, said.text, [step.text for step in said.steps]) == ("", "M", ["M"])


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, I can't judge this.", True),
        ("Sorry, but I cannot assist with that request.", True),
        ("**I’m unable to evaluate\nthese answers.**", True),
        ("As an AI language model, I will not compare such content.", True),
        ("I'm sorry to say that this answer is wrong.", False),
        ("I can't judge this above average. Score: 2", False),
        ("I cannot help but admire this answer.", False),
        ("I can't rate them, but: [[A=B]]", False),
        ("I can't find a mistake.", False),
        ("I'm sorry, I can't judge this. " + "First, it is long. " * 20, False),
        ("", False),
    ],
)
def test_only_a_short_reply_that_declines_is_a_refusal(text: str, refused: bool) -> None:
    assert is_refusal(text) is refused


def test_a_refusal_in_words_is_counted_apart_and_asked_again(tmp_path: Path) -> None:
    replies = {"Ask 0.": "Sorry, I can't compare these.", "Ask 1.": "no idea", "Ask 2.": "Score: 3"}
    engine = ScriptedEngine(lambda m, s, i: next(text for asked, text in replies.items() if asked in m[-1].content))
    judge = RubricPairwiseJudge(
        judge_client(engine, tmp_path / "k.sqlite"), RubricGrader(Rubric.load("judge"), 2, Sampling(1, 1, 9))
    )
    told = asyncio.run(judge.shares([shown(0), shown(1), shown(2)]))
    assert told == {"p0": "refused", "p1": "unreadable", "p2": FirstShare(0.5, "scores of each alone")}
    asked = len(engine.calls)
    assert asyncio.run(judge.shares([shown(0), shown(1), shown(2)])) == told
    assert len(engine.calls) == asked + 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("itself", "itself"),
        ("oracle", "oracle"),
        ("pocket", "model"),
        ("models/judge", "model"),
        ("judge.yaml", "recipe"),
        ("http://127.0.0.1:8000#judge", "server"),
        ("my_package.judges:Strict", "object"),
    ],
)
def test_a_judge_s_name_says_what_it_is(name: str, kind: str) -> None:
    assert judge_kind(name) == kind


def test_a_judge_that_only_grades_can_t_be_asked_for_a_label(tmp_path: Path) -> None:
    class Grades:
        async def judge(self, prompt: Prompt, answer: str, n: int) -> list[Judgment]:
            return [Judgment(i, "", 0, Scored(float(len(answer))), "") for i in range(n)]

    path = tmp_path / "clf.txt"
    path.write_text(LABEL_PROMPT, encoding="utf-8")
    client = JudgeClient(Grades(), "mine", tmp_path / "k.sqlite")
    with pytest.raises(UserError, match="judge mine: only grades answers; fix: leave the benchmark's judge prompt out"):
        asyncio.run(label_judge(client, load_label_prompt(path)).shares([shown(0)]))
    client = JudgeClient(Grades(), "mine", tmp_path / "scores.sqlite")
    found = asyncio.run(RubricPairwiseJudge(client, GRADER).shares([shown(0, "longer", "long")]))
    assert found == {"p0": FirstShare(1.0, "scores of each alone")}
