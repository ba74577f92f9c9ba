"""Proposes new prompts by few-shot sampling (Self-Rewarding section 3.1): the model sees eight tasks and writes more.

Six of the eight are human-written and two were accepted in earlier rounds. A round's requests run concurrently, so a
round depends only on the seeds, the settings and earlier completions: a killed run resumes, and one that is asked for
more prompts continues. Every proposal that is dropped is kept with the reason.

A proposal is dropped when it is too short or too long, names what text can't give (a picture, a file), repeats a known
prompt, or has a ROUGE-L with one above a limit: with LCS(a, b) the length of the longest common subsequence of words,

    P = LCS / |a|     R = LCS / |b|     F = 2 P R / (P + R) = 2 LCS / (|a| + |b|)

which is rapidfuzz's normalized Indel similarity: equal to ``rouge-score``, hundreds of times faster (docs/data.md).
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal

from rapidfuzz.distance import Indel
from rapidfuzz.process import extractOne

from metareward.data.prompts import content_id, digest_prompts, write_prompts
from metareward.engines.base import Engine
from metareward.errors import UserError
from metareward.generation.progress import Progress
from metareward.generation.runner import run_tasks
from metareward.method.judge import Reasoning
from metareward.method.template import Template, render
from metareward.seeds import derive
from metareward.storage.atomic import write_atomic
from metareward.storage.serialization import json_lines
from metareward.storage.store import RecordStore
from metareward.text import replace_surrogates
from metareward.types import Completion, Message, Prompt, Sampling

DropReason = Literal["failed", "unreadable", "cut_off", "too_short", "too_long", "keyword", "repeated", "too_similar"]
KEYWORDS = (
    *("image", "images", "picture", "pictures", "photo", "photos", "photograph", "screenshot", "drawing", "draw"),
    *("diagram", "chart", "graph", "map", "video", "videos", "audio", "recording", "file", "files"),
    *("attached", "attachment", "upload", "download", "link", "click", "website", "url"),
)
HUMAN_EXAMPLES, GENERATED_EXAMPLES = 6, 2
EXAMPLES = HUMAN_EXAMPLES + GENERATED_EXAMPLES
_SLOTS = tuple(f"task_{place}" for place in range(1, EXAMPLES + 1))
_MAX_ROUNDS_WITHOUT_NEW = 3  # after so many in a row, the model proposes no new prompts
_MAX_FAILED_SHARE = 0.5  # of a round's requests that may fail twice
# The paper's sampling of new prompts; it doesn't give the length limit.
SAMPLING = Sampling(temperature=0.6, top_p=0.9, max_tokens=1024)

# A run of letters or digits is a word; in scripts without spaces between words, every character is one.
_SPACELESS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # kana and Chinese characters
_WORD = re.compile(rf"[{_SPACELESS}]|[^\W_{_SPACELESS}]+")
_TASK = re.compile(r"<task>(.*?)</task>", re.DOTALL | re.IGNORECASE)
_UNCLOSED_TASK = re.compile(r"<task>(?!.*</task>)(.*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ProposalLimits:
    """What a proposal must satisfy: length in words, the largest ROUGE-L with a known prompt, forbidden words.

    The paper names these filters without limits; lengths and similarity are Self-Instruct's.
    """

    min_words: int = 4
    max_words: int = 150
    max_similarity: float = 0.7
    keywords: tuple[str, ...] = KEYWORDS


LIMITS = ProposalLimits()


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposed text, and why it was dropped; None if it wasn't."""

    text: str
    reason: DropReason | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ProposalSettings:
    """How prompts are proposed: ``new`` tasks per request, ``per_round`` concurrent requests.

    ``sampling``'s seed is not used: each request's is derived from ``seed``.
    """

    template: Template
    seed: int
    sampling: Sampling = SAMPLING
    limits: ProposalLimits = LIMITS
    new: int = 4
    per_round: int = 64
    reasoning: Reasoning | None = None

    def __post_init__(self) -> None:
        """Raise `UserError` when the template lacks a slot."""
        self.template.require(*_SLOTS, "new")


@dataclass(frozen=True, slots=True)
class Proposals:
    """The accepted ``prompts``, the ``dropped`` proposals, and the number of ``requests``.

    ``exhausted``: proposing ended because no new prompts came, not because there were enough.
    """

    prompts: tuple[Prompt, ...]
    dropped: tuple[Proposal, ...]
    requests: int
    exhausted: bool


def words_of(text: str) -> list[str]:
    """The words of ``text``, case-folded and without punctuation."""
    return _WORD.findall(text.casefold())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """The ROUGE-L F-measure of two lists of words, 0 to 1; 0 when one is empty."""
    return Indel.normalized_similarity(first, second) if first and second else 0.0


def parse_proposals(completion: Completion) -> Iterator[Proposal]:
    """The tasks in a completion before filtering; what can't be read is a dropped proposal."""
    tasks = [task.strip() for task in _TASK.findall(completion.text)]
    for task in tasks:
        yield Proposal(task) if "<task" not in task.casefold() else Proposal(task, "unreadable", "a task in a task")
    unclosed = _UNCLOSED_TASK.search(completion.text)
    if unclosed is not None:
        yield Proposal(unclosed[1].strip(), "cut_off", f"finish {completion.finish}")
    elif not tasks:
        yield Proposal(completion.text, "unreadable", "no <task> in it")


class ProposalFilter:
    """Checks proposals against the limits and all known prompts; an accepted proposal becomes a known prompt."""

    def __init__(self, known: Iterable[str], limits: ProposalLimits) -> None:
        self._limits = limits
        words = "|".join(re.escape(word) for word in limits.keywords)
        self._keywords = re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])", re.IGNORECASE) if words else None
        self._words: list[list[str]] = []
        self._seen: set[tuple[str, ...]] = set()
        for text in known:
            self._add(words_of(text))

    def check(self, text: str) -> Proposal:
        """``text`` with the first reason to drop it, if there is one."""
        words, limits = words_of(text), self._limits
        if len(words) < limits.min_words:
            return Proposal(text, "too_short", f"{len(words)} words")
        if len(words) > limits.max_words:
            return Proposal(text, "too_long", f"{len(words)} words")
        keyword = self._keywords.search(text) if self._keywords else None
        if keyword is not None:
            return Proposal(text, "keyword", keyword[0].lower())
        if tuple(words) in self._seen:
            return Proposal(text, "repeated", "word for word")
        nearest = extractOne(words, self._words, scorer=Indel.normalized_similarity, score_cutoff=limits.max_similarity)
        if nearest is not None:
            return Proposal(text, "too_similar", f"ROUGE-L {nearest[1]:.2f} with: {' '.join(nearest[0][:20])}")
        self._add(words)
        return Proposal(text)

    def _add(self, words: list[str]) -> None:
        self._seen.add(tuple(words))
        if words:
            self._words.append(words)


def usable_seeds(seeds: Sequence[Prompt], limits: ProposalLimits) -> tuple[str, ...]:
    """The seeds that can be shown as examples: one user turn, no longer than a proposal may be.

    Raises `UserError` when there are too few.
    """
    single = [prompt.messages[0].content for prompt in seeds if len(prompt.messages) == 1]
    usable = tuple(text for text in single if len(words_of(text)) <= limits.max_words)
    if len(usable) < EXAMPLES:
        raise UserError(
            f"seeds: {len(usable)} of {len(seeds)} have one turn and at most {limits.max_words} words, each request "
            f"shows {EXAMPLES}; fix: name more seeds"
        )
    return usable


def proposal_fingerprint(
    seeds: Sequence[Prompt], exclude: Sequence[Prompt], settings: ProposalSettings
) -> dict[str, object]:
    """What decides the proposals, except the model, for `RecordStore.open`. The wanted number is not part of it."""
    sampling, limits, reasoning = settings.sampling, settings.limits, settings.reasoning
    return {
        "seeds": digest_prompts(seeds),
        "apart": digest_prompts(exclude),
        "text": settings.template.sha256,
        "seed": settings.seed,
        "sampling": [sampling.temperature, sampling.top_p, sampling.max_tokens],
        "limits": [limits.min_words, limits.max_words, limits.max_similarity, *limits.keywords],
        "new": settings.new,
        "per_round": settings.per_round,
        "reasoning": [reasoning.start, reasoning.end] if reasoning else None,
    }


async def propose(
    engine: Engine,
    seeds: Sequence[Prompt],
    wanted: int,
    settings: ProposalSettings,
    store: RecordStore,
    progress: Progress,
    exclude: Sequence[Prompt] = (),
) -> Proposals:
    """``wanted`` new prompts, fewer if the model runs out; none is similar to a seed or to one of ``exclude``.

    Completions are cached in ``store``. Raises `UserError` for too few seeds, when most requests of a round fail, or
    when the store can't be written.
    """
    examples = usable_seeds(seeds, settings.limits)
    known = ProposalFilter((prompt.messages[-1].content for prompt in (*seeds, *exclude)), settings.limits)
    accepted: list[Prompt] = []
    dropped: list[Proposal] = []
    rounds_without_new = sent = 0
    for number in count():
        requests = _requests(number, examples, accepted, settings)
        await _complete(engine, requests, settings, store, progress, f"proposing, round {number + 1}")
        sent, before = sent + len(requests), len(accepted)
        for proposal in (each for request in requests for each in _proposals_of(request, store, settings)):
            checked = known.check(proposal.text) if proposal.reason is None else proposal
            if checked.reason is not None:
                dropped.append(checked)
                continue
            messages = (Message("user", checked.text),)
            accepted.append(Prompt(content_id(messages), messages))
            if len(accepted) == wanted:
                return Proposals(tuple(accepted), tuple(dropped), sent, exhausted=False)
        rounds_without_new = rounds_without_new + 1 if len(accepted) == before else 0
        if rounds_without_new == _MAX_ROUNDS_WITHOUT_NEW:
            break
    return Proposals(tuple(accepted), tuple(dropped), sent, exhausted=True)


def _requests(
    number: int, examples: Sequence[str], accepted: Sequence[Prompt], settings: ProposalSettings
) -> list[Prompt]:
    """The requests of round ``number``."""
    requests = []
    for place in range(settings.per_round):
        rng = random.Random(derive(settings.seed, "shots", number, place))
        generated = rng.sample(range(len(accepted)), min(GENERATED_EXAMPLES, len(accepted)))
        tasks = [accepted[each].messages[0].content for each in generated]
        tasks += rng.sample(examples, EXAMPLES - len(tasks))
        rng.shuffle(tasks)
        text = render(settings.template, dict(zip(_SLOTS, tasks, strict=True)) | {"new": str(settings.new)})
        requests.append(Prompt(f"{number:05d}-{place:03d}", (Message("user", text),)))
    return requests


async def _complete(
    engine: Engine,
    requests: Sequence[Prompt],
    settings: ProposalSettings,
    store: RecordStore,
    progress: Progress,
    stage: str,
) -> None:
    """Complete the pending requests of a round; one that fails twice is stored as failed."""

    async def task(request: Prompt) -> str:
        sampling = replace(settings.sampling, seed=derive(settings.seed, "propose", request.id))
        (completion,) = await engine.complete(request.messages, sampling, 1, "actor")
        text = replace_surrogates(completion.text)
        return json.dumps({"text": text, "finish": completion.finish, "tokens": completion.tokens})

    await run_tasks(task, requests, store, progress, stage, {}, settings.per_round)
    if store.failures():
        result = await run_tasks(task, requests, store, progress, stage, {}, settings.per_round)
        if len(result.failed) > _MAX_FAILED_SHARE * len(requests):
            (request, error), failed = result.failed[0], len(result.failed)
            raise UserError(f"{stage}: {failed} of {len(requests)} requests failed, {request} with: {error}")
        for request, error in result.failed:
            store.put(request, json.dumps({"failed": error}))


def _proposals_of(request: Prompt, store: RecordStore, settings: ProposalSettings) -> Iterator[Proposal]:
    """The proposals in the stored completion of a request, unfiltered."""
    document = json.loads(store.get(request.id) or "")
    if "failed" in document:
        return iter([Proposal("", "failed", document["failed"])])
    text = settings.reasoning.split(document["text"])[1] if settings.reasoning else document["text"]
    return parse_proposals(Completion(text, document["finish"], document["tokens"]))


def summarize_proposals(proposals: Proposals) -> dict[str, object]:
    """The numbers of requests, of proposals accepted, and of those dropped by reason."""
    dropped: Mapping[str | None, int] = Counter(each.reason for each in proposals.dropped)
    return {
        "requests": proposals.requests,
        "proposed": len(proposals.prompts) + len(proposals.dropped),
        "accepted": len(proposals.prompts),
        "dropped": {str(reason): number for reason, number in sorted(dropped.items(), key=lambda item: -item[1])},
        "exhausted": proposals.exhausted,
    }


def write_proposals(folder: Path, proposals: Proposals) -> None:
    """Write prompts.jsonl, dropped.jsonl (dropped proposals and why) and, last, summary.json."""
    write_prompts(folder / "prompts.jsonl", proposals.prompts)
    write_atomic(folder / "dropped.jsonl", json_lines(asdict(each) for each in proposals.dropped))
    write_atomic(folder / "summary.json", json.dumps(summarize_proposals(proposals), indent=2) + "\n")
