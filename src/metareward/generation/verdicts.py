"""Judgments and meta-judgments with their verdicts: as written, asked again, or drawn by constrained decoding.

    text         one request; the verdict is read from what the judge wrote, and may be unreadable
    constrained  a second request continues the judge's reasoning and ``Score:`` by one of the rubric's values
    retries      an unreadable judgment is asked again with another derived seed, up to that many times

**Constrained: one mechanism for every judgment.** The verdict that the judge wrote is dropped, readable or not, and
drawn again. Drawing only the unreadable ones would save requests, but mix two distributions, and the share of each
would depend on the answer where readability does. Where the judge writes its verdict in the rubric's form both are the
same distribution: the one after its reasoning, restricted to the rubric's values. Reasoning that the token limit cut
off gets a verdict, too: to leave long judgments out would select answers by how long they are discussed. Such a verdict
rests on unfinished reasoning and is noisier. A tie isn't among the values: a constrained meta-judge names a winner.

**Readable is not right.** Where training has pushed the tokens of a score down, the draw falls on whatever value is
left: a pocket judge after DPO without an anchor gave 0 to answers of which it had written five times yes. So the
verdict that was written is read as well (``written``): if it is rarely readable, the drawn ones mean little.

**Retries select.** A judgment that is asked again is drawn from the judge's readable judgments: that fills gaps, but
scores that the judge can't write stay rare, however often it is asked. An unreadable judgment costs as many tokens as
another.
"""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Generic, Protocol, TypeVar

from pydantic import Field

from metareward.engines.base import EngineError, LogprobsUnavailableError, run_concurrently
from metareward.method.criteria import (
    CHOICES,
    Criterion,
    all_questions,
    criteria_score,
    criterion_request,
    yes_probability,
)
from metareward.method.judge import TOP_LOGPROBS, Reasoning, Rubric, expected_score, mean_score, score_distribution
from metareward.method.meta_judge import MetaRubric
from metareward.method.verdict_format import Kind, VerdictFormat
from metareward.settings import Section, Text
from metareward.text import fold, replace_surrogates
from metareward.types import (
    Completion,
    CriterionAnswer,
    Judgment,
    Message,
    Messages,
    MetaJudgment,
    Prompt,
    Reading,
    Sampling,
    Scored,
    Truncated,
    Unparsed,
    Verdict,
)

T = TypeVar("T")
_VERDICT_TOKENS = 8  # of a value such as " Judgment A" and its end, with any tokenizer
# Opening markup and quotes of the verdict that is left out.
_OPENING = re.compile(r"(?:(?<![\w\"'/])>|[*_`\"'“‘(\[{<$\\#-])+[ \t]*\Z")


class VerdictFormatSettings(Section):
    """How the rubric's text asks for the verdict; it is masked in the texts that the judge sees."""

    kind: Kind = Field("label", description="Its form: label as in 'Score: 4', tag, JSON key, \\boxed{4}, or [[4]]")
    words: Annotated[tuple[Text, ...], Field(strict=False)] = Field(
        (), description="Labels, tags or keys of the verdict, the written one first; empty: many, in many languages"
    )


class Ask(Protocol):
    """Sends one request; ``purpose`` tells its seed from those of the other requests about the same judgments."""

    def __call__(
        self, messages: Messages, sampling: Sampling, n: int, *purpose: str | int
    ) -> Awaitable[Sequence[Completion]]:
        """``n`` completions of the conversation."""
        ...


@dataclass(frozen=True, slots=True)
class VerdictRules:
    """How verdicts are obtained: ``constrained`` or as written, and how often an unreadable judgment is asked again."""

    constrained: bool = False
    retries: int = 0

    def most_tokens(self, max_tokens: int) -> int:
        """The most new tokens of one judgment, all attempts and constrained verdicts included."""
        return (1 + self.retries) * (max_tokens + (_VERDICT_TOKENS if self.constrained else 0))

    @property
    def settings(self) -> dict[str, object]:
        """What decides the verdicts, for fingerprints."""
        return {"verdict": "constrained" if self.constrained else "text", "retries": self.retries}


TEXT = VerdictRules()


@dataclass(frozen=True, slots=True)
class RubricGrader:
    """How answers are graded: the rubric, N judgments of each answer, their sampling, and how their scores are read.

    ``expected``: a judgment's score is the mean over the scores possible at its place, by their token probabilities
    (`expected_score`; of constrained verdicts `choice_probabilities`). ``rules``: how verdicts are obtained.
    ``reasoning`` separates a model's reasoning from its judgments. By a rubric of criteria only the rubric, N and
    ``reasoning`` matter.
    """

    rubric: Rubric
    n: int
    sampling: Sampling
    expected: bool = False
    rules: VerdictRules = TEXT
    reasoning: Reasoning | None = None

    @property
    def most_tokens(self) -> int:
        """The most new tokens of one judgment."""
        if self.rubric.criteria:
            return sum(each.most_questions for each in self.rubric.criteria)
        return self.rules.most_tokens(self.sampling.max_tokens)

    async def judge(self, ask: Ask, prompt: Prompt, answer: str, start: int = 0) -> tuple[Judgment, ...]:
        """N judgments of ``answer``, the first with index ``start``; by criteria one, N times.

        Raises what ``ask`` raises.
        """
        if self.rubric.criteria:
            judged = await self._judge_by_criteria(ask, prompt, answer)
            return tuple(replace(judged, index=index) for index in range(self.n))
        messages = self.rubric.render(prompt, answer)
        sampling = replace(self.sampling, top_logprobs=TOP_LOGPROBS if self.expected else 0)
        writer = _Writer(ask, messages, sampling, self.rubric.verdict, self._read, self.rules, self.reasoning)
        written_N = await writer.write(self.n, start)
        return tuple(
            Judgment(index, each.text, each.tokens, each.outcome, each.reasoning, each.attempts, each.own)
            for index, each in enumerate(written_N, start)
        )

    async def _judge_by_criteria(self, ask: Ask, prompt: Prompt, answer: str) -> Judgment:
        """One greedy token for each question that no program answers; a question without a reply leaves no score."""
        rubric, asked = self.rubric, tuple(all_questions(self.rubric.criteria, prompt))
        sampling = Sampling(0.0, 1.0, 1, top_logprobs=TOP_LOGPROBS, choices=CHOICES)
        no_thoughts = f"{self.reasoning.start}\n\n{self.reasoning.end}\n\n" if self.reasoning else ""

        async def probability(number: int, criterion: Criterion, question: str) -> tuple[float | None, int]:
            if criterion.program is not None:
                return checked_probability(criterion.program(prompt, answer), question), 0
            messages = criterion_request(prompt, answer, question, rubric.template, rubric.system_prompt)
            messages = (*messages, Message("assistant", no_thoughts)) if no_thoughts else messages
            (reply,) = await ask(messages, sampling, 1, "criterion", number)
            if not reply.steps and not reply.refused:
                raise LogprobsUnavailableError(
                    f"the judge's reply {reply.text[:40]!r} comes without token probabilities, which criteria need; "
                    "fix: a server with logprobs, or judgments.rubric with a text"
                )
            return yes_probability(reply), reply.tokens

        found = await run_concurrently(probability(number, *each) for number, each in enumerate(asked))
        answers = tuple(
            CriterionAnswer(question, each, criterion.weight)
            for (criterion, question), (each, _) in zip(asked, found, strict=True)
            if each is not None
        )
        complete = bool(answers) and len(answers) == len(asked)
        reading = criteria_score(answers, rubric.min_score, rubric.max_score) if complete else Unparsed("missing")
        text = "\n".join(f"{each.probability:.3f} {each.question}" for each in answers)
        return Judgment(0, text, sum(tokens for _, tokens in found), reading, criteria=answers)

    def _read(self, judgment: Completion, drawn: Completion | None) -> Reading:
        if self.expected and drawn is None:
            return expected_score(judgment, self.rubric)
        reading = self.rubric.read(judgment.text, judgment.finish)
        if not self.expected or drawn is None or not isinstance(reading, Scored):
            return reading
        found = self.distribution(drawn, drawn=True)
        return mean_score(found) if found else reading

    def misread(self, judgment: Judgment) -> Reading | None:
        """What the text of a stored judgment says, if that isn't its stored reading; None if it is.

        A mean over several scores, which isn't in the text, must lie in the rubric's range.
        """
        rubric, stored = self.rubric, judgment.reading
        if rubric.criteria:
            if not judgment.criteria or not isinstance(stored, Scored):
                return None
            made = criteria_score(judgment.criteria, rubric.min_score, rubric.max_score)
            return None if made == stored else made
        found = rubric.read(judgment.text)
        if isinstance(stored, Truncated) or found == stored:
            return None
        mean = self.expected and isinstance(stored, Scored) and stored.deviation is not None
        in_range = isinstance(stored, Scored) and rubric.min_score <= stored.score <= rubric.max_score
        return None if mean and in_range and isinstance(found, Scored) else found

    def distribution(self, completion: Completion, drawn: bool) -> dict[float, float]:
        """The probabilities of the scores at the place of a judgment's score, or of the verdict that was ``drawn``.

        Empty where there are none, so that the score itself counts.
        """
        if not drawn:
            return score_distribution(completion, self.rubric)
        verdict = self.rubric.verdict
        values = dict(zip(verdict.choices, map(float, verdict.values), strict=True))
        return {values[name]: each for name, each in choice_probabilities(completion, verdict.choices).items()}

    @property
    def settings(self) -> dict[str, object]:
        """What decides the scores, for the fingerprint of stored ones."""
        rubric, sampling = self.rubric, self.sampling
        return {
            "rubric": rubric.template.sha256,
            "verdict_format": rubric.verdict.settings,
            "scale": [rubric.min_score, rubric.max_score],
            "system": rubric.system_prompt,
            "n": self.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "expected": self.expected,
            **self.rules.settings,
        }


def checked_probability(found: float, question: str) -> float:
    """What a program found about a criterion. Raises `EngineError` for what is no probability."""
    if not 0 <= found <= 1:  # NaN is none, either
        raise EngineError(f"the program of criterion {question!r} gave {found!r}, which is not between 0 and 1")
    return float(found)


async def compare_judgments(
    ask: Ask,
    metarubric: MetaRubric,
    messages: Messages,
    pair: tuple[int, int],
    sampling: Sampling,
    rules: VerdictRules = TEXT,
    reasoning: Reasoning | None = None,
) -> MetaJudgment:
    """The comparison that ``messages``, the rendered meta-rubric, ask for, of the judgments with the indices ``pair``.

    Raises what ``ask`` raises.
    """

    def read(comparison: Completion, _: Completion | None) -> Verdict:
        return metarubric.read(comparison.text, comparison.finish, *pair)

    (each,) = await _Writer(ask, messages, sampling, metarubric.verdict, read, rules, reasoning).write(1)
    return MetaJudgment(*pair, each.text, each.tokens, each.outcome, each.attempts, each.own)


def choice_probabilities(drawn: Completion, choices: Collection[str]) -> dict[str, float]:
    """The probabilities of the choices at the token that separates all of them.

    Empty if no token does, as where 1 and 10 begin with the same token, and without probabilities: what was drawn
    stands then, whose mean is the same.
    """
    before = ""
    for step in drawn.steps:
        weights, shared = dict[str, float](), list[float]()
        for each in step.top_logprobs:
            begun, probability = before + each.text, math.exp(each.logprob)
            # A tokenizer may drop the blank that a text begins with.
            named = [choice for choice in choices if choice.startswith(begun) or choice.lstrip().startswith(begun)]
            if len(named) == 1:
                weights[named[0]] = weights.get(named[0], 0.0) + probability
            elif named and probability:
                shared.append(probability)
        # A token that may begin several choices is that of the one that has no token of its own: " 0" as " ", "0".
        left = set(choices) - weights.keys()
        if len(left) == len(shared) == 1:
            weights[left.pop()] = shared[0]
        total = math.fsum(weights.values())
        if weights.keys() == set(choices) and total > 0:
            return {choice: weight / total for choice, weight in weights.items()}
        before += step.text
    return {}


@dataclass(frozen=True, slots=True)
class _Written(Generic[T]):
    """A judgment or comparison: its text without the thinking in ``reasoning``, and all tokens spent on it.

    ``own``: the outcome of the verdict that a constrained one replaced.
    """

    text: str
    reasoning: str
    tokens: int
    outcome: T
    attempts: int = 1
    own: T | None = None


@dataclass(frozen=True, slots=True)
class _Writer(Generic[T]):
    """Asks ``messages``. ``read`` gives the outcome of a judgment, with the choice that was drawn for it if one was."""

    ask: Ask
    messages: Messages
    sampling: Sampling
    verdict: VerdictFormat
    read: Callable[[Completion, Completion | None], T]
    rules: VerdictRules
    reasoning: Reasoning | None

    async def write(self, n: int, start: int = 0) -> list[_Written[T]]:
        """``n`` of them, the first with index ``start``, which tells the seeds of one round from those of another."""
        free = self.sampling if not self.rules.constrained else replace(self.sampling, top_logprobs=0)
        completions_N = await self.ask(self.messages, free, n, *(("from", start) if start else ()))
        return await run_concurrently(self._finish(*each, free) for each in enumerate(completions_N, start))

    async def _finish(self, index: int, completion: Completion, free: Sampling) -> _Written[T]:
        """The judgment with this index: its first readable attempt, or the last one."""
        written, tokens = await self._with_verdict(completion, index, 0), 0
        for attempt in range(1, self.rules.retries + 1):
            if not isinstance(written.outcome, Unparsed | Truncated):
                break
            tokens += written.tokens
            (completion,) = await self.ask(self.messages, free, 1, "retry", index, attempt)
            written = replace(await self._with_verdict(completion, index, attempt), attempts=attempt + 1)
        return replace(written, tokens=tokens + written.tokens)

    async def _with_verdict(self, completion: Completion, index: int, attempt: int) -> _Written[T]:
        reasoning, text = self._split(replace(completion, text=replace_surrogates(completion.text)))
        output = replace(completion, text=text)
        if not self.rules.constrained:
            return _Written(text, reasoning, output.tokens, self.read(output, None))
        opened = self._opened(output)
        asked = (*self.messages, Message("assistant", reasoning + opened))
        sampling = replace(self.sampling, choices=self.verdict.choices)
        (drawn,) = await self.ask(asked, sampling, 1, "verdict", index, attempt)
        whole = Completion(opened + drawn.text, "stop", completion.tokens + drawn.tokens)
        return _Written(whole.text, reasoning, whole.tokens, self.read(whole, drawn), own=self.read(output, None))

    def _split(self, completion: Completion) -> tuple[str, str]:
        """The thinking and the judgment; before a constrained verdict, thinking that was cut off is closed."""
        if self.reasoning is None:
            return "", completion.text
        thinking, text = self.reasoning.split(completion.text)
        unfinished = completion.finish == "length" and self.reasoning.end not in completion.text
        if self.rules.constrained and unfinished:
            return f"{completion.text.rstrip()}\n{self.reasoning.end}\n\n", ""
        return thinking, text

    def _opened(self, judgment: Completion) -> str:
        """The judgment's reasoning and the verdict's prefix, so that a verdict can be read whichever choice follows.

        The reasoning ends where the verdict begins: at the last place from which a verdict could be read, if one was
        read, or if this is the only such place and nothing but the rest of its line follows. Else nothing tells the
        verdict from the scores of single criteria, and all of it is reasoning. Where the reader would be in doubt, the
        places are masked, or the verdict gets a line of its own.
        """
        folded = fold(judgment.text)
        places = self.verdict.anchors(folded.text)
        whole = f"{judgment.text.rstrip()}\n\n".lstrip()
        reasoning = [whole, self.verdict.mask(whole)]
        last_line = len(places) == 1 and "\n" not in folded.text[places[0].end :].strip()
        if last_line or (places and not isinstance(self.read(judgment, None), Unparsed | Truncated)):
            before = _OPENING.sub("", judgment.text[: folded.positions()[places[-1].start]])
            reasoning = [before, self.verdict.mask(before), *reasoning]
        opened = [each + self.verdict.prefix for each in reasoning]
        return next(filter(self._is_readable, opened), opened[-1])

    def _is_readable(self, opened: str) -> bool:
        """Whether each choice is read after ``opened`` as it is after the prefix alone."""

        def read(text: str, choice: str) -> T:
            return self.read(Completion(text + choice, "stop", 0), None)

        return all(read(opened, choice) == read(self.verdict.prefix, choice) for choice in self.verdict.choices)
