"""Programs that label answers for seed sets: a world's oracle, a benchmark's checkers, or a `Reward` of the user's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from metareward.data.eft_from_labels import require_two_values
from metareward.data.files import resolve_file
from metareward.engines.base import EngineError
from metareward.errors import UserError
from metareward.evaluation.constraints.prompts import CONSTRAINTS
from metareward.evaluation.constraints.world import criterion_holds, require_checkers
from metareward.evaluation.held_out import Oracle
from metareward.evaluation.verifiable.answers import check, read_tasks
from metareward.evaluation.verifiable.instructions import follow, read_instructed_prompts
from metareward.method.criteria import SENTENCE, Criterion
from metareward.method.import_path import import_object
from metareward.method.judge import Rubric
from metareward.method.scores import TOLERANCE
from metareward.method.template import conversation
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.types import Message, Prompt

Label = Callable[[Prompt, Sequence[str]], Awaitable[Sequence[float]]]
Holds = Callable[[Prompt, str, str, str | None], bool | None]
"""Whether an answer to a prompt meets a question, which may quote a sentence of the prompt; None: unknown."""


@dataclass(frozen=True, slots=True)
class Verifier:
    """A program that labels answers: ``label`` gives a number on the rubric's scale to each.

    ``settings`` decide the labels, for the fingerprint of stored ones; ``prompts``: the only ones that it can check.
    ``holds`` answers the criteria of a rubric.
    """

    name: str
    label: Label
    settings: Mapping[str, object]
    prompts: tuple[Prompt, ...] | None = None
    holds: Holds | None = None

    def criteria(self, rubric: Rubric, prompt: Prompt, answer: str) -> tuple[tuple[str, bool], ...]:
        """The questions of the rubric's criteria with what is right, as far as it is known."""
        asked = [each for each in rubric.criteria if each.program is None] if self.holds else []
        return tuple(
            (question, met)
            for criterion in asked
            for question in criterion.questions(prompt)
            if self.holds and (met := self.holds(prompt, answer, question, _quoted(criterion, question))) is not None
        )


def _quoted(criterion: Criterion, question: str) -> str | None:
    """The sentence that a question of ``criterion`` quotes; None where it quotes none."""
    before, slot, after = criterion.question.partition(SENTENCE)
    return question.removeprefix(before).removesuffix(after) if slot else None


def open_verifier(
    name: str, bound: BoundRecipe, prompts: str | None, label_range: tuple[float, float] | None
) -> Verifier:
    """The verifier of that name; see the module. ``label_range``: the ends of its scale, if not the rubric's.

    ``prompts`` is the file of the benchmark's prompts. Raises `UserError`.
    """
    rubric = bound.rubric
    require_two_values(rubric)
    low, high = rubric.min_score, rubric.max_score
    if name == "oracle":
        oracle = bound.oracle
        if oracle is None:
            raise UserError(
                f"--verifier oracle: prompts.source {bound.recipe.prompts.source} has none; fix: make it "
                "constraints or pocket, or name another verifier, as module:name"
            )
        holds: Holds | None = None
        if bound.recipe.prompts.source == CONSTRAINTS:
            require_checkers()

            def holds(prompt: Prompt, answer: str, question: str, sentence: str | None) -> bool | None:
                return criterion_holds(prompt.messages[-1].content, answer, question, sentence)

        return Verifier(name, _oracle_labels(oracle, rubric), {"scale": [low, high]}, holds=holds)
    if name in ("ifeval", "verifiable"):
        if prompts is None:
            raise UserError(f"--verifier {name}: needs --prompts, a file with its prompts and what is right")
        return _benchmark_verifier(name, resolve_file(prompts), rubric)
    if ":" not in name:
        raise UserError(f"--verifier {name}: not known; fix: make it oracle, ifeval, verifiable or package.module:name")
    found = import_object(name, "--verifier", ("score",))
    least, most = label_range or (low, high)
    if not least < most:
        raise UserError(f"--label-range {least:g} {most:g}: the lowest label must come first and be lower")

    async def label(prompt: Prompt, answers: Sequence[str]) -> list[float]:
        scores = [float(score) for score in await found.value.score(prompt, answers)]
        if len(scores) != len(answers) or not all(map(math.isfinite, scores)):
            raise EngineError(f"{name} must give {len(answers)} finite scores, one for each answer, not {scores!r}")
        if outside := [score for score in scores if not least - TOLERANCE <= score <= most + TOLERANCE]:
            raise UserError(
                f"--verifier {name}: gave {outside[0]:g} to an answer to prompt {prompt.id}, outside {least:g} to "
                f"{most:g}; fix: --label-range LOW HIGH, the ends of its scale"
            )
        return [low + (high - low) * (score - least) / (most - least) for score in scores]

    settings = {"source": found.sha256, "range": [least, most], "scale": [low, high]}
    return Verifier(name, label, settings, holds=getattr(found.value, "holds", None))


def _oracle_labels(oracle: Oracle, rubric: Rubric) -> Label:
    """True scores; near is not enough for the highest one, so that "all is right" is what it means."""
    below = float(rubric.verdict.values[-2])

    async def label(prompt: Prompt, answers: Sequence[str]) -> list[float]:
        scores = [oracle.answer_score(prompt, answer) for answer in answers]
        return [score if score >= oracle.full_score - TOLERANCE else min(score, below) for score in scores]

    return label


def _benchmark_verifier(name: str, path: Path, rubric: Rubric) -> Verifier:
    checks: dict[str, Callable[[str], bool]] = {}  # by the prompt's id, and by its text for answers of a file
    prompts = []
    if name == "ifeval":
        for instructed in read_instructed_prompts(path):
            prompts.append(Prompt(instructed.id, (Message("user", instructed.prompt),)))
            checks[instructed.id] = lambda text, each=instructed: all(follow(each, text).strict)  # type: ignore[misc]
    else:
        for task in read_tasks(path):
            prompts.append(Prompt(task.id, task.messages))
            checks[task.id] = lambda text, each=task: check(each, text).outcome == "correct"  # type: ignore[misc]
    by_text = {conversation(prompt.messages): checks[prompt.id] for prompt in prompts}

    async def label(prompt: Prompt, answers: Sequence[str]) -> list[float]:
        right = checks.get(prompt.id) or by_text.get(conversation(prompt.messages))
        if right is None:
            raise UserError(f"--answers: prompt {prompt.id} is none of those in {path}; fix: give it that prompt's id")
        return [rubric.max_score if right(answer) else rubric.min_score for answer in answers]

    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Verifier(name, label, {"file": digest, "scale": [rubric.min_score, rubric.max_score]}, tuple(prompts))
