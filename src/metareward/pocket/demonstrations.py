"""Training demonstrations for the three roles, right or with measured faults, with the prompts of a run.

With `CLEAN` fault rates demonstrations are right. With `metareward.pocket.build.FAULTY` the actor errs and chats, the
judge is careless and likes chat, and the meta-judge has a position bias: the starting point of the demo.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

from metareward.method.judge import Rubric
from metareward.method.meta_judge import MetaRubric
from metareward.pocket.tasks import (
    CLOSINGS,
    FORM_KIND,
    NUMBER_KIND,
    OPENINGS,
    WORD_KIND,
    Task,
    draw_instruction,
    parse_instruction,
)
from metareward.pocket.world import CRITERIA, Criteria, check_answer, judgment_errors
from metareward.seeds import derive
from metareward.types import Message, Messages, ModelRole, Prompt

RUBRIC = Rubric.load("pocket_judge")
METARUBRIC = MetaRubric.load("pocket_metajudge")

PREAMBLES = (
    "I read the answer with great care and thought about it.",
    "Let me look at every point of this answer, one by one.",
)
HASTY_OPENINGS = ("I read the answer.", "I hope that this answer helps you.")
ALL_ITEMS = tuple(sorted(WORD_KIND | NUMBER_KIND | FORM_KIND))
UNREADABLE_SCORES = ("Score: good", "Score: 3 or 4", "Score: 7")


@dataclass(frozen=True, slots=True)
class FaultRates:
    """The probability of each fault in a demonstration."""

    # the actor
    wrong_kind: float = 0.0  # an item of another kind
    wrong_item: float = 0.0  # a wrong item of the right kind
    missing: float = 0.0  # an item left out
    extra: float = 0.0  # an item too many
    repeated: float = 0.0  # an item given twice
    swapped: float = 0.0  # two items in each other's place
    opening: float = 0.0  # a polite phrase before the answer
    closing: float = 0.0  # a polite phrase after the answer
    # the judge
    wrong_criterion: float = 0.0  # a wrong verdict on a criterion, for each criterion
    chat_bias: float = 0.0  # full marks for an answer that chats
    hasty: float = 0.0  # a hasty judgment, which begins by saying that it read the answer
    hasty_wrong_criterion: float = 0.0  # the same as wrong_criterion, in hasty judgments
    hasty_chat_bias: float = 0.0  # the same as chat_bias, in hasty judgments
    unreadable: float = 0.0  # a judgment without a valid score
    preamble: float = 0.0  # a meaningless preamble
    # the meta-judge
    random_verdict: float = 0.0  # a random winner
    position_bias: float = 0.0  # the judgment shown first wins, whatever it says
    length_bias: float = 0.0  # the longer judgment wins
    no_verdict: float = 0.0  # no winner


CLEAN = FaultRates()


def answer(task: Task, faults: FaultRates, rng: random.Random) -> str:
    """One answer with faults at the given rates; without faults it is right."""
    items = rng.sample(sorted(task.allowed), len(task.expected)) if task.any_of_allowed else list(task.expected)
    wrong_items = sorted(task.kind - task.allowed)
    if rng.random() < faults.wrong_kind:
        items[rng.randrange(len(items))] = rng.choice([item for item in ALL_ITEMS if item not in task.kind])
    if rng.random() < faults.wrong_item and wrong_items:
        items[rng.randrange(len(items))] = rng.choice(wrong_items)
    if rng.random() < faults.missing and len(items) > 1:
        items.pop(rng.randrange(len(items)))
    if rng.random() < faults.extra and wrong_items:
        items.insert(rng.randint(0, len(items)), rng.choice(wrong_items))
    if rng.random() < faults.repeated:
        position = rng.randrange(len(items))
        items.insert(position, items[position])
    if rng.random() < faults.swapped and len(items) > 1:
        a, b = rng.sample(range(len(items)), 2)
        items[a], items[b] = items[b], items[a]
    text = ", ".join(items)
    if rng.random() < faults.opening:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < faults.closing:
        text = f"{text}. {rng.choice(CLOSINGS)}"
    return text


def judgment(criteria: Criteria, faults: FaultRates, rng: random.Random) -> str:
    """One judgment of an answer that meets these ``criteria``, with faults at the given rates."""
    hasty = rng.random() < faults.hasty
    wrong_criterion = faults.hasty_wrong_criterion if hasty else faults.wrong_criterion
    chat_bias = faults.hasty_chat_bias if hasty else faults.chat_bias
    if not criteria.brief and rng.random() < chat_bias:
        verdicts = (True,) * len(CRITERIA)
    else:
        verdicts = tuple(met != (rng.random() < wrong_criterion) for met in astuple(criteria))
    listed = ", ".join(f"{name} {'yes' if met else 'no'}" for name, met in zip(CRITERIA, verdicts, strict=True))
    score = rng.choice(UNREADABLE_SCORES) if rng.random() < faults.unreadable else f"Score: {sum(verdicts)}"
    text = f"{listed}. {score}"
    if hasty:
        return f"{rng.choice(HASTY_OPENINGS)} {text}"
    return f"{rng.choice(PREAMBLES)} {text}" if rng.random() < faults.preamble else text


def verdict(criteria: Criteria, first: str, second: str, faults: FaultRates, rng: random.Random) -> str:
    """One meta-judgment of valid judgments ``first`` (shown as A) and ``second``, with faults at the given rates."""
    draw = rng.random()
    a, b = (judgment_errors(criteria, text, float(text.rpartition("Score: ")[2])) for text in (first, second))
    winner = rng.choice("AB") if a == b else "A" if a < b else "B"
    for rate, faulty_winner in (
        (faults.random_verdict, rng.choice("AB")),
        (faults.position_bias, "A"),
        (faults.length_bias, "A" if len(first) > len(second) else "B"),
    ):
        if draw < rate:
            winner = faulty_winner
            break
        draw -= rate
    return "Both have something." if rng.random() < faults.no_verdict else f"Winner: Judgment {winner}"


ROLES: tuple[ModelRole, ...] = ("actor", "judge", "meta_judge")
# Judged answers have every quality: average rates times one of five factors, drawn for each answer.
_ANSWER_RATES = {"wrong_kind": 0.2, "wrong_item": 0.3, "missing": 0.3, "extra": 0.3, "repeated": 0.2, "swapped": 0.4}
_JUDGED_ANSWERS = tuple(
    FaultRates(
        **{name: rate * factor for name, rate in _ANSWER_RATES.items()},
        opening=0.3 * min(factor + 0.3, 1.5),
        closing=0.3 * min(factor + 0.3, 1.5),
    )
    for factor in (0.0, 0.3, 0.6, 1.0, 1.3)
)
# Compared judgments differ in quality, so that one of them is better.
_WRONG_CRITERION_RATES = (0.0, 0.1, 0.2, 0.35)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """The prompt of one role and the completion to learn."""

    role: ModelRole
    messages: Messages
    completion: str


@dataclass(frozen=True, slots=True)
class TaskMix:
    """What demonstrations show: ``faults``, the ``shares`` of actor, judge and meta-judge, and ``compared``.

    ``compared``: the fault rates of the judgments that the meta-judge compares; wrong_criterion is drawn for each one.
    """

    faults: FaultRates
    shares: tuple[float, float, float]
    compared: FaultRates


# Some of the compared judgments are hasty, most are not: the meta-judge must find their errors, not their style.
PARTLY_HASTY = FaultRates(chat_bias=0.15, hasty=0.35, hasty_wrong_criterion=0.3, hasty_chat_bias=0.5)
EVAL_MIX = TaskMix(CLEAN, (0.3, 0.4, 0.3), PARTLY_HASTY)


def demonstrations(count: int, seed: int, mix: TaskMix, held_out: bool = False) -> Iterator[Demonstration]:
    """``count`` demonstrations by ``seed``, all about held-out instructions or none of them."""
    rng = random.Random(derive(seed, "demonstrations"))
    for role in rng.choices(ROLES, mix.shares, k=count):
        yield _demonstrate(role, draw_instruction(rng, held_out), mix, rng)


def _demonstrate(role: ModelRole, instruction: str, mix: TaskMix, rng: random.Random) -> Demonstration:
    prompt, task = Prompt("", (Message("user", instruction),)), parse_instruction(instruction)
    if role == "actor":
        return Demonstration(role, prompt.messages, answer(task, mix.faults, rng))
    text = answer(task, rng.choice(_JUDGED_ANSWERS), rng)
    criteria = check_answer(instruction, text)
    if role == "judge":
        return Demonstration(role, RUBRIC.render(prompt, text), judgment(criteria, mix.faults, rng))
    while True:
        rates = (replace(mix.compared, wrong_criterion=rng.choice(_WRONG_CRITERION_RATES)) for _ in "AB")
        first, second = (judgment(criteria, each, rng) for each in rates)
        if first != second or rng.random() < 0.1:  # two equal judgments teach nothing
            break
    messages = METARUBRIC.render(prompt, text, first, second)
    return Demonstration(role, messages, verdict(criteria, first, second, mix.faults, rng))
