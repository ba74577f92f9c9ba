"""What the fuzzers try: functions of bytes, which may raise nothing but what a user is told in one line, and must end.

`TARGETS` are tried by tests/fuzz/test_targets.py, a slice by default, and by ``make fuzz`` (tests/support/fuzz.py) with
atheris, which finds its way by coverage. ``seeds`` are valid inputs, from which a fuzzer starts.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import yaml
from builders import candidate, dispute, golden, record
from chat_families import FAMILIES, make_tokenizer

from metareward.config.schema import load_recipe
from metareward.config.yaml_file import recipe_path
from metareward.data.files import read_all_rows
from metareward.data.prompts import load_prompts
from metareward.data.ranked import read_ranked
from metareward.engines.base import EngineError
from metareward.engines.chat import ChatEncoder, ChatTemplateError
from metareward.engines.openai.choices import CHOICE_FIELDS, read_choice
from metareward.engines.openai.client import base_url, read_reply, retry_after_seconds
from metareward.errors import UserError
from metareward.evaluation.alpaca_eval.data import read_annotations, read_outputs
from metareward.evaluation.arena_hard import data as arena_hard
from metareward.evaluation.judge_quality import data as judge_quality
from metareward.evaluation.mt_bench import data as mt_bench
from metareward.evaluation.verifiable.answers import read_tasks
from metareward.evaluation.verifiable.instructions import read_instructed_prompts
from metareward.method.criteria import load_criteria
from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric, remove_scores
from metareward.method.verdict_format import Kind
from metareward.storage.pair_files import read_dropped, read_pairs
from metareward.storage.records import record_from_json, record_to_json
from metareward.types import Message, Scored, Truncated, Unparsed

KINDS: tuple[Kind, ...] = ("label", "tag", "json", "boxed", "brackets")
RUBRICS = [Rubric.load("judge", kind=kind) for kind in KINDS]
METARUBRICS = [MetaRubric.load("metajudge", kind=kind) for kind in KINDS]


@dataclass(frozen=True, slots=True)
class Target:
    """``run`` takes any bytes; ``seeds`` are valid ones."""

    name: str
    run: Callable[[bytes], None]
    seeds: Callable[[], Iterable[bytes]]


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="surrogateescape" if data[:1] == b"\xff" else "replace")


# --- verdicts ---


def read_verdicts(data: bytes) -> None:
    """Readers of scores and winners: a reading for every text; what is masked has none."""
    text = _text(data)
    for rubric in RUBRICS:
        reading = rubric.read(text)
        assert isinstance(reading, Scored | Unparsed), reading
        if isinstance(reading, Scored):
            assert rubric.min_score <= reading.score <= rubric.max_score, reading
        assert rubric.read(text, "length") == Truncated()
        assert isinstance(rubric.read(rubric.verdict.mask(text)), Unparsed)
    for metarubric in METARUBRICS:
        metarubric.read(text)
        assert isinstance(metarubric.read(metarubric.verdict.mask(text)), Unparsed)
        remove_scores(text, metarubric.scores)


# --- files that a user brings ---


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    """A folder of this process, in memory where the system has such a place; removed when the process ends."""
    memory = "/dev/shm"
    return tempfile.TemporaryDirectory(prefix="metareward-fuzz-", dir=memory if os.access(memory, os.W_OK) else None)


def _told(readers: Sequence[Callable[[Path], Any]], names: Sequence[str], data: bytes) -> None:
    """Every reader reads the file, or says in one line why not."""
    for name in names:
        path = Path(_folder().name, name)
        path.write_bytes(data)
        for reader in readers:
            try:
                reader(path)
            except UserError as error:
                _check_message(error)


def _check_message(error: UserError) -> None:
    message = str(error)
    if not message or {"\n", "\x1b"} & set(message):
        raise AssertionError(f"not one printable line: {message!r}")


def read_recipe(data: bytes) -> None:
    """A recipe, and a rubric of criteria."""
    _told([lambda path: load_recipe(str(path)), lambda path: load_criteria(str(path))], ["recipe.yaml"], data)


def read_prompts(data: bytes) -> None:
    """Prompts and ranked answers, in every kind of file."""
    names = ["data.jsonl", "data.json", "data.csv", "data.txt"]
    _told([load_prompts, read_ranked], [*names, "data.parquet"] if data[:4] == b"PAR1" else names, data)


def read_benchmarks(data: bytes) -> None:
    """Files of the benchmarks."""
    readers: list[Callable[[Path], Any]] = [
        read_all_rows,
        read_outputs,
        read_annotations,
        arena_hard.read_questions,
        arena_hard.read_answers,
        lambda path: arena_hard.read_judgments(path, None, "v0.1"),
        judge_quality.read_rankings,
        judge_quality.read_pairs,
        judge_quality.read_verdicts,
        mt_bench.read_questions,
        mt_bench.read_answers,
        mt_bench.read_grades,
        read_tasks,
        read_instructed_prompts,
    ]
    _told(readers, ["data.jsonl"], data)


# --- files of a run ---


def read_record(data: bytes) -> None:
    """A record: refused, or the record that it says."""
    with suppress(UserError):
        found = record_from_json(_text(data))
        with suppress(ValueError):  # a lone surrogate, which no text of a record has
            assert record_from_json(record_to_json(found)) == found
    if data[:4] == b"PAR1":
        _told([read_pairs], ["pairs.parquet"], data)
    _told([read_dropped], ["dropped.jsonl"], data)


# --- servers ---


def read_server(data: bytes) -> None:
    """The body of a server's reply, its header, a URL."""
    for top_logprobs in (0, 5):
        with suppress(ValueError, EngineError):
            reply = read_reply(data, 2, top_logprobs)
            for completion in reply.choices:
                assert completion.tokens >= 0
                for rubric in RUBRICS[:1]:
                    rubric.read(completion.text, completion.finish)
                for field in CHOICE_FIELDS:
                    with suppress(EngineError):
                        read_choice(completion, (" 1", " 2"), field)
    text = _text(data)
    seconds = retry_after_seconds(text)
    assert seconds is None or 0 <= seconds < float("inf"), seconds
    with suppress(UserError):
        base_url(text)


# --- chat templates ---

_MESSAGES = (
    (Message("user", "Name a fruit. <|im_end|>"),),
    (
        Message("system", "Be brief."),
        Message("user", "Hi [INST]"),
        Message("assistant", "Hm."),
        Message("user", "{{x}}"),
    ),
)


def render_template(data: bytes) -> None:
    """A model's chat template: tokens, or one line."""
    tokenizer = copy.copy(make_tokenizer("qwen-3"))
    tokenizer.chat_template = _text(data)
    try:
        encoder = ChatEncoder(tokenizer, most_seconds=5)
    except UserError as error:
        _check_message(error)
        return
    for messages in _MESSAGES:
        with suppress(ChatTemplateError, UnicodeEncodeError):
            encoder.encode(messages)
            encoder.encode_completion(messages, "An apple.")


# --- seeds ---


def _endings() -> Iterable[bytes]:
    return (row["text"].encode() for name in ("scores", "winners") for row in golden(name))


def _recipes() -> Iterable[bytes]:
    yield from (recipe_path(name).read_bytes() for name in ("pocket", "meta-rewarding", "self-rewarding", "smollm2"))
    yield b"a: &a [x, x]\nb: &b [*a, *a]\nname: *b\n"
    yield yaml.safe_dump({"criteria": [{"question": "Is it good?", "weight": 2}, "Is it short?"]}).encode()


def _prompts() -> Iterable[bytes]:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    yield json.dumps(
        {"prompt": "Hi", "id": "a", "answers": [{"text": "x", "rank": 0}, {"text": "y", "rank": 1}]}
    ).encode()
    yield json.dumps({"messages": messages, "id": 3}).encode()
    yield json.dumps({"conversation": messages, "answers": ["x", "y"], "labels": [1.0, 0.0]}).encode()
    tree: dict[str, object] = {
        "message_id": "m",
        "parent_id": None,
        "text": "Hi",
        "role": "prompter",
        "rank": None,
        "lang": "en",
    }
    rows = (tree | {"message_id": f"m{n}", "parent_id": "m0" if n else None, "rank": n} for n in range(3))
    yield "\n".join(map(json.dumps, rows)).encode()
    yield b'prompt,id\nHi,1\n"a\nb",2\n'


def _rows() -> Iterable[bytes]:
    yield json.dumps({"instruction": "Hi", "output": "Hello", "generator": "m", "dataset": "d"}).encode()
    yield json.dumps(
        {
            "instruction": "Hi",
            "output_1": "a",
            "output_2": "b",
            "preference": 1.5,
            "generator_1": "m",
            "generator_2": "n",
        }
    ).encode()
    yield json.dumps({"question_id": 81, "category": "c", "turns": ["a", "b"], "reference": ["x", "y"]}).encode()
    yield json.dumps(
        {"question_id": 81, "answer_id": "a", "model_id": "m", "choices": [{"index": 0, "turns": ["a", "b"]}]}
    ).encode()
    yield json.dumps({"question_id": 81, "model": "m", "judge": ["j", "single-v1"], "score": 7, "turn": 1}).encode()
    yield json.dumps({"prompt": "Hi", "answers": ["a", "b"], "labels": [1, 0]}).encode()
    yield json.dumps({"prompt": "Hi", "chosen": "a", "rejected": "b"}).encode()
    yield json.dumps(
        {"key": 1, "prompt": "Hi", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    ).encode()
    yield json.dumps({"id": "t", "prompt": "1+1", "answer": "2", "check": "number"}).encode()


def _records() -> Iterable[bytes]:
    compared = dispute({(0, 1): 0, (1, 0): None}, 2)
    yield record_to_json(record([candidate(0, [3.0, 5.0, None]), candidate(1, [1.0])], compared)).encode()
    yield b'{"kind":"actor","prompt_id":"p","reason":"all_scores_equal","detail":"x"}\n'


def _replies() -> Iterable[bytes]:
    token = {"token": "Hi", "logprob": -0.1, "top_logprobs": [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105]}]}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    yield json.dumps({"choices": [choice], "usage": usage}).encode()
    yield json.dumps({"choices": [choice | {"logprobs": {"content": [token]}}], "usage": usage}).encode()
    yield json.dumps({"choices": [choice | {"index": n} for n in (0, 1)], "usage": usage}).encode()
    yield b'{"error": {"message": "no"}}'
    yield b"Fri, 31 Dec 1999 23:59:59 GMT"
    yield b"http://localhost:8000/v1"


def _templates() -> Iterable[bytes]:
    yield from (family.template.encode() for family in FAMILIES.values())
    yield b"{% for i in range(3) %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfor %}"


TARGETS = (
    Target("verdicts", read_verdicts, _endings),
    Target("recipes", read_recipe, _recipes),
    Target("prompts", read_prompts, _prompts),
    Target("benchmarks", read_benchmarks, _rows),
    Target("records", read_record, _records),
    Target("servers", read_server, _replies),
    Target("templates", render_template, _templates),
)

# --- changed inputs ---

# What a file or a reply may have where a reader expects something else.
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, 1e308, -1e-320, float("nan"), float("inf")),
    *("", "a", "a\nb", "\x1b[31m", "\ud800", "\u202e", "5", "nan", "1e999", "../../x", [], {}, [[]], {"": None}),
)


def change_json(data: bytes, random: Random) -> bytes | None:
    """``data`` with a value changed in one of its lines, or a line repeated; None if that line isn't JSON."""
    lines = data.splitlines()
    try:
        place = random.randrange(len(lines))
        changed = json.dumps(_change(json.loads(lines[place]), random), ensure_ascii=random.random() < 0.5)
    except (ValueError, RecursionError):
        return None
    lines[place] = changed.encode(errors="surrogatepass")
    if random.random() < 0.2:
        lines.insert(place, random.choice(lines))
    return b"\n".join(lines)


def _change(value: Any, random: Random) -> Any:
    """``value`` with a part of it replaced, left out, repeated or moved."""
    if not value or not isinstance(value, dict | list) or random.random() < 0.15:
        return random.choice(_ODD)
    value = value.copy()
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    how = random.random()
    if how < 0.1:
        del value[key]
    elif how < 0.3 and isinstance(value, list):
        value.insert(random.randrange(len(value) + 1), value[key])
    elif how < 0.3:
        value[random.choice(("", "a", *value))] = value[key]
    else:
        value[key] = _change(value[key], random)
    return value
