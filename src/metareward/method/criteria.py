"""A rubric as several Yes-or-No criteria, each with its own probability.

    p_c   = P(Yes) / (P(Yes) + P(No)) at the judge's first token, all spellings of both counted
    score = low + (high - low) * sum_c w_c p_c / sum_c w_c

A judge that can't write a judgment may still know the answer to one short question. The criterion stands last in its
prompt, so the questions about one answer share instruction and response.
"""

from __future__ import annotations

import re

from metareward.method.judge import with_system
from metareward.method.template import Template, conversation, load_template, render
from metareward.types import Message, Messages, Prompt

YES, NO = "Yes", "No"
TEMPLATE = "criterion"  # the packaged prompt text
# A criterion with this slot is asked for each sentence of the instruction.
SENTENCE = "{sentence}"
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)\]])\s+|\n+")


def criterion_questions(criterion: str, prompt: Prompt) -> tuple[str, ...]:
    """The questions that ``criterion`` asks about an answer to ``prompt``: one, or one for each sentence (`SENTENCE`).

    The sentences are those of the last turn; a blank instruction has none.
    """
    if SENTENCE not in criterion:
        return (criterion,)
    sentences = (sentence.strip() for sentence in _SENTENCE_ENDS.split(prompt.messages[-1].content))
    return tuple(criterion.replace(SENTENCE, sentence) for sentence in dict.fromkeys(sentences) if sentence)


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
