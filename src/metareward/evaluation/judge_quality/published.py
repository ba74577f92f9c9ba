"""Public data sets for judges, read as they are published, as rows in this package's own form (``data``).

Pairs: JudgeBench (ScalerLab/JudgeBench), PandaLM's test set (WeOpenML/PandaLM, ``testset-v1.json``; three annotators,
their majority is the label), LLMBar (princeton-nlp/LLMBar, one ``dataset.json`` or the folder ``Dataset/LLMBar``),
FairEval (i-Eval/FairEval, the repository's folder), RewardBench (allenai/reward-bench). Rankings: RewardBench 2
(allenai/reward-bench-2). Verdicts: JudgeBench's ``outputs`` and PandaLM's ``*-testset-v1.json``. A set is recognized by
its fields.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metareward.data.files import Row, read_rows, read_text
from metareward.errors import UserError

_DECISIONS: Mapping[str | None, int | None] = {"A>B": 1, "B>A": 2, "A=B": 0, None: None}
_CATEGORIES = {"mmlu-pro": "knowledge", "livebench-reasoning": "reasoning", "livebench-math": "math"}
_FAIR_EVAL = ("answer/answer_gpt35.jsonl", "answer/answer_vicuna-13b.jsonl", "review/review_gpt35_vicuna-13b_human.txt")
_HUMANS = {"CHATGPT": 1, "VICUNA13B": 2, "TIE": 0}


def pair_rows(path: Path) -> Sequence[Row]:
    """The rows of a file of pairs, or of the folder of LLMBar or FairEval. Raises `UserError` for bad rows."""
    if not path.is_dir():
        return [_pair(row, number, "") for number, row in enumerate(read_rows(path))]
    if (path / _FAIR_EVAL[-1]).is_file():
        return _fair_eval(path)
    files = sorted(path.rglob("dataset.json"))
    if not files:
        return [_pair(row, number, "") for number, row in enumerate(read_rows(path))]
    return [
        _pair(row, number, file.parent.relative_to(path).as_posix())
        for file in files
        for number, row in enumerate(read_rows(file))
    ]


def _pair(row: Row, number: int, folder: str) -> Row:
    if "response_A" in row.fields:
        return _own(row, _judge_bench(row))
    if "annotator1" in row.fields:
        return _own(row, _panda_lm(row))
    if "chosen" in row.fields and "output_1" not in row.fields:
        return _own(row, _reward_bench(row))
    if not row.has("id") and "output_1" in row.fields:  # LLMBar's rows have none
        return _own(row, {**row.fields, "id": f"{folder} {number}".strip(), "subset": folder})
    return row


def _own(row: Row, fields: Mapping[str, Any]) -> Row:
    return replace(row, value=dict(fields))


def _judge_bench(row: Row) -> Mapping[str, Any]:
    label = row.text("label")
    if label not in _DECISIONS:
        raise row.error("label", f"is {label!r}"[:80], "give A>B or B>A")
    source = row.text("source")
    subset = next((name for start, name in _CATEGORIES.items() if source.startswith(start)), "coding")
    return {
        "id": row.text("pair_id"),
        "input": row.text("question"),
        "output_1": row.text("response_A"),
        "output_2": row.text("response_B"),
        "label": _DECISIONS[label],
        "subset": subset,
    }


def _panda_lm(row: Row) -> Mapping[str, Any]:
    votes = [row.integer(f"annotator{n}") for n in (1, 2, 3)]
    context = str(row.fields.get("input") or "")
    return {
        "id": row.text("idx"),
        "input": "\n\n".join(filter(None, (row.text("instruction"), context))),
        "output_1": _text(row, "response1"),
        "output_2": _text(row, "response2"),
        "label": Counter(votes).most_common(1)[0][0],  # three different votes: the first one's, as upstream
    }


def _text(row: Row, name: str) -> str:
    """Some of PandaLM's responses are the JSON value true."""
    value = row.fields.get(name)
    return str(value) if isinstance(value, bool) else row.text(name)


def _reward_bench(row: Row) -> Mapping[str, Any]:
    if not isinstance(row.fields["chosen"], str):
        raise row.error("chosen", "is a list", "give RewardBench 2 as --rankings: several answers to each prompt")
    subset = row.text("subset")
    named = row.has("chosen_model", "rejected_model")
    return {
        "id": f"{subset} {row.text('id')}",
        "input": row.text("prompt"),
        "output_1": row.text("chosen"),
        "output_2": row.text("rejected"),
        "label": 1,
        "subset": subset,
        **({"generator_1": row.text("chosen_model"), "generator_2": row.text("rejected_model")} if named else {}),
    }


def _fair_eval(folder: Path) -> Sequence[Row]:
    questions = read_rows(folder / "question.jsonl")
    first, second = ({row.text("question_id"): row for row in read_rows(folder / name)} for name in _FAIR_EVAL[:2])
    labels = read_text(folder / _FAIR_EVAL[2]).split()
    if len(labels) != len(questions) or not set(labels) <= set(_HUMANS):
        raise UserError(
            f"{folder / _FAIR_EVAL[2]}: not one of {', '.join(_HUMANS)} for each question; fix: get it again"
        )
    rows = []
    for row, label in zip(questions, labels, strict=True):
        key = row.text("question_id")
        if key not in first or key not in second:
            raise row.error("question_id", "has no answer by both models", "get the folder again")
        outputs = {f"output_{n}": side[key].text("text") for n, side in ((1, first), (2, second))}
        subset = row.text("category") if row.has("category") else ""
        rows.append(
            _own(row, {"id": key, "input": row.text("text"), **outputs, "label": _HUMANS[label], "subset": subset})
        )
    return rows


def ranking_rows(path: Path) -> Sequence[Row]:
    """The rows of a file of rankings; a chosen answer of RewardBench 2 has rank 0, a rejected one rank 1.

    ``scores`` of RewardBench 2's results are those of the chosen answers, then of the rejected ones.
    """
    return [_ranking(row) for row in read_rows(path)]


def _ranking(row: Row) -> Row:
    if "chosen" not in row.fields:
        return row
    texts = [(text, rank) for rank, name in enumerate(("chosen", "rejected")) for text in row.items(name)]
    scores = row.items("scores") if row.has("scores") else ()
    if scores and len(scores) != len(texts):
        raise row.error("scores", f"has {len(scores)} entries for {len(texts)} answers", "give one to each")
    responses = [
        {"text": text, "rank": rank, **({"score": scores[place]} if scores else {})}
        for place, (text, rank) in enumerate(texts)
    ]
    subset = row.text("subset")
    key = f"{subset} {row.text('id')}"
    return _own(row, {"id": key, "prompt": row.text("prompt"), "responses": responses, "subset": subset})


def verdict_rows(path: Path) -> Sequence[Row]:
    """The rows of a file of verdicts. "garbage", PandaLM's word for an unreadable verdict, is null."""
    return [_verdict(row) for row in read_rows(path)]


def _verdict(row: Row) -> Row:
    if row.has("pair_id", "judgments"):
        judgments = row.items("judgments")
        decisions = [each.get("decision") if isinstance(each, dict) else None for each in judgments]
        if not 1 <= len(decisions) <= 2 or not all(each in list(_DECISIONS) for each in decisions):
            raise row.error("judgments", "aren't one or two with a decision", "give A>B, B>A, A=B or null")
        winners = [_DECISIONS[each] for each in decisions]
        # The second game shows the responses in the other order.
        names = ("winner_original_order", "winner_swapped_order")
        both = dict(zip(names, (winners[0], *({1: 2, 2: 1}.get(w or 0, w) for w in winners[1:])), strict=False))
        return _own(row, {"id": row.text("pair_id"), **both})
    result = next((name for name in row.fields if name.endswith("_result")), None)
    if row.has("idx") and result is not None:
        word = row.text(result).casefold()
        winner = {"tie": 0, "garbage": None}.get(word, word)
        return _own(row, {"id": row.text("idx"), "winner_original_order": winner})
    return row
