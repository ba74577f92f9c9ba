"""Labelled answers for seed sets: drawn from the recipe's model, or read, and labelled by a program or an engine.

    oracle               the pocket or constraint world's program
    ifeval, verifiable   the checkers of these benchmarks, on a file of their prompts
    module:name          any `metareward.types.Reward`
    an engine            a stronger model, which grades answers by the recipe's rubric

Answers are stored in answers.sqlite and labels in labels.sqlite (an engine's in grades.sqlite), so the same command
resumes, and continues with more prompts. The labelled answers are written to labelled.jsonl.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from metareward.config.schema import Recipe
from metareward.data.files import Row, iter_rows, resolve_files
from metareward.data.prompts import chat_turns, content_id, load_prompts, parse_prompt, row_id
from metareward.data.ranked import RankedAnswer, RankedPrompt, RankedSet, read_ranked, write_labelled
from metareward.engines.base import Engine
from metareward.errors import UserError
from metareward.evaluation.judges import JudgeSpec, Output, grade
from metareward.evaluation.worlds import WORLDS
from metareward.generation.annotate import AnnotationSettings, annotation_fingerprint
from metareward.generation.progress import ANSWERS, Progress
from metareward.generation.runner import annotate_prompts, run_tasks
from metareward.generation.verdicts import RubricGrader
from metareward.method.template import with_system
from metareward.pipeline.bound_recipe import BoundRecipe
from metareward.pipeline.engines import judge_fingerprint, open_judge
from metareward.pipeline.seeding import model_fingerprint, with_engine
from metareward.pipeline.verifiers import Verifier, open_verifier
from metareward.seeds import derive
from metareward.storage.records import read_records
from metareward.storage.run_dir import RunDir
from metareward.storage.serialization import canonical_json
from metareward.storage.store import RecordStore
from metareward.types import Message, Prompt

ANSWERS_STORE, LABELS_STORE, GRADES_STORE = "answers.sqlite", "labels.sqlite", "grades.sqlite"
LABELLED = "labelled.jsonl"
_DEFAULT_COUNT = 300

# --- what is labelled ---


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Who labels: the name of a verifier (with its ``label_range``) or of a judge; ranked answers need neither.

    ``written``: judgments are trained on that were written, by the judge or, without one, by the recipe's model; each
    of them judges an answer ``sets`` times.
    """

    verifier: str | None = None
    judge: str | None = None
    label_range: tuple[float, float] | None = None
    sets: int = 1
    written: bool = False

    def plan(self, answers: int, settings: AnnotationSettings) -> dict[str, object]:
        """What the judgments of the recipe's model will cost, in words."""
        if self.judge is not None or not self.written:
            return {}
        most = settings.grader.most_tokens
        return {"judgments": f"at most {self.sets * answers} by the recipe's model, at most {most} tokens each"}


@dataclass(frozen=True, slots=True)
class AnswerSource:
    """Which answers there are: ``ranked`` ones; those of the file ``answers``; or drawn from the recipe's model.

    Drawn ones answer ``count`` prompts of ``prompts``, by default of the recipe's source, and ``held_out`` of its
    world's held-out prompts, on which a judge can be evaluated. ``language``, ``first_turns``: see `read_ranked`.
    """

    ranked: str | None = None
    answers: str | None = None
    prompts: str | None = None
    count: int | None = None
    held_out: int = 0
    language: str | None = "en"
    first_turns: bool = True
    network: bool = False


@dataclass(frozen=True, slots=True)
class LabelledAnswers:
    """Prompts with labelled answers, and those that are to be held out because they are held-out prompts."""

    ranked: RankedSet
    held_out: tuple[RankedPrompt, ...]


@dataclass(frozen=True, slots=True)
class Labelling:
    """What is to be done: the answers of ``prompts``, ``given`` or to be drawn, are labelled by the verifier or judge.

    ``held_out``: how many of the prompts, the last ones, are the world's held-out prompts. ``skipped``: prompts left
    out, by reason.
    """

    bound: BoundRecipe
    out: Path
    source: LabelSource
    verifier: Verifier | None
    prompts: tuple[Prompt, ...]
    held_out: int
    given: Mapping[str, tuple[str, ...]] | None
    skipped: Mapping[str, int]

    @property
    def settings(self) -> AnnotationSettings:
        """How answers are drawn."""
        seed = derive(self.bound.recipe.seed, "seed answers")
        settings = self.bound.settings(1)
        return replace(settings, n=0, meta_judge=False, judge=None, reward=None, seed=seed)

    @property
    def grader(self) -> RubricGrader:
        """How a judge grades: by the recipe's rubric, the score standing in the text if that is trained on."""
        grader = replace(self.bound.settings(1), n=self.source.sets).grader
        return replace(grader, expected=grader.expected and not self.source.written)

    def plan(self) -> dict[str, object]:
        """What it will cost, in words; what is stored already costs nothing."""
        settings, count = self.settings, len(self.prompts)
        if self.given is not None:
            total = sum(map(len, self.given.values()))
            rows: dict[str, object] = {"prompts": count, "answers": f"{total}, from a file"}
        else:
            total, stored = count * settings.k, self._stored(ANSWERS_STORE)
            pending = sum(each.id not in stored for each in self.prompts) * settings.k
            most = settings.answers.max_tokens
            rows = {"prompts": count, "answers": f"{total}, of which {pending} to draw, at most {most} tokens each"}
        if self.source.judge is None:
            return rows | {"labels": f"{total}, by {self.source.verifier}", **self.source.plan(total, settings)}
        most = self.grader.most_tokens
        asked = f"at most {self.source.sets * total} judgments by {self.source.judge}, at most {most} tokens each"
        return rows | {"labels": f"{asked}; {len(self._stored(GRADES_STORE))} answers are judged"}

    def _stored(self, name: str) -> set[str]:
        path = self.out / name
        if not path.is_file():
            return set()
        with RecordStore.read(path) as store:
            return store.keys()

    def run(self, progress: Progress) -> LabelledAnswers:
        """Draw and label what isn't stored, and write labelled.jsonl. Raises `UserError`, also when nothing is left."""
        with RunDir(self.out).lock():
            skipped = Counter(self.skipped)
            answers = self.given if self.given is not None else self._drawn(progress, skipped)
            prompts = [each for each in self.prompts if answers.get(each.id)]
            if self.source.judge is None:
                labelled = asyncio.run(self._verified(prompts, answers, progress, skipped))
            else:
                labelled = asyncio.run(self._graded(prompts, answers, progress, skipped))
            held_out = {each.id for each in self.prompts[len(self.prompts) - self.held_out :]}
            training = tuple(each for each in labelled if each.prompt.id not in held_out)
            if not training:
                reasons = (
                    ", ".join(f"{number} {reason}" for reason, number in skipped.items() if number)
                    or "there are no answers"
                )
                raise UserError(
                    f"{self.out}: no labelled answer is left ({reasons}); fix: use other prompts or answers"
                )
            write_labelled(self.out / LABELLED, training)
        return LabelledAnswers(
            RankedSet(training, {reason: n for reason, n in skipped.items() if n}),
            tuple(each for each in labelled if each.prompt.id in held_out),
        )

    # --- answers ---

    def _drawn(self, progress: Progress, skipped: Counter[str]) -> dict[str, tuple[str, ...]]:
        """The model's answers by prompt, without repeats, empty ones and those that were cut off."""
        settings, recipe = self.settings, self.bound.recipe
        decides = {name: annotation_fingerprint(settings)[name] for name in ("seed", "answers", "reasoning")}
        fingerprint = {**decides, **model_fingerprint(recipe)}
        messages = {each.id: each.messages for each in self.prompts}
        found: dict[str, tuple[str, ...]] = {}
        with RecordStore.open(self.out / ANSWERS_STORE, fingerprint) as store:

            async def draw(engine: Engine) -> None:
                await annotate_prompts(engine, self.prompts, settings, store, progress)

            asyncio.run(with_engine(recipe, self.out, draw))
            for record in read_records(store):
                if record.prompt.id not in messages:
                    continue
                if record.prompt.messages != messages[record.prompt.id]:
                    raise UserError(
                        f"{store.path}: prompt {record.prompt.id} had another text when it was answered; "
                        "fix: give another folder with --out"
                    )
                skipped["answers: cut off"] += sum(each.finish == "length" for each in record.candidates_K)
                skipped["answers: repeated"] += len(record.duplicates)
                whole = [each.text for each in record.candidates_K if each.finish == "stop"]
                skipped["answers: empty"] += sum(not text.strip() for text in whole)
                found[record.prompt.id] = tuple(text for text in whole if text.strip())
        skipped["failed"] += len(self.prompts) - len(found)
        return found

    # --- labels ---

    async def _verified(
        self,
        prompts: Sequence[Prompt],
        answers: Mapping[str, tuple[str, ...]],
        progress: Progress,
        skipped: Counter[str],
    ) -> list[RankedPrompt]:
        verifier = self.verifier
        assert verifier is not None, "answers are labelled by a judge or a verifier"
        texts = {_content_key(each, answers[each.id]): each for each in prompts}

        async def label(keyed: Prompt) -> str:
            prompt = texts[keyed.id]
            found = await verifier.label(prompt, answers[prompt.id])
            progress.advance(ANSWERS, len(found))
            return json.dumps(list(found))

        fingerprint = {"verifier": verifier.name, **verifier.settings}
        with RecordStore.open(self.out / LABELS_STORE, fingerprint) as store:
            queries = [replace(prompt, id=key) for key, prompt in texts.items()]
            most = {ANSWERS: max(map(len, answers.values()), default=0)}
            await run_tasks(label, queries, store, progress, "labelling answers", most)
            labels = {key: json.loads(document) for key, document in store.documents() if key in texts}
        skipped["failed"] += len(texts) - len(labels)
        rubric, found = self.bound.rubric, []
        for key, prompt in ((key, prompt) for key, prompt in texts.items() if key in labels):
            ranked = _with_ranks(answers[prompt.id], labels[key])
            those = [RankedAnswer(*each, criteria=verifier.criteria(rubric, prompt, each[0])) for each in ranked]
            found.append(RankedPrompt(prompt, tuple(those)))
        return found

    async def _graded(
        self,
        prompts: Sequence[Prompt],
        answers: Mapping[str, tuple[str, ...]],
        progress: Progress,
        skipped: Counter[str],
    ) -> list[RankedPrompt]:
        name = str(self.source.judge)
        seed = derive(self.bound.recipe.seed, "seed judge")
        judge = JudgeSpec(name, open_judge, seed, progress, judge_fingerprint(name))
        outputs = {
            each.id: [Output(f"{each.id} answer {i}", each, text) for i, text in enumerate(answers[each.id])]
            for each in prompts
        }
        asked = [output for those in outputs.values() for output in those]
        results = await judge.run(
            self.out / GRADES_STORE, lambda client: grade(client, self.grader, asked, "seed labels")
        )
        found = []
        for prompt in prompts:
            graded = []
            for output in outputs[prompt.id]:
                document = results.documents.get(output.id)
                if document is None:
                    skipped["answers: refused"] += 1
                    continue
                read = [(s, t) for s, t in zip(document["scores"], document["texts"], strict=True) if s is not None]
                if not read:
                    skipped["answers: unreadable judgment"] += 1
                    continue
                mean = math.fsum(score for score, _ in read) / len(read)
                score, text = min(read, key=lambda each: abs(each[0] - mean))
                graded.append((output.text, score if self.source.written else mean, text))
            if graded:
                ranks = _with_ranks([text for text, _, _ in graded], [label for _, label, _ in graded])
                judgments = [text if self.source.written else None for _, _, text in graded]
                those = [RankedAnswer(*one, two) for one, two in zip(ranks, judgments, strict=True)]
                found.append(RankedPrompt(prompt, tuple(those)))
        return found


def _with_ranks(texts: Sequence[str], labels: Sequence[float]) -> Iterator[tuple[str, float, float]]:
    """Text, rank (the distance from the best label) and label of every answer."""
    best = max(labels, default=0.0)
    return ((text, best - label, label) for text, label in zip(texts, labels, strict=True))


def _content_key(prompt: Prompt, answers: Sequence[str]) -> str:
    """The prompt's id with a digest of its text and answers, so that others are labelled again."""
    content = canonical_json([chat_turns(prompt.messages), list(answers)])
    return f"{prompt.id} {hashlib.sha256(content.encode()).hexdigest()[:16]}"


# --- from options to a labelling ---


def gather_labelled(
    recipe: Recipe, out: Path, source: LabelSource, answers: AnswerSource, progress: Progress, plan: bool = False
) -> LabelledAnswers | Mapping[str, object]:
    """The ranked or labelled answers; with ``plan`` what labelling takes, and nothing is done. Raises `UserError`."""
    if answers.ranked is not None:
        if answers.answers is not None or answers.prompts is not None or answers.held_out:
            others = "--answers, --prompts and --held-out-prompts"
            raise UserError(f"--ranked: has its own prompts and answers; fix: leave out {others}")
        ranked = read_ranked(answers.ranked, answers.language, answers.first_turns, answers.network)
        if not plan:
            return LabelledAnswers(ranked, ())
        total = sum(len(each.answers) for each in ranked.prompts)
        rows = {"prompts": len(ranked.prompts), "answers": f"{total}, from a file", "labels": "in the file"}
        return rows | source.plan(total, BoundRecipe(RunDir(out), recipe).settings(1))
    labelling = prepare_labelling(recipe, out, source, answers)
    return labelling.plan() if plan else labelling.run(progress)


def prepare_labelling(recipe: Recipe, out: Path, source: LabelSource, answers: AnswerSource) -> Labelling:
    """Read what is given and check what is needed, before anything is asked or written. Raises `UserError`."""
    bound = BoundRecipe(RunDir(out), recipe)
    verifier = None
    if source.verifier is not None:
        verifier = open_verifier(source.verifier, bound, answers.prompts, source.label_range)
    else:
        judge_fingerprint(str(source.judge))
        if source.written and bound.rubric.criteria:
            raise UserError(
                f"judgments.rubric {recipe.judgments.rubric}: a judge writes no judgments by criteria; fix: name a "
                "text, or one criterion and --judgments templated"
            )
    if answers.answers is not None:
        if answers.count is not None or answers.held_out:
            raise UserError("--answers: the file says which prompts; fix: leave out --count and --held-out-prompts")
        given = read_answers(answers.answers, answers.network)
        prompts, skipped = tuple(prompt for prompt, _ in given), Counter[str]()
        texts = {prompt.id: those for prompt, those in given}
        return Labelling(bound, out, source, verifier, prompts, 0, texts, skipped)
    model_fingerprint(recipe)  # raises if there is no model
    chosen, skipped = _choose_prompts(bound, verifier, answers)
    held_out = _held_out_prompts(bound, answers.held_out)
    return Labelling(bound, out, source, verifier, (*chosen, *held_out), len(held_out), None, skipped)


def read_answers(source: str, network: bool = False) -> list[tuple[Prompt, tuple[str, ...]]]:
    """Prompts and their answers, in rows {"prompt": ..., "answers": ["...", ...]}; other fields are ignored.

    Raises `UserError` naming the place, the field and the fix.
    """
    found: dict[str, tuple[Prompt, tuple[str, ...]]] = {}
    for row in (row for path in resolve_files(source, network) for row in iter_rows(path)):
        named = {name: row.fields.get(name) for name in ("prompt", "messages")}
        messages = parse_prompt({name: value for name, value in named.items() if value is not None}, row.where)
        texts = tuple(
            Row(row.where, {f"answers[{i}]": each}).text(f"answers[{i}]") for i, each in enumerate(row.items("answers"))
        )
        prompt = Prompt(row_id(row.value, row.where) or content_id(messages), messages)
        if prompt.id in found:
            raise row.error("id", f"{json.dumps(prompt.id)} is an earlier row's", "give all answers in one row")
        found[prompt.id] = prompt, tuple(dict.fromkeys(text for text in texts if text.strip()))
    if not found:
        raise UserError(f'{source}: no rows in it; fix: write {{"prompt": ..., "answers": [...]}} in each line')
    return list(found.values())


def _choose_prompts(
    bound: BoundRecipe, verifier: Verifier | None, answers: AnswerSource
) -> tuple[tuple[Prompt, ...], Counter[str]]:
    """The prompts to answer: none that an iteration or the evaluation of the recipe uses."""
    recipe, skipped = bound.recipe, Counter[str]()
    settings, seed = recipe.prompts, derive(recipe.seed, "seed prompts")
    used = _used_prompts(bound, answers.prompts is not None)
    count = answers.count or _DEFAULT_COUNT
    if verifier is not None and verifier.prompts is not None:
        pool: Sequence[Prompt] = verifier.prompts
    elif answers.prompts is not None:
        pool = load_prompts(answers.prompts, answers.network)
    elif settings.source in WORLDS:
        drawn = WORLDS[settings.source].draw_prompts(count + len(used), seed)
        pool = [replace(each, id=f"seed-{each.id}") for each in drawn]
    else:
        pool = load_prompts(settings.source, settings.network, settings.field)
    system = recipe.answers.system_prompt
    asked = [replace(each, messages=with_system(system, each.messages)) for each in pool]
    fresh = [each for each in asked if each.messages not in used]
    if settings.source not in WORLDS or answers.prompts is not None:
        skipped["prompts of the recipe"] += len(asked) - len(fresh)
        fresh.sort(key=lambda each: (derive(seed, each.id), each.id))
    if answers.count is None and answers.prompts is not None:
        count = len(fresh)
    if len(fresh) < count or not fresh:
        name = answers.prompts or settings.source
        raise UserError(
            f"{name}: {len(fresh)} prompts are left that the recipe's iterations and evaluation don't use, and {count} "
            "are to be answered; fix: lower --count, or name others with --prompts"
        )
    return tuple(fresh[:count]), skipped


def _used_prompts(bound: BoundRecipe, lenient: bool) -> frozenset[tuple[Message, ...]]:
    """The prompts of the recipe's iterations and evaluation; ``lenient``: none if they can't be read yet."""
    try:
        return frozenset(prompt.messages for t in range(bound.last + 1) for prompt in bound.choose_prompts(t))
    except UserError:
        if lenient:
            return frozenset()
        raise


def _held_out_prompts(bound: BoundRecipe, count: int) -> tuple[Prompt, ...]:
    """``count`` of the world's held-out prompts. Raises `UserError` where there is no world."""
    source = bound.recipe.prompts.source
    if not count:
        return ()
    if source not in WORLDS:
        raise UserError(f"--held-out-prompts: prompts.source {source} has no held-out prompts; fix: --held-out-share")
    seed = derive(bound.recipe.seed, "seed held out")
    drawn = WORLDS[source].draw_held_out(count, seed)
    system = bound.recipe.answers.system_prompt
    return tuple(replace(each, id=f"seed-{each.id}", messages=with_system(system, each.messages)) for each in drawn)
