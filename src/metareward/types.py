"""The values that flow through the method: frozen, complete when made, never filled in later.

Letters used everywhere: K answers per prompt, N judgments per answer, M judgments of the disputed
answer, T iterations, P prompts; a suffix such as ``scores_K`` names the shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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
    """An instruction to answer: a conversation whose last turn is the user's. ``id`` is unique in a run."""

    id: str
    messages: Messages


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw a completion. ``temperature`` 0 is greedy; ``max_tokens`` counts new tokens.

    ``seed`` decides every draw: sample ``i`` of a request depends on ``(seed, i)`` and on nothing
    else that happens to be in the batch. ``top_logprobs``: how many of the most probable tokens the engine reports
    at each step, with their log-probabilities.
    """

    temperature: float
    top_p: float
    max_tokens: int
    seed: int = 0
    top_logprobs: int = 0


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
    """What a model wrote. ``finish`` is ``length`` when the token limit cut it off; ``tokens`` counts new tokens.

    ``steps`` are there when ``Sampling.top_logprobs`` asked for them: one to a token, and their texts make up ``text``.
    """

    text: str
    finish: Literal["stop", "length"]
    tokens: int
    steps: tuple[Step, ...] = ()


# How the reading of a judgment ended. Only `Scored` carries a number (Meta-Rewarding section 2.1).


@dataclass(frozen=True, slots=True)
class Scored:
    """The judgment ends in a readable score inside the rubric's range."""

    score: float
    kind: Literal["scored"] = "scored"


@dataclass(frozen=True, slots=True)
class Unparsed:
    """No score can be read: none is there, it is out of range, or the last anchor contradicts itself."""

    reason: Literal["missing", "out_of_range", "contradictory"]
    kind: Literal["unparsed"] = "unparsed"


@dataclass(frozen=True, slots=True)
class Truncated:
    """The token limit cut the text off, so whatever it ends in is not its verdict."""

    kind: Literal["truncated"] = "truncated"


Reading = Scored | Unparsed | Truncated


@dataclass(frozen=True, slots=True)
class Judgment:
    """One rubric judgment of one answer. ``index`` is its sample number, 0..N-1.

    ``reasoning`` is what came before ``text`` and is no part of it (`metareward.method.judge`).
    """

    index: int
    text: str
    tokens: int
    reading: Reading
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A distinct answer with its judgments. ``index``: its sample number, 0..K-1; ``reasoning``: see `Judgment`."""

    index: int
    text: str
    finish: Literal["stop", "length"]
    tokens: int
    judgments_N: tuple[Judgment, ...]
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Sample ``index`` repeated the text of sample ``of`` exactly, and was not judged again."""

    index: int
    of: int


# How the reading of a meta-judgment ended.


@dataclass(frozen=True, slots=True)
class Won:
    """The meta-judge prefers the judgment whose index is ``winner``."""

    winner: int
    kind: Literal["won"] = "won"


@dataclass(frozen=True, slots=True)
class Tied:
    """The meta-judge says that neither is better."""

    kind: Literal["tied"] = "tied"


Verdict = Won | Tied | Unparsed | Truncated


@dataclass(frozen=True, slots=True)
class MetaJudgment:
    """One comparison of judgments ``first`` and ``second`` (their indices), shown in that order."""

    first: int
    second: int
    text: str
    tokens: int
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Dispute:
    """The answer the judge is least sure of, and every comparison made of its judgments.

    ``candidate`` is the answer's sample number; ``judgments_M`` are the indices of its valid judgments.
    """

    candidate: int
    judgments_M: tuple[int, ...]
    meta: tuple[MetaJudgment, ...]


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """One prompt's whole life. All scores, battles and pairs are recomputed from it."""

    prompt: Prompt
    candidates_K: tuple[Candidate, ...]
    duplicates: tuple[Duplicate, ...]
    dispute: Dispute | None


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one prompt, the better one first.

    For ``actor`` pairs the scores are mean rewards; for ``judge`` pairs they are Elo ratings.
    ``chosen_index`` and ``rejected_index`` are sample numbers: of answers, or of judgments of answer ``candidate``.
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


DropReason = Literal[
    "too_few_valid_answers",
    "all_scores_equal",
    "tiers_overlap",
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
