"""Which of two outputs is better: judges of several kinds behind one interface, `PairwiseJudge`.

* `LabelJudge` reads both outputs and names one: AlpacaEval's own question.
* `RubricPairwiseJudge` knows only its rubric. It grades each output alone, N times, and the preference is what a random
  judgment of each would say: the share of the N x N pairs of scores that the output wins, equal scores half.
* `StoredScoresJudge` is the same with scores that are there already.
* `OracleJudge` asks an oracle: all, half or nothing.

The last three see one output at a time, so they have no position bias, and swapping the two models turns every
preference p into 1 - p.

The text of AlpacaEval 2's question is the user's copy of ``alpaca_eval_clf.txt`` (tatsu-lab/alpaca_eval,
evaluators_configs): ChatML with ``{instruction}``, ``{output_1}`` (named m) and ``{output_2}`` (named M). It is cut
into messages before it is filled, so an output that holds ChatML marks can't open a message of its own. The judge
writes one token. Where the engine gives token probabilities, the share of the first output is P(m) / (P(m) + P(M));
otherwise, also where a server refuses to give them, the sampled label decides. Any other text is no preference.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, get_args

from metareward.data.files import read_text
from metareward.engines.base import LogprobsUnavailableError
from metareward.errors import UserError
from metareward.evaluation.held_out import Oracle
from metareward.evaluation.judges import JudgeClient, Output, QueryResults, ask_judge, cached_queries, grade
from metareward.generation.verdicts import RubricGrader
from metareward.method.scores import TOLERANCE
from metareward.method.template import conversation, fill, require
from metareward.seeds import derive
from metareward.types import ChatRole, Completion, Message, Messages, Prompt, Sampling

FIRST, SECOND = "m", "M"

# One token, at temperature 1, with the five most probable ones: the setting of weighted_alpaca_eval_gpt4_turbo.
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_tokens=1, top_logprobs=5)

Mode = Literal["token probabilities", "sampled label", "scores of each alone", "truth"]

_MESSAGE = re.compile(r"<\|im_start\|>[ \t]*(\w+)[^\n]*\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class LabelPrompt:
    """The messages with their slots, and the digest of the file they come from."""

    messages: Messages
    sha256: str

    def query(self, instruction: str, first: str, second: str) -> Messages:
        """The question, ``first`` shown first."""
        slots = {"instruction": instruction, "output_1": first, "output_2": second}
        return tuple(replace(message, content=fill(message.content, slots)) for message in self.messages)


@dataclass(frozen=True, slots=True)
class FirstShare:
    """How much of the preference the output shown first got, in [0, 1], and how that was read."""

    share: float
    mode: Mode


def load_label_prompt(path: Path) -> LabelPrompt:
    """The judge's prompt from a ChatML file. Raises `UserError` when it holds no messages or lacks a slot."""
    text = read_text(path)
    require(text, str(path), "instruction", "output_1", "output_2")
    messages = []
    for name, content in _MESSAGE.findall(text):
        role: ChatRole | None = next((each for each in get_args(ChatRole) if each == name), None)
        if role is None:
            raise UserError(f"{path}: a message of role {name!r}; fix: use system, user or assistant")
        messages.append(Message(role, content.strip()))
    if not messages:
        raise UserError(f"{path}: no <|im_start|> messages in it; fix: name the evaluator's alpaca_eval_clf.txt")
    return LabelPrompt(tuple(messages), hashlib.sha256(text.encode()).hexdigest())


def read_label(completion: Completion) -> FirstShare | None:
    """What the judge's token says; None when neither label is there. A label that is not listed has probability 0."""
    if not (completion.steps and completion.steps[0].top_logprobs):
        label = completion.text.strip()
        return FirstShare(float(label == FIRST), "sampled label") if label in (FIRST, SECOND) else None
    for cut in (str, str.strip):  # forms with a space count only where no other form of a label is there
        first, second = (
            math.fsum(math.exp(each.logprob) for each in completion.steps[0].top_logprobs if cut(each.text) == label)
            for label in (FIRST, SECOND)
        )
        if first + second > 0:
            return FirstShare(first / (first + second), "token probabilities")
    return None


Unjudged = Literal["refused", "unreadable"]
Scores = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class OutputPair:
    """Two outputs to one prompt, in the order in which they are shown. Ids of prompts are unique among the pairs."""

    prompt: Prompt
    first: str
    second: str


class PairwiseJudge(Protocol):
    """Anyone who compares two outputs."""

    @property
    def name(self) -> str:
        """What the judge is called in annotations."""
        ...

    async def shares(self, pairs: Sequence[OutputPair]) -> Mapping[str, FirstShare | Unjudged]:
        """By prompt id: how much of the preference the output shown first gets, or why there is none.

        Raises `UserError` as `metareward.evaluation.judges.cached_queries` does.
        """
        ...


@dataclass(frozen=True, slots=True)
class LabelJudge:
    """The engine of ``client``, asked AlpacaEval's question."""

    client: JudgeClient
    prompt: LabelPrompt
    settings: Mapping[str, object]

    @property
    def name(self) -> str:
        """The client's judge."""
        return self.client.name

    async def shares(self, pairs: Sequence[OutputPair]) -> Mapping[str, FirstShare | Unjudged]:
        """Each pair is one question of one token."""
        queries = [
            Prompt(pair.prompt.id, self.prompt.query(conversation(pair.prompt.messages), pair.first, pair.second))
            for pair in pairs
        ]

        results = await ask_labels(self.client, self.prompt, queries, "alpaca", self.settings)
        shares: dict[str, FirstShare | Unjudged] = {}
        for pair in pairs:
            document = results.documents.get(pair.prompt.id)
            share = None if document is None else document.get("first_share")
            if document is None:
                shares[pair.prompt.id] = "refused"
            elif isinstance(share, float):
                by_token = document["mode"] == "token probabilities"
                shares[pair.prompt.id] = FirstShare(share, "token probabilities" if by_token else "sampled label")
            else:
                shares[pair.prompt.id] = "unreadable"
        return shares


async def ask_labels(
    client: JudgeClient, prompt: LabelPrompt, queries: Sequence[Prompt], purpose: str, settings: Mapping[str, object]
) -> QueryResults:
    """Documents with ``first_share`` and ``mode``, empty for a reply that is neither label; ``purpose`` seeds.

    Raises `UserError` as `cached_queries` does.
    """

    answered, refused = False, False  # with log-probabilities, so far

    async def work(query: Prompt) -> dict[str, object]:
        nonlocal answered, refused
        sampling = replace(SAMPLING, seed=derive(client.seed, purpose, query.id))
        if refused and not answered:
            sampling = replace(sampling, top_logprobs=0)
        try:
            (completion,) = await ask_judge(client.engine, query.messages, sampling)
            answered = answered or bool(completion.steps)
        except LogprobsUnavailableError:
            refused, sampling = True, replace(sampling, top_logprobs=0)
            (completion,) = await ask_judge(client.engine, query.messages, sampling)
        read = read_label(completion)
        return {} if read is None else {"first_share": read.share, "mode": read.mode}

    return await cached_queries(client, queries, work, {"prompt": prompt.sha256, **settings})


@dataclass(frozen=True, slots=True)
class RubricPairwiseJudge:
    """The engine of ``client``, which grades every output once, however many pairs it is in."""

    client: JudgeClient
    grader: RubricGrader

    @property
    def name(self) -> str:
        """The client's judge."""
        return self.client.name

    async def shares(self, pairs: Sequence[OutputPair]) -> Mapping[str, FirstShare | Unjudged]:
        """What the scores of both outputs come to."""
        outputs = {
            each.id: each
            for pair in pairs
            for text in (pair.first, pair.second)
            for each in (Output.of(pair.prompt, text),)
        }
        results = await grade(self.client, self.grader, list(outputs.values()))
        scores = {key: tuple(document["scores"]) for key, document in results.documents.items()}
        return {
            pair.prompt.id: _share(*(scores.get(Output.of(pair.prompt, text).id) for text in (pair.first, pair.second)))
            for pair in pairs
        }


def _share(first: Scores | None, second: Scores | None) -> FirstShare | Unjudged:
    if first is None or second is None:
        return "refused"
    one, other = ([score for score in each if score is not None] for each in (first, second))
    if not one or not other:
        return "unreadable"
    won = sum(_point(a, b) for a in one for b in other)
    return FirstShare(won / (len(one) * len(other)), "scores of each alone")


def _point(a: float, b: float) -> float:
    return 0.5 if abs(a - b) <= TOLERANCE else float(a > b)


@dataclass(frozen=True, slots=True)
class StoredScoresJudge:
    """Scores that are there already, by prompt id and the output's text."""

    name: str
    scores_N: Mapping[tuple[str, str], Scores]

    async def shares(self, pairs: Sequence[OutputPair]) -> Mapping[str, FirstShare | Unjudged]:
        """What the scores of both outputs come to; an output without any is refused."""
        return {
            pair.prompt.id: _share(*(self.scores_N.get((pair.prompt.id, text)) for text in (pair.first, pair.second)))
            for pair in pairs
        }


@dataclass(frozen=True, slots=True)
class OracleJudge:
    """The truth, where an oracle knows it."""

    oracle: Oracle
    name: str = "oracle"

    async def shares(self, pairs: Sequence[OutputPair]) -> Mapping[str, FirstShare | Unjudged]:
        """1 for the better output, one half for equal ones."""
        shares = {}
        for pair in pairs:
            first, second = (self.oracle.answer_score(pair.prompt, text) for text in (pair.first, pair.second))
            shares[pair.prompt.id] = FirstShare(_point(first, second), "truth")
        return shares
