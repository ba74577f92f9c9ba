"""A rubric as several Yes-or-No criteria, each with its own probability.

    p_c       = P(Yes) / (P(Yes) + P(No)) at the judge's first token, all spellings of both counted
    score     = low + (high - low) * sum_c w_c p_c / sum_c w_c
    deviation = (high - low) * sqrt(sum_c w_c^2 p_c (1 - p_c)) / sum_c w_c

A judge that can't write a judgment may still know the answer to one short question. The criterion stands last in its
prompt, so the questions about one answer share instruction and response. ``deviation`` is the score's standard
deviation if the criteria are independent: 0 where the judge is certain of all of them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from metareward.errors import UserError
from metareward.method.import_path import import_name
from metareward.method.template import Template, conversation, load_template, render, with_system
from metareward.text import parse_yaml
from metareward.types import Completion, CriterionAnswer, Message, Messages, Prompt, Scored, Step

YES, NO = "Yes", "No"
# What the judge's reply is held to: every spelling that a model's first token may have.
CHOICES = tuple(f"{blank}{word}" for blank in ("", " ") for word in (YES, NO, "yes", "no"))
TEMPLATE = "criterion"  # the packaged prompt text
# A criterion with this slot is asked for each sentence of the instruction, for so many at most.
SENTENCE = "{sentence}"
MOST_SENTENCES = 12
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)\]])\s+|\n+")
_PACKAGED = resources.files("metareward").joinpath("method", "prompts")
_KEYS = ("question", "weight", "program")

Program = Callable[[Prompt, str], float]
"""Answers a criterion about an answer to a prompt without a model: the probability that it is met, or a bool."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """One criterion: a ``question`` to the judge, or what ``program`` decides in its place. ``weight``: above 0."""

    question: str
    weight: float = 1.0
    program: Program | None = None

    def questions(self, prompt: Prompt) -> tuple[str, ...]:
        """The questions about an answer to ``prompt``: one, or one for each sentence of the instruction."""
        return (self.question,) if self.program is not None else criterion_questions(self.question, prompt)

    @property
    def most_questions(self) -> int:
        """The most questions that it asks a judge about one answer."""
        return 0 if self.program is not None else MOST_SENTENCES if SENTENCE in self.question else 1


def criterion_questions(criterion: str, prompt: Prompt) -> tuple[str, ...]:
    """The questions that ``criterion`` asks about an answer to ``prompt``: one, or one for each sentence (`SENTENCE`).

    The sentences are the first `MOST_SENTENCES` of the last turn; a blank instruction has none.
    """
    if SENTENCE not in criterion:
        return (criterion,)
    sentences = (sentence.strip() for sentence in _SENTENCE_ENDS.split(prompt.messages[-1].content))
    found = tuple(criterion.replace(SENTENCE, sentence) for sentence in dict.fromkeys(sentences) if sentence)
    return found[:MOST_SENTENCES]


def criterion_request(
    prompt: Prompt, answer: str, question: str, template: Template | None = None, system_prompt: str | None = None
) -> Messages:
    """The judge's prompt with one ``question`` about ``answer``. Instruction and response can't break out of it."""
    template = template or load_template(TEMPLATE)
    slots = {"question": conversation(prompt.messages), "answer": answer, "criterion": question}
    return with_system(system_prompt, (Message("user", render(template, slots)),))


def criterion_example(
    prompt: Prompt,
    answer: str,
    question: str,
    holds: bool,
    template: Template | None = None,
    system_prompt: str | None = None,
) -> tuple[Messages, str]:
    """An EFT example of one criterion: the judge's own request, and the reply to train on.

    ``question`` is one of `criterion_questions`; ``holds``: whether the answer meets it.
    """
    return criterion_request(prompt, answer, question, template, system_prompt), YES if holds else NO


def yes_probability(reply: Completion) -> float | None:
    """P(Yes) / (P(Yes) + P(No)) at the first token; None where neither is among its ``top_logprobs``.

    Only whole words count: a token such as ``Y`` may begin another word. Where the tokenizer splits both words, their
    first parts count. The one of the two words that isn't there has probability 0.
    """
    step = reply.steps[0] if reply.steps else Step("", ())
    words = [(each.text.strip().casefold(), math.exp(each.logprob)) for each in step.top_logprobs]
    words = [each for each in words if each[0] in (YES.casefold(), NO.casefold())] or words
    yes, no = (math.fsum(p for word, p in words if word and name.casefold().startswith(word)) for name in (YES, NO))
    return yes / (yes + no) if yes + no > 0 else None


def criteria_score(answers: Sequence[CriterionAnswer], low: float, high: float) -> Scored:
    """The score on the scale from ``low`` to ``high`` that these answers (not empty) make, with its deviation."""
    total = math.fsum(each.weight for each in answers)
    mean = math.fsum(each.weight * each.probability for each in answers) / total
    variance = math.fsum(each.weight**2 * each.probability * (1 - each.probability) for each in answers)
    return Scored(low + (high - low) * mean, deviation=(high - low) * math.sqrt(variance) / total)


# --- files of criteria ---


def packaged_criteria() -> tuple[str, ...]:
    """The names of the packaged lists of criteria, sorted."""
    names = (file.name for file in _PACKAGED.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def names_criteria(rubric: str) -> bool:
    """Whether a rubric of this name is a list of criteria: a packaged one, or a file that ends in ``.yaml``."""
    return rubric.endswith((".yaml", ".yml")) or rubric in packaged_criteria()


def load_criteria(name_or_path: str) -> tuple[Template, tuple[Criterion, ...]]:
    """The prompt text and the criteria of a rubric that `names_criteria`.

    The prompt's digest covers the criteria and their programs' sources. Raises `UserError` naming the file, the
    criterion and what is expected.
    """
    named = name_or_path in packaged_criteria()
    path = _PACKAGED.joinpath(f"{name_or_path}.yaml") if named else Path(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
        tree = parse_yaml(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"criteria {path}: can't be read ({error}); fix: name a YAML text file") from error
    except ValueError as error:
        raise UserError(f"criteria {path}: {error}; fix: write a list of questions under criteria") from None
    if not isinstance(tree, Mapping) or not set(tree) <= {"prompt", "criteria"} or not tree.get("criteria"):
        raise UserError(f"criteria {path}: expected a list under criteria, and perhaps prompt, a prompt text")
    template = load_template(str(tree.get("prompt", TEMPLATE)))
    template.require("question", "answer", "criterion")
    if not isinstance(tree["criteria"], list):
        raise UserError(f"criteria {path}: criteria: expected a list, one question in each line after a dash")
    read = [_read(each, f"criteria {path}: criterion {number}") for number, each in enumerate(tree["criteria"], 1)]
    digests = [hashlib.sha256(text.encode()).hexdigest(), template.sha256, *(sha for _, sha in read if sha)]
    digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
    return Template(path.name, template.text, digest), tuple(criterion for criterion, _ in read)


def _read(given: object, where: str) -> tuple[Criterion, str]:
    """One criterion, and the digest of its program's source."""
    fields = {"question": given} if isinstance(given, str) else given
    if not isinstance(fields, Mapping) or not set(fields) <= set(_KEYS) or not {"question", "program"} & set(fields):
        expected = f"expected a question in quotes, or the keys {', '.join(_KEYS)}"
        raise UserError(f"{where}: {expected}, not {str(given)[:80]!r}")
    weight, path = fields.get("weight", 1.0), fields.get("program")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
        raise UserError(f"{where}: weight: expected a number above 0, not {weight!r}")
    question = fields.get("question", path)
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: question: expected a text in quotes, not {question!r}")
    if path is None:
        return Criterion(question.strip(), float(weight)), ""
    if not isinstance(path, str) or ":" not in path:
        raise UserError(f"{where}: program: expected a function as package.module:name, not {path!r}")
    found = import_name(path, f"{where}: program")
    if not callable(found.value):
        raise UserError(f"{where}: program: {path} is no function of (prompt, answer)")
    return Criterion(question.strip(), float(weight), found.value), found.sha256


def all_questions(criteria: Sequence[Criterion], prompt: Prompt) -> Iterator[tuple[Criterion, str]]:
    """Every criterion with each of its questions about an answer to ``prompt``."""
    return ((criterion, question) for criterion in criteria for question in criterion.questions(prompt))
