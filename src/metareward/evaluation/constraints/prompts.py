"""Prompts of the constraint world: a task about a topic, and one to three constraints.

Training and held-out prompts are disjoint by construction: they have different topics, and every seed has the same
split of topics, combinations of families and families. Held-out prompts are of three kinds, told apart by their ids:

held-out-topic         families and combinations that are trained on, about other topics     half
held-out-combination   families that are trained on, together as never in training           a quarter
held-out-family        at least one family that is never trained on                          a quarter
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from metareward.errors import UserError
from metareward.evaluation.constraints.families import FAMILIES, Checker, Family
from metareward.evaluation.verifiable.instructions import Instruction
from metareward.types import Message, Prompt

CONSTRAINTS = "constraints"  # the name of this world as a recipe's prompt source
# What is written about, and the beginning of a word that an answer about it contains.
TOPICS: Mapping[str, str] = {
    "growing tomatoes": "tomato", "riding a bicycle": "bi[ck]", "keeping a cat": r"cats?\b", "baking bread": "bread",
    "learning to swim": "sw[iau]m", "the city of Paris": "paris", "playing the guitar": "guitar",
    "going camping": "camp", "a visit to the zoo": "zoo", "reading books": "book", "drinking coffee": "coffee",
    "walking in the forest": "forest", "the moon": "moon", "taking photos": "photo", "cooking pasta": "pasta",
    "learning to drive": "driv", "winter sports": "winter", "the ocean": "ocean", "playing chess": "chess",
    "planting trees": "tree", "eating breakfast": "breakfast", "owning a dog": r"dogs?\b",
    "listening to music": "music", "public libraries": "librar", "working from home": "work",
    "a good night's sleep": "sleep", "recycling plastic": "plastic|recycl", "electric cars": r"cars?\b",
    "visiting a museum": "museum", "running a marathon": "marathon|run", "making pizza": "pizza",
    "feeding birds": "bird", "the history of chocolate": "chocolate", "learning Spanish": "spanish",
    "saving energy": "energy", "life in a village": "village", "hiking in the mountains": "mountain|hik",
    "painting a picture": "paint", "the life of bees": r"bees?\b", "using a computer": "computer",
    "travelling by train": "train", "keeping a diary": "diar", "drinking enough water": "water",
    "growing roses": "rose", "watching films": "film|movie", "family holidays": "holiday", "eating apples": "apple",
    "cleaning the kitchen": "kitchen", "the planet Mars": r"mars\b", "volcanoes": "volcano", "dancing": "danc",
    "playing football": "football", "writing letters": "letter", "school uniforms": "uniform",
    "brushing your teeth": "teeth", "fishing": "fish", "washing clothes": "cloth", "visiting grandparents": "grand",
    "honey": "honey", "the Roman Empire": "rom[ae]", "whales": "whale", "learning to cook": "cook",
    "buying a house": "house|home", "birthday parties": "birthday|part(y|ies)", "the city of Tokyo": "tokyo",
    "yoga": "yoga", "gardening": "garden", "mobile phones": "phone", "wind power": "wind", "elephants": "elephant",
    "ice cream": "ice", "castles": "castle", "making soup": "soup", "saving money": "money|sav",
    "flying a kite": "kite", "the rain": "rain", "airports": "airport", "comic books": "comic",
    "learning mathematics": "math", "penguins": "penguin", "healthy snacks": "snack", "road trips": "trip",
    "knitting": "knit", "dinosaurs": "dinosaur", "renting a flat": "flat|apartment|rent", "carrots": "carrot",
    "time management": "time", "robots": "robot", "the piano": "piano", "sailing": "sail",
    "a job interview": "interview", "bridges": "bridge", "olive oil": "olive", "video games": "game",
    "the North Pole": "pole|north", "spiders": "spider", "cheese": "cheese", "running shoes": "shoe",
    "lighthouses": "lighthouse", "potatoes": "potato", "weddings": "wedding", "deserts": "desert", "taxis": "taxi",
    "the violin": "violin", "homework": "homework", "snow": "snow", "horses": "horse", "theatre": "theat",
    "bicycle lanes": "lane", "soap": "soap", "newspapers": "newspaper", "tigers": "tiger",
    "hot air balloons": "balloon", "summer camps": "summer|camp", "bananas": "banana", "teamwork": "team",
}  # fmt: skip
TASKS = (
    "Write a short text about {topic}.",
    "Write a few sentences about {topic}.",
    "Write something short about {topic}.",
)
_TASK = re.compile(
    "|".join(re.escape(task).replace(r"\{topic\}", f"(?P<topic{i}>.+?)") for i, task in enumerate(TASKS))
)
_SIZES = (1, 1, 1, 1, 2, 2, 3)  # constraints of a prompt
_MOST_FRUITLESS = 10_000  # draws without a new prompt
_TOO_FEW = "prompts: the constraint world has no more prompts of this kind; fix: ask for fewer"


@dataclass(frozen=True, slots=True)
class Constraint:
    """One constraint of a prompt: its family, its sentence, and what checks it."""

    family: str
    sentence: str
    check: Instruction | Checker


@dataclass(frozen=True, slots=True)
class Task:
    """A prompt of the constraint world, read from its text."""

    topic: str
    constraints: tuple[Constraint, ...]


@lru_cache(maxsize=4096)
def read_prompt(text: str) -> Task:
    """The task of a prompt. Raises `ValueError` for text that `draw_prompts` doesn't write."""
    started = _TASK.match(text)
    topic = next((str(each) for each in started.groupdict().values() if each), "") if started else ""
    if started is None or topic not in TOPICS:
        raise ValueError(f"not a prompt of the constraint world: {text!r}")
    place, found = started.end(), list[Constraint]()
    while place < len(text):
        matches = [
            (family, match) for family in FAMILIES if (match := re.compile(" " + family.pattern).match(text, place))
        ]
        if not matches:
            raise ValueError(f"not a constraint: {text[place:]!r}")
        family, match = max(matches, key=lambda each: each[1].end())
        found.append(Constraint(family.name, match[0].strip(), family.read(match)))
        place = match.end()
    return Task(topic, tuple(found))


# --- the split ---


def _bucket(text: str) -> int:
    return hashlib.sha256(text.encode()).digest()[0]


def is_held_out_topic(topic: str) -> bool:
    """Whether this topic is held out: about a quarter of all, by hash."""
    return _bucket(f"topic {topic}") % 4 == 0


def is_held_out_combination(families: Sequence[str]) -> bool:
    """Whether these families are never together in training: about a fifth of all sets of two or more, by hash."""
    return len(families) > 1 and _bucket(f"families {sorted(families)}") % 5 == 0


# --- drawing ---

_Accepts = Callable[[Sequence[Family]], bool]


def _known(chosen: Sequence[Family]) -> bool:
    return not _new_family(chosen) and not is_held_out_combination([family.name for family in chosen])


def _new_combination(chosen: Sequence[Family]) -> bool:
    return not _new_family(chosen) and is_held_out_combination([family.name for family in chosen])


def _new_family(chosen: Sequence[Family]) -> bool:
    return any(family.held_out for family in chosen)


def _draw(rng: random.Random, topics: Sequence[str], accepts: _Accepts) -> str:
    """One prompt whose families agree with each other and are accepted. Raises `UserError` if there is none."""
    for _ in range(_MOST_FRUITLESS):
        chosen = rng.sample(FAMILIES, rng.choice(_SIZES))
        tags = [tag for family in chosen for tag in family.tags]
        if len(set(tags)) == len(tags) and accepts(chosen):
            task = rng.choice(TASKS).format(topic=rng.choice(topics))
            return " ".join([task, *(family.draw(rng) for family in chosen)])
    raise UserError(_TOO_FEW)


def _draw_many(
    name: str, count: int, rng: random.Random, topics: Sequence[str], accepts: _Accepts
) -> tuple[Prompt, ...]:
    found, fruitless = dict[str, None](), 0
    while len(found) < count:
        before = len(found)
        found[_draw(rng, topics, accepts)] = None
        fruitless = 0 if len(found) > before else fruitless + 1
        if fruitless > _MOST_FRUITLESS:
            raise UserError(_TOO_FEW)
    return tuple(Prompt(f"{name}-{number:05d}", (Message("user", text),)) for number, text in enumerate(found, 1))


def draw_prompts(count: int, seed: int) -> tuple[Prompt, ...]:
    """``count`` different prompts to train on, by ``seed``."""
    topics = [topic for topic in TOPICS if not is_held_out_topic(topic)]
    return _draw_many("constraints", count, random.Random(seed), topics, _known)


def draw_held_out(count: int, seed: int) -> tuple[Prompt, ...]:
    """``count`` different held-out prompts of the three kinds, by ``seed``."""
    topics, rng = [topic for topic in TOPICS if is_held_out_topic(topic)], random.Random(seed)
    combinations, families = count // 4, count // 4
    return (
        *_draw_many("held-out-topic", count - combinations - families, rng, topics, _known),
        *_draw_many("held-out-combination", combinations, rng, topics, _new_combination),
        *_draw_many("held-out-family", families, rng, topics, _new_family),
    )
