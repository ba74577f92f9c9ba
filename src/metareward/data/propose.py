"""New prompts by few-shot sampling (Self-Rewarding section 3.1): eight tasks are shown, the model writes more.

Six of the eight come from people and two from what the model wrote before, in rounds: the requests of a round are made
at once, and show what the rounds before it brought in. So every round follows from the seeds, the settings and the
answers to earlier ones alone; a run that was killed goes on with the request it owes, and one that is asked for more
prompts goes on where it ended. Nothing is thrown away silently: each proposal is kept, with the reason against it.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from rapidfuzz.distance import Indel
from rapidfuzz.process import extractOne

from metareward.data.prompts import content_id, digest, write_prompts
from metareward.engines.base import Engine
from metareward.errors import UserError
from metareward.generation.progress import Progress
from metareward.generation.runner import sweep_with
from metareward.method.judge import Reasoning
from metareward.method.template import Template, render
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines, replace_surrogates
from metareward.storage.store import RecordStore
from metareward.types import Completion, Message, Prompt, Sampling

# --- Which proposals become prompts, and why the others don't (Self-Rewarding section 3.1, after Self-Instruct).
#
# A proposal is dropped when it is too short or too long, names what words alone can't give (a picture, a file), says
# what
# a known prompt says, or is too much like one by ROUGE-L: with LCS(a, b) the length of the longest common subsequence
# of
# the words of a and b,
#
#     P = LCS / |a|     R = LCS / |b|     F = 2 P R / (P + R) = 2 LCS / (|a| + |b|)
#
# which is the normalised similarity of insertions and deletions that rapidfuzz computes: exactly the F-measure of
# ``rouge-score``, several hundred times as fast (docs/data.md).


Reason = Literal[
    "failed", "unreadable", "cut_off", "too_short", "too_long", "keyword", "repeated", "too_similar"
]  # fmt: skip
KEYWORDS = (
    *("image", "images", "picture", "pictures", "photo", "photos", "photograph", "screenshot", "drawing", "draw"),
    *("diagram", "chart", "graph", "map", "video", "videos", "audio", "recording", "file", "files"),
    *("attached", "attachment", "upload", "download", "link", "click", "website", "url"),
)
# A run of letters or digits is a word; in scripts that write no spaces between words, every character is one.
_SPACELESS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Chinese characters
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
_TASK = re.compile(r"<task>(.*?)</task>", re.DOTALL | re.IGNORECASE)
_OPEN = re.compile(r"<task>(?!.*</task>)(.*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a proposal must be like: its length in words, its likeness (ROUGE-L) to any known prompt, its words.

    The papers name the filters and not their limits; these lengths and this likeness are Self-Instruct's.
    """

    min_words: int = 4
    max_words: int = 150
    most_alike: float = 0.7
    keywords: tuple[str, ...] = KEYWORDS


LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A text that was proposed, and why it was dropped; None: it was not."""

    text: str
    reason: Reason | None = None
    detail: str = ""


def words_of(text: str) -> list[str]:
    """The words of ``text``, without case or punctuation."""
    return _WORD.findall(text.casefold())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """ROUGE-L's F-measure of two lists of words, 0 to 1; 0 when one is empty."""
    return Indel.normalized_similarity(first, second) if first and second else 0.0


def proposals_in(written: Completion) -> Iterator[Proposal]:
    """The tasks that a completion proposes, unfiltered; what isn't one is told as such."""
    tasks = [task.strip() for task in _TASK.findall(written.text)]
    for task in tasks:
        yield Proposal(task) if "<task" not in task.casefold() else Proposal(task, "unreadable", "a task in a task")
    rest = _OPEN.search(written.text)
    if rest is not None:
        yield Proposal(rest[1].strip(), "cut_off", f"finish {written.finish}")
    elif not tasks:
        yield Proposal(written.text, "unreadable", "no <task> in it")


class Known:
    """The prompts that there are already: what is proposed must be none of them, and like none of them.

    The one thing here that changes: every prompt that is taken is known from then on.
    """

    def __init__(self, texts: Iterable[str], limits: Limits) -> None:
        self._limits = limits
        self._keywords = _any_of(limits.keywords)
        self._words: list[list[str]] = []
        self._seen: set[tuple[str, ...]] = set()
        for text in texts:
            self._learn(words_of(text))

    def examine(self, text: str) -> Proposal:
        """``text`` with the first reason against it; without one it is known from now on."""
        words = words_of(text)
        found = self._reason(text, words)
        if found.reason is None:
            self._learn(words)
        return found

    def _reason(self, text: str, words: list[str]) -> Proposal:
        limits = self._limits
        if len(words) < limits.min_words:
            return Proposal(text, "too_short", f"{len(words)} words")
        if len(words) > limits.max_words:
            return Proposal(text, "too_long", f"{len(words)} words")
        named = self._keywords.search(text) if self._keywords else None
        if named is not None:
            return Proposal(text, "keyword", named[0].lower())
        if tuple(words) in self._seen:
            return Proposal(text, "repeated", "word for word")
        nearest = extractOne(words, self._words, scorer=Indel.normalized_similarity, score_cutoff=limits.most_alike)
        if nearest is not None:
            return Proposal(text, "too_similar", f"ROUGE-L {nearest[1]:.2f} with: {' '.join(nearest[0][:20])}")
        return Proposal(text)

    def _learn(self, words: list[str]) -> None:
        self._seen.add(tuple(words))
        if words:
            self._words.append(words)


def _any_of(keywords: Sequence[str]) -> re.Pattern[str] | None:
    words = "|".join(re.escape(word) for word in keywords)
    return re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE) if keywords else None


HUMAN, GENERATED = 6, 2
SHOTS = HUMAN + GENERATED
_SLOTS = tuple(f"task_{place}" for place in range(1, SHOTS + 1))
# After so many rounds in a row that brought nothing new, the model has said what it has to say.
_BARREN = 3
# A round goes on without the requests that fail twice, if no more than this share of them do.
_MOST_FAILED = 0.5
# The papers' sampling of new prompts; how long a completion may be they leave open.
SAMPLING = Sampling(temperature=0.6, top_p=0.9, max_tokens=1024)


@dataclass(frozen=True, slots=True)
class ProposingSettings:
    """How prompts are proposed: ``new`` tasks asked in each request, ``per_round`` requests at once.

    ``sampling``'s seed is not used: each request's is derived from ``seed``.
    """

    template: Template
    seed: int
    sampling: Sampling = SAMPLING
    limits: Limits = LIMITS
    new: int = 4
    per_round: int = 64
    reasoning: Reasoning | None = None

    def __post_init__(self) -> None:
        """Raise `UserError` when a slot is missing in the text."""
        self.template.require(*_SLOTS, "new")


@dataclass(frozen=True, slots=True)
class Proposals:
    """``prompts`` that were taken, the proposals that were ``dropped``, and how many ``requests`` it took.

    ``exhausted``: it ended because nothing new came any more, not because there were enough.
    """

    prompts: tuple[Prompt, ...]
    dropped: tuple[Proposal, ...]
    requests: int
    exhausted: bool


def seed_texts(seeds: Sequence[Prompt], limits: Limits) -> tuple[str, ...]:
    """The seeds that can be shown: of one user turn, and no longer than what may be proposed.

    Raises `UserError` when there are too few.
    """
    single = [prompt.messages[0].content for prompt in seeds if len(prompt.messages) == 1]
    shown = tuple(text for text in single if len(words_of(text)) <= limits.max_words)
    if len(shown) < SHOTS:
        raise UserError(
            f"seeds: {len(shown)} of {len(seeds)} are of one turn and at most {limits.max_words} words long, and "
            f"{SHOTS} are shown at a time; fix: name more seeds"
        )
    return shown


def fingerprint(seeds: Sequence[Prompt], apart: Sequence[Prompt], settings: ProposingSettings) -> dict[str, object]:
    """What decides the proposals, beside the model: for `RecordStore.open`. How many are wanted is no part of it."""
    sampling, limits = settings.sampling, settings.limits
    thinking = settings.reasoning
    return {
        "seeds": digest(seeds),
        "apart": digest(apart),
        "text": settings.template.sha256,
        "seed": settings.seed,
        "sampling": [sampling.temperature, sampling.top_p, sampling.max_tokens],
        "limits": [limits.min_words, limits.max_words, limits.most_alike, *limits.keywords],
        "new": settings.new,
        "per_round": settings.per_round,
        "reasoning": [thinking.start, thinking.end] if thinking else None,
    }


async def propose(
    engine: Engine,
    seeds: Sequence[Prompt],
    wanted: int,
    settings: ProposingSettings,
    store: RecordStore,
    progress: Progress,
    apart: Sequence[Prompt] = (),
) -> Proposals:
    """``wanted`` new prompts, unless the model runs out of them; none is like a seed or like one of ``apart``.

    What the engine answers goes into ``store``, and what is there is not asked again. Raises `UserError` for too few
    seeds, when most requests of a round fail, or when the store can't be written.
    """
    shown = seed_texts(seeds, settings.limits)
    known = Known((prompt.messages[-1].content for prompt in (*seeds, *apart)), settings.limits)
    taken: list[Prompt] = []
    dropped: list[Proposal] = []
    barren = requests = 0
    for number in count():
        asked = _requests(number, shown, taken, settings)
        await _answered(engine, asked, settings, store, progress, f"proposing, round {number + 1}")
        requests, before = requests + len(asked), len(taken)
        for proposal in _examined(asked, store, known, settings):
            if proposal.reason is None:
                taken.append(_prompt(proposal.text))
                if len(taken) == wanted:
                    return Proposals(tuple(taken), tuple(dropped), requests, exhausted=False)
            else:
                dropped.append(proposal)
        barren = barren + 1 if len(taken) == before else 0
        if barren == _BARREN:
            break
    return Proposals(tuple(taken), tuple(dropped), requests, exhausted=True)


def _prompt(text: str) -> Prompt:
    messages = (Message("user", text),)
    return Prompt(content_id(messages), messages)


def _requests(number: int, shown: Sequence[str], taken: Sequence[Prompt], settings: ProposingSettings) -> list[Prompt]:
    """The questions of round ``number``, known by their round and place."""
    return [
        Prompt(f"{number:05d}-{place:03d}", (Message("user", _ask(number, place, shown, taken, settings)),))
        for place in range(settings.per_round)
    ]


def _ask(number: int, place: int, shown: Sequence[str], taken: Sequence[Prompt], settings: ProposingSettings) -> str:
    draw = random.Random(derive(settings.seed, "shots", number, place))
    generated = draw.sample(range(len(taken)), min(GENERATED, len(taken)))
    tasks = [taken[each].messages[0].content for each in generated]
    tasks += draw.sample(shown, SHOTS - len(tasks))
    draw.shuffle(tasks)
    return render(settings.template, dict(zip(_SLOTS, tasks, strict=True)) | {"new": str(settings.new)})


async def _answered(
    engine: Engine,
    asked: Sequence[Prompt],
    settings: ProposingSettings,
    store: RecordStore,
    progress: Progress,
    stage: str,
) -> None:
    """See that every request of the round has its document; one that fails twice gets one that says so."""

    async def work(request: Prompt) -> str:
        seeded = derive(settings.seed, "propose", request.id)
        sampling = Sampling(
            settings.sampling.temperature, settings.sampling.top_p, settings.sampling.max_tokens, seeded
        )
        (written,) = await engine.complete(request.messages, sampling, 1, "actor")
        return json.dumps(
            {"text": replace_surrogates(written.text), "finish": written.finish, "tokens": written.tokens}
        )

    await sweep_with(work, asked, store, progress, stage, {}, settings.per_round)
    if store.failures():
        outcome = await sweep_with(work, asked, store, progress, stage, {}, settings.per_round)
        if len(outcome.failed) > _MOST_FAILED * len(asked):
            request, error = outcome.failed[0]
            raise UserError(f"{stage}: {len(outcome.failed)} of {len(asked)} requests failed, {request} with: {error}")
        for request, error in outcome.failed:
            store.put(request, json.dumps({"failed": error}))


def _examined(
    asked: Sequence[Prompt], store: RecordStore, known: Known, settings: ProposingSettings
) -> Iterator[Proposal]:
    """The proposals of a round in the order of its requests, each with the reason against it if there is one."""
    for request in asked:
        told = json.loads(store.get(request.id) or "")
        if "failed" in told:
            yield Proposal("", "failed", told["failed"])
            continue
        text = settings.reasoning.split(told["text"])[1] if settings.reasoning else told["text"]
        for proposal in proposals_in(Completion(text, told["finish"], told["tokens"])):
            yield known.examine(proposal.text) if proposal.reason is None else proposal


def counts(proposals: Proposals) -> dict[str, object]:
    """The numbers of a run: what was asked, proposed, taken and dropped, and why."""
    dropped: Mapping[str | None, int] = Counter(each.reason for each in proposals.dropped)
    return {
        "requests": proposals.requests,
        "proposed": len(proposals.prompts) + len(proposals.dropped),
        "taken": len(proposals.prompts),
        "dropped": {str(reason): number for reason, number in sorted(dropped.items(), key=lambda item: -item[1])},
        "exhausted": proposals.exhausted,
    }


def write_proposals(folder: Path, proposals: Proposals) -> None:
    """Write prompts.jsonl, dropped.jsonl (each proposal with the reason against it) and, last, summary.json."""
    write_prompts(folder / "prompts.jsonl", proposals.prompts)
    write_atomic(folder / "dropped.jsonl", json_lines(asdict(each) for each in proposals.dropped))
    write_atomic(folder / "summary.json", json.dumps(counts(proposals), indent=2) + "\n")
