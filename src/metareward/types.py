"""The data types of the method, all frozen, and the `Judge` and `Reward` protocols.

A suffix such as ``scores_K`` names a shape. K: answers per prompt, N: judgments per answer, M: valid judgments of the
disputed answer, T: iterations, P: prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

ChatRole = Literal["system", "user", "assistant"]
ModelRole = Literal["actor", "judge", "meta_judge"]
PairKind = Literal["actor", "judge"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: ChatRole
    content: str


Messages = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt for the actor: a conversation whose last turn is the user's. ``id`` is unique in a run."""

    id: str
    messages: Messages


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters. ``temperature`` 0 is greedy; ``max_tokens`` counts new tokens.

    Sample ``i`` of a request depends on ``(seed, i)`` and not on the other requests of the batch. ``top_logprobs``: how
    many of the most probable tokens the engine returns at each step, with their log-probabilities.

    With ``choices`` the completion is exactly one of them, and ``max_tokens`` doesn't apply (constrained decoding). At
    each step the tokens that continue no choice are masked, the model's probabilities of the others at ``temperature``
    are renormalised, then top-p applies. If one token separates all choices, a choice is drawn with its probability
    among the choices; else with the product of its steps' renormalised probabilities. ``top_logprobs`` are renormalised
    in the same way. Choices that differ only in case and outer blanks are spellings of one: an engine may leave out
    those for which its tokenizer has no tokens of their own, but not the last. Raises `ValueError` for an empty choice
    or one that is there twice.
    """

    temperature: float
    top_p: float
    max_tokens: int
    seed: int = 0
    top_logprobs: int = 0
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the choices."""
        if "" in self.choices or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices must be different texts that aren't empty, not {self.choices}")


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """A candidate token and its log-probability under the model (temperature 1, no top-p)."""

    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class Step:
    """The text of one sampled token, and the most probable tokens at its position, best first."""

    text: str
    top_logprobs: tuple[TopLogprob, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """A sampled completion. ``finish`` is ``length`` when ``max_tokens`` cut it off; ``tokens`` counts new tokens.

    ``steps``, one per token, are present if ``Sampling.top_logprobs`` is above 0; their texts joined are ``text``.
    ``refused``: the server marks ``text`` as a refusal, or its content filter left nothing; there are no steps.
    """

    text: str
    finish: Literal["stop", "length"]
    tokens: int
    steps: tuple[Step, ...] = ()
    refused: bool = False


# The result of parsing a judgment. Only `Scored` has a number (Meta-Rewarding section 2.1).


@dataclass(frozen=True, slots=True)
class Scored:
    """The judgment ends in a valid score in the rubric's range.

    ``deviation``: the standard deviation of the score under the judge's own probabilities, where it is their mean; None
    for a score as written.
    """

    score: float
    kind: Literal["scored"] = "scored"
    deviation: float | None = None


Reason = Literal["missing", "out_of_range", "ambiguous"]


@dataclass(frozen=True, slots=True)
class Unparsed:
    """No score or verdict: none was found, it is out of range, or a careful person would be in doubt: ``ambiguous``."""

    reason: Reason
    kind: Literal["unparsed"] = "unparsed"


@dataclass(frozen=True, slots=True)
class Truncated:
    """The token limit cut the text off, so its last score or winner need not be the final one."""

    kind: Literal["truncated"] = "truncated"

    @property
    def reason(self) -> str:
        """``truncated``, so that every outcome without a score or verdict has a reason."""
        return self.kind


Reading = Scored | Unparsed | Truncated


@dataclass(frozen=True, slots=True)
class CriterionAnswer:
    """What a judge, or a program, says of one Yes-or-No ``question`` about an answer: how probable Yes is, 0 to 1."""

    question: str
    probability: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Judgment:
    """One rubric judgment of one answer. ``index`` is its sample number, 0..N-1.

    ``reasoning`` is the model's thinking, which precedes ``text`` (`metareward.method.judge.Reasoning`). ``attempts``:
    how often it was asked, the last attempt being this one; ``tokens`` are those of all attempts. ``written``: what the
    judge's own verdict reads as, where a constrained one took its place; it tells a judge that has lost the form.
    ``criteria``: the answers that the score is made of, where the rubric is a list of criteria.
    """

    index: int
    text: str
    tokens: int
    reading: Reading
    reasoning: str = ""
    attempts: int = 1
    written: Reading | None = None
    criteria: tuple[CriterionAnswer, ...] = ()

    @property
    def own_reading(self) -> Reading:
        """What the verdict that the judge wrote itself reads as, where a constrained one took its place, too."""
        return self.reading if self.written is None else self.written


@dataclass(frozen=True, slots=True)
class Candidate:
    """A distinct answer with its judgments. ``index``: its sample number, 0..K-1; ``reasoning``: see `Judgment`.

    ``reward``: the score given by a `Reward`, used instead of the mean of the judgments' scores; finite, or None when
    the answer was scored by judgments. Raises `ValueError` for NaN or infinity.
    """

    index: int
    text: str
    finish: Literal["stop", "length"]
    tokens: int
    judgments_N: tuple[Judgment, ...]
    reasoning: str = ""
    reward: float | None = None

    def __post_init__(self) -> None:
        """Check that the reward is finite."""
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"the reward of answer {self.index} must be finite, not {self.reward}")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Sample ``index`` has exactly the text of sample ``of`` and was not judged again."""

    index: int
    of: int


# The result of parsing a meta-judgment: one of these two, `Unparsed` or `Truncated`.


@dataclass(frozen=True, slots=True)
class Won:
    """The meta-judge prefers the judgment whose index is ``winner``."""

    winner: int
    kind: Literal["won"] = "won"


@dataclass(frozen=True, slots=True)
class Tied:
    """The meta-judge prefers neither judgment."""

    kind: Literal["tied"] = "tied"


Verdict = Won | Tied | Unparsed | Truncated


@dataclass(frozen=True, slots=True)
class MetaJudgment:
    """One comparison of judgments ``first`` and ``second`` (their indices), shown in that order.

    ``attempts``, ``tokens`` and ``written``: see `Judgment`.
    """

    first: int
    second: int
    text: str
    tokens: int
    verdict: Verdict
    attempts: int = 1
    written: Verdict | None = None

    @property
    def own_verdict(self) -> Verdict:
        """What the verdict that the meta-judge wrote itself reads as, where a constrained one took its place, too."""
        return self.verdict if self.written is None else self.written


@dataclass(frozen=True, slots=True)
class Dispute:
    """The disputed answer, whose scores vary most, and all comparisons of its judgments.

    ``candidate`` is the answer's sample number; ``judgments_M`` are the indices of its valid judgments.
    """

    candidate: int
    judgments_M: tuple[int, ...]
    meta: tuple[MetaJudgment, ...]


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """All that was generated for one prompt; scores, battle matrices and pairs are computed from it."""

    prompt: Prompt
    candidates_K: tuple[Candidate, ...]
    duplicates: tuple[Duplicate, ...]
    dispute: Dispute | None


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A chosen and a rejected completion of one prompt.

    For ``actor`` pairs the scores are mean rewards; for ``judge`` pairs they are Elo ratings.
    ``chosen_index`` and ``rejected_index`` are sample numbers: of answers, or of judgments of answer ``candidate``.
    A side whose finish is ``length`` was cut off.
    """

    kind: PairKind
    prompt_id: str
    prompt: Messages
    chosen: str
    rejected: str
    chosen_index: int
    rejected_index: int
    chosen_score: float
    rejected_score: float
    candidate: int | None = None
    chosen_finish: Literal["stop", "length"] = "stop"
    rejected_finish: Literal["stop", "length"] = "stop"


DropReason = Literal[
    "too_few_valid_answers",
    "answers_truncated",
    "all_scores_equal",
    "tiers_overlap",
    "margin_too_small",
    "chosen_answer_too_long",
    "no_dispute",
    "no_variance",
    "too_few_judgments",
    "too_few_battles",
    "all_ratings_equal",
    "same_judgment_text",
    "chosen_judgment_too_long",
]


@dataclass(frozen=True, slots=True)
class Dropped:
    """Why a prompt gave no pair of this kind. ``detail`` gives the numbers, in one line."""

    kind: PairKind
    prompt_id: str
    reason: DropReason
    detail: str


@runtime_checkable
class Judge(Protocol):
    """Scores single answers by ``n`` sampled judgments, as `metareward.method.judge.Rubric` asks a model to do.

    Any object with this method can replace the rubric judge. So that a resumed run gives the same records, the result
    should depend on the arguments only.
    """

    async def judge(self, prompt: Prompt, answer: str, n: int) -> Sequence[Judgment]:
        """``n`` judgments of ``answer``, with indices 0..n-1; a judgment without a valid score is `Unparsed`.

        Raises `metareward.engines.base.EngineError` when this answer can't be judged: the prompt then counts as failed.
        """
        ...


class Reward(Protocol):
    """Scores answers without judgments: a verifier or a reward model.

    A score becomes ``Candidate.reward``. With a `Reward` there are no judgments, so there are actor pairs only.
    """

    async def score(self, prompt: Prompt, answers: Sequence[str]) -> Sequence[float]:
        """One finite score per answer, in their order; higher is better.

        Raises `metareward.engines.base.EngineError` when the answers can't be scored: the prompt then counts as failed.
        """
        ...
