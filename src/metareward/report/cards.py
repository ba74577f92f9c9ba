"""Cards of the hub for a run's models and pairs: what they are, where they come from, what was measured, what warns.

Every model folder of a run has its card as ``README.md``. Nothing in a card names a path of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import TypeAdapter

from metareward.config.schema import Recipe, pairs_rules
from metareward.data.files import EXAMPLE, HUB
from metareward.evaluation.judges import judge_kind
from metareward.evaluation.worlds import WORLDS
from metareward.report.benchmark_tables import benchmark_tables
from metareward.report.facts import Run, gather, read_json
from metareward.report.independent_judge import independent_judges, judge_sentences
from metareward.report.judge_health import health_lines
from metareward.report.tables import NO_INTERVAL, rows
from metareward.storage.atomic import write_atomic
from metareward.storage.custody import ModelRef
from metareward.storage.run_dir import RunDir, package_version
from metareward.text import escape_control, one_line
from metareward.training.lineage import read_lineage

CARD = "README.md"
_PAPERS = {
    "meta-rewarding": "Meta-Rewarding Language Models ([arXiv:2407.19594](https://arxiv.org/abs/2407.19594))",
    "self-rewarding": "Self-Rewarding Language Models ([arXiv:2401.10020](https://arxiv.org/abs/2401.10020))",
}
_POCKET_LICENCE = "apache-2.0"  # of this package
_PACKAGED = re.compile(r"(?P<base>[\w.-]+/[\w.-]+) from .*?licence (?P<licence>[\w.-]+?)[.,]? ", re.DOTALL)


def write_model_card(run: RunDir, t: int) -> Path:
    """Write the card of M_t into its folder. Raises `UserError` for what can't be read or written."""
    path = run.iteration(t).model / CARD
    write_atomic(path, model_card(run, t))
    return path


def base_of(name: str, folder: Path) -> tuple[str | None, str | None]:
    """The hub's name of a recipe's model and its licence, from the card in its folder; None where that doesn't say."""
    if name == "pocket":
        return None, _POCKET_LICENCE
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    if text.startswith("---"):
        from huggingface_hub import ModelCard

        try:
            data: dict[str, object] = dict(ModelCard(text, ignore_metadata_errors=True).data.to_dict())  # type: ignore[no-untyped-call]
        except (ValueError, TypeError, yaml.YAMLError):
            data = {}
        base, licence = data.get("base_model"), data.get("license")
        return base if isinstance(base, str) else None, licence if isinstance(licence, str) else None
    found = _PACKAGED.match(text)
    return (None, None) if found is None else (found["base"], found["licence"].lower())


def model_card(run: RunDir, t: int, base: str | None = None, licence: str | None = None) -> str:
    """The card of M_t as Markdown with metadata. ``base``: M0's name on the hub, if known."""
    facts = gather(run)
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCardData(
        base_model=base,
        license=licence,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["metareward", _method(facts.recipe), "dpo", "trl", "preference-optimization"],
        model_name=f"{facts.name}-M{t}",
    )
    parts = [
        f"# {facts.name}-M{t}",
        _introduction(facts.recipe, t, base),
        *_section("Training", _training(run, facts, t)),
        *_section("Lineage", _lineage(run, t, base or _plain(facts.recipe.model))),
        *_section("Evaluation", _evaluation(facts, t)),
        *_section("Warnings", [f"- {each}" for each in _warnings(facts, t, licence)]),
        *_section("Licence", [_licence(licence)]),
    ]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_text(parts, facts.recipe)}\n"))


def pairs_card(run: RunDir, licence: str | None = None) -> str:
    """The card of the data set of all iterations' pairs, as Markdown with metadata."""
    facts = gather(run)
    from huggingface_hub import DatasetCard, DatasetCardData

    kinds = [kind for kind in ("actor", "judge") if any(getattr(each, f"{kind}_pairs") for each in facts.summaries)]
    configs = [{"config_name": kind, "data_files": f"iter-*/{kind}.parquet"} for kind in kinds]
    total = sum(each.actor_pairs + each.judge_pairs for each in facts.summaries)
    data = DatasetCardData(
        license=licence,
        task_categories=["text-generation"],
        tags=["metareward", _method(facts.recipe), "preference", "dpo", "trl", "synthetic"],
        pretty_name=f"Preference pairs of {facts.name}",
        size_categories=next(name for most, name in _SIZES if total < most),
        configs=configs,
    )
    counts = [(f"{each.iteration}", f"M{each.iteration - 1}", f"{each.prompts:,}", f"{each.actor_pairs:,}",
               f"{each.judge_pairs:,}") for each in facts.summaries]  # fmt: skip
    parts = [
        f"# Preference pairs of {facts.name}",
        f"Pairs that a language model made for its own training, by the method of {_paper(facts.recipe)} with "
        "metareward: in iteration t model M(t-1) answers each prompt several "
        "times, judges its answers, and the best and the worst become a pair (`actor`); where the recipe has judge "
        "pairs, it compares its judgments of one answer and the best and the worst become a pair (`judge`). Nobody has "
        "checked them by hand.",
        _table(("iteration", "made by", "prompts", "actor pairs", "judge pairs"), counts),
        "The files are in TRL's conversational preference format: `prompt`, `chosen`, `rejected` (lists of turns), "
        "`kind`, `prompt_id`, `chosen_score`, `rejected_score`, `margin`, the indices of both samples, `candidate` "
        "(judge pairs: the answer that was judged), and how each text ended.",
        *_section("How they were made", _settings(facts.recipe, facts.recipe.iterations)),
        *_section("Warnings", [f"- {each}" for each in (*health_lines(facts.health), _OWN_SCORES)]),
        *_section("Licence", [_licence(licence), "Prompts and texts of the model may have terms of their own."]),
    ]
    return str(DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{_text(parts, facts.recipe)}\n"))


_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M"), (10**12, "n>1M"))
_OWN_SCORES = "Scores are the judge's own: they say what was trained on, not how good an answer is."


# --- parts ---


def _text(parts: Iterable[str], recipe: Recipe) -> str:
    """The card's text, with judges named without addresses and folders."""
    text = "\n\n".join(parts)
    for judge in {each.asked_judge for each in recipe.benchmarks if each.asked_judge is not None}:
        where = judge_kind(judge)
        if where in ("server", "recipe", "model"):
            text = text.replace(judge, judge.partition("#")[2] if where == "server" else _plain(judge))
    return escape_control(text)


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    found = [each for each in lines if each]
    if found:
        yield f"## {title}"
        yield "\n".join(found) if found[0].startswith("- ") else "\n\n".join(found)


def _method(recipe: Recipe) -> str:
    return "meta-rewarding" if any(map(recipe.runs_meta_judge, recipe.iterations)) else "self-rewarding"


def _paper(recipe: Recipe) -> str:
    return _PAPERS[_method(recipe)]


def _introduction(recipe: Recipe, t: int, base: str | None) -> str:
    of = f"[{base}](https://huggingface.co/{base})" if base else f"`{_plain(recipe.model)}`"
    who = "an external judge's or reward's" if recipe.judge is not None or recipe.reward is not None else "its own"
    return (
        f"M{t} of {len(recipe.iterations)} iterations of {_paper(recipe)}, made from {of} with "
        f"metareward {package_version('metareward') or ''}: the model answers "
        f"prompts, its answers are scored by {who} judgments, and it is trained by DPO on the pairs."
    )


def _training(run: RunDir, facts: Run, t: int) -> Iterator[str]:
    cells = []
    for each in facts.summaries:
        if each.iteration <= t:
            lineage = read_lineage(run.iteration(each.iteration).model)
            rate = f"{facts.recipe.training_of(each.iteration).learning_rate:g}"
            pairs = (f"{each.prompts:,}", f"{each.actor_pairs:,}", f"{each.judge_pairs:,}")
            cells.append((f"M{each.iteration}", *pairs, f"{lineage.steps:,}", rate))
    yield _table(("model", "prompts", "actor pairs", "judge pairs", "steps", "learning rate"), cells)
    yield from _settings(facts.recipe, range(1, t + 1))


def _settings(recipe: Recipe, iterations: Iterable[int]) -> Iterator[str]:
    source = recipe.prompts.source
    prompts = f"`{source}`" if source in WORLDS or source.startswith((HUB, EXAMPLE)) else "a private file"
    rules = "; ".join(f"{t}: rho {pairs_rules(recipe, t).rho:g}" for t in iterations)
    training, judging = recipe.training, recipe.judgments
    yield (
        f"Prompts: {prompts}. K = {recipe.answers.k} answers (temperature {recipe.answers.temperature:g}), "
        f"N = {judging.n} judgments each (temperature {judging.temperature:g}, {judging.min_score:g} to "
        f"{judging.max_score:g}). Length control by iteration: {rules}. DPO with beta {training.beta:g}, loss "
        f"{', '.join(training.loss_type)}, batch {training.batch_size}, seed {recipe.seed}."
    )


def _lineage(run: RunDir, t: int, first: str) -> Iterator[str]:
    cells = []
    for number in range(1, t + 1):
        lineage = read_lineage(run.iteration(number).model)
        references = (_named(each, number, run, first) for each in (lineage.start, lineage.reference))
        cells.append((f"M{number}", *references, ", ".join(f"{each:.12}" for each in lineage.sources)))
    yield _table(("model", "start", "DPO's reference", "pairs (SHA-256)"), cells)


def _named(reference: ModelRef | None, t: int, run: RunDir, first: str) -> str:
    return "-" if reference is None else f"{portable_name(reference, t, run, first)} ({reference.sha256:.12})"


def portable_name(reference: ModelRef, t: int, run: RunDir, first: str) -> str:
    """What a model in M_t's lineage is called outside of the run: M1, M2 ..., ``first`` for M0, or its folder."""
    found = re.fullmatch(r"\.\./(?:\.\./iter-(\d+)/)?(model|reference)", reference.path)
    if found:
        number = int(found[1] or t)
        return f"M{number}" if found[2] == "model" else f"average of M0 to M{number - 1}"
    return first if reference.sha256 == _first_digest(run) else _plain(reference.path)


def _first_digest(run: RunDir) -> object:
    """The digest of M0's files."""
    inputs = read_json(run.inputs, TypeAdapter(dict[str, object])) or {}
    return inputs.get("the model's files")


def _evaluation(facts: Run, t: int) -> Iterator[str]:
    evaluations = [each for each in facts.evaluations if each.model in ("M0", f"M{t}")]
    if not evaluations or evaluations[-1].model != f"M{t}":
        return
    cells = []
    for row in rows(evaluations):
        shown = []
        for cell in row.cells:
            interval = row.metric.show_interval(cell.measure.low, cell.measure.high) if cell else ""
            interval = "" if interval == NO_INTERVAL else f" ({interval})"
            shown.append("-" if cell is None else f"{row.metric.show(cell.measure.mean)}{interval}")
        last = row.cells[-1]
        paired = "" if last is None or last.paired is None else (
            f"{row.metric.show_change(last.paired.mean)} ({row.metric.show_changes(last.paired.low, last.paired.high)})"
        )  # fmt: skip
        cells.append((row.metric.label, *shown, paired))
    yield f"On {evaluations[-1].prompts} held-out prompts, with 95 % intervals; the difference is paired by prompt."
    known = 1 + len(evaluations) + any(row[-1] for row in cells)  # older runs have no paired differences
    head = ("", *(each.model for each in evaluations), f"M{t} minus M0")
    yield _table(head[:known], [row[:known] for row in cells])
    against = [each for each in evaluations[-1].win_rates if each.against == "M0"]
    for each in against:
        who = "the oracle" if each.judge == "oracle" else f"M{t} itself"
        yield f"Win rate against M0, judged by {who}: {each.win_rate:.1f} % ({each.low:.1f} to {each.high:.1f})."
    for table in benchmark_tables(facts):
        kept = [row for row in table.rows if row[0].split(" ")[0].split(",")[0] in ("M0", f"M{t}")]
        if kept:
            yield f"**{table.title}**"
            yield _table(table.columns, kept)
            yield " ".join(table.notes)
    yield " ".join(judge_sentences(facts))


def _warnings(facts: Run, t: int, licence: str | None) -> Iterator[str]:
    yield from health_lines(facts.health)
    if facts.recipe.prompts.source not in WORLDS and not independent_judges(facts):
        yield "The model's scores of its own answers are no evidence of quality; no independent judge was asked."
    evaluated = next((each for each in facts.evaluations if each.model == f"M{t}"), None)
    if evaluated is None:
        yield f"M{t} has not been evaluated."
    elif evaluated.prompts < 100:
        yield f"Only {evaluated.prompts} held-out prompts: differences that matter can be missed."
    if facts.recipe.prompts.source in WORLDS:
        yield "Trained on tasks of a toy world: not for use."
    if licence is None:
        yield "The licence of the base model is unknown to metareward: find it out before you share this model."
    yield "Trained on its own outputs without safety data or tests: it may be worse at refusing than its base."


def _licence(licence: str | None) -> str:
    return f"That of the base model: {licence}." if licence else "Unknown: that of the base model applies."


def _table(head: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    lines = [[one_line(each).replace("|", "\\|") for each in row] for row in (head, ["---"] * len(head), *cells)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(name: str) -> str:
    """The last part of a path: a folder's name says nothing of this machine."""
    return one_line(Path(name).name or name).replace("`", "'")
