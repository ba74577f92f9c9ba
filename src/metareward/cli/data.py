"""``metareward seed build``, ``metareward sft`` and ``metareward prompts propose``: what models are taught from.

Heavy modules are imported inside the commands, so that ``--help`` and typing mistakes answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from metareward.config.schema import Recipe


seed_app = typer.Typer(no_args_is_help=True, help="Seed sets: what the first model is taught, from ranked answers.")
prompts_app = typer.Typer(no_args_is_help=True, help="Prompts: what models are asked.")

_RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="Its model, engine and settings are used.")]
_Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of it. Again for more.")
]
_Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for all that is made.")]
_Network = Annotated[bool, typer.Option("--network", help="Allow to fetch what is named hub:OWNER/NAME.")]


@seed_app.command("build")
def seed_build_command(
    recipe: _RecipeName,
    ranked: Annotated[
        str, typer.Option("--ranked", metavar="SOURCE", help="Ranked answers: a file, a folder, or hub:OWNER/NAME.")
    ],
    out: _Out,
    changes: _Changes = None,
    tries: Annotated[
        int, typer.Option("--tries", min=1, help="Sets of judgments a prompt may have; of many, one agrees by chance.")
    ] = 1,
    language: Annotated[
        str, typer.Option("--language", help="Pass over prompts told to be in another; '' for none.")
    ] = "en",
    all_turns: Annotated[bool, typer.Option("--all-turns", help="Also prompts later in a conversation.")] = False,
    ift_share: Annotated[
        float, typer.Option("--ift-share", min=0, max=1, help="Share of the prompts for IFT; 0: none.")
    ] = 0.5,
    held_out_share: Annotated[
        float, typer.Option("--held-out-share", min=0, max=1, help="Share of the others kept to measure judges on.")
    ] = 0.25,
    ties: Annotated[bool, typer.Option("--allow-ties", help="The judge may give answers of unlike rank one score.")] = (
        False
    ),
    most_share: Annotated[
        float, typer.Option("--most-share", min=0, max=1, help="Largest share of EFT that one score may have.")
    ] = 0.4,
    judging: Annotated[
        bool, typer.Option("--judging/--no-judging", help="Without judging: IFT and what is held out only.")
    ] = True,
    network: _Network = False,
) -> None:
    """Make IFT and EFT sets from human-ranked answers. The same command again goes on where it stopped."""
    from metareward.data.ranked import read_ranked

    loaded = _recipe(recipe, changes)
    found = read_ranked(ranked, language or None, not all_turns, network)

    from metareward.generation.progress import terminal_progress
    from metareward.pipeline.seeding import SeedChoices, build_seed_sets

    choices = SeedChoices(tries, ift_share, held_out_share, ties, most_share, judging)
    sets = build_seed_sets(loaded, found, out, choices, terminal_progress())
    _tell("seed sets", sets.summary)
    _say(f"written to {out}")


def sft_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A Hugging Face model folder, or 'pocket'.")],
    data: Annotated[list[Path], typer.Argument(metavar="DATA...", help="Files of examples, such as eft.jsonl.")],
    out: _Out,
    paper: Annotated[
        str, typer.Option("--paper", help="Whose settings: self-rewarding or meta-rewarding.")
    ] = "self-rewarding",
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one of them, as epochs=2 or device=cpu. Again for more."
        ),
    ] = None,
) -> None:
    """Teach a model from examples, with the loss on the answers alone. The result is DIR/model."""
    from metareward.generation.progress import terminal_progress
    from metareward.pipeline.seeding import teach
    from metareward.training.sft_papers import settings_of_paper

    result = teach(model, data, out, settings_of_paper(paper, changes or ()), terminal_progress())
    lineage = result.lineage
    numbers = {"learned": lineage.examples, "too long": lineage.too_long, "steps": lineage.steps}
    _tell("supervised training", numbers)
    _say(f"{'made before' if result.seconds == 0 else 'written'}: {result.output}")


@prompts_app.command("propose")
def prompts_propose_command(
    recipe: _RecipeName,
    seeds: Annotated[
        str, typer.Option("--seeds", metavar="SOURCE", help="Prompts by people: a file, a folder, or hub:OWNER/NAME.")
    ],
    count: Annotated[int, typer.Option("--count", min=1, help="How many new prompts.")],
    out: _Out,
    changes: _Changes = None,
    apart: Annotated[
        list[str] | None, typer.Option("--apart-from", metavar="SOURCE", help="Nothing like these, such as a test set.")
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="Sampling temperature.")] = 0.6,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1, help="Nucleus sampling mass.")] = 0.9,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Longest completion, in new tokens.")] = 1024,
    network: _Network = False,
) -> None:
    """Have a model write new prompts after eight that it is shown. The same command again goes on where it stopped."""
    from metareward.data.prompts import gather_prompts

    loaded = _recipe(recipe, changes)
    shown = gather_prompts(seeds, network)
    others = tuple(prompt for source in apart or () for prompt in gather_prompts(source, network).prompts)

    from metareward.data.propose import counts
    from metareward.generation.progress import terminal_progress
    from metareward.pipeline.seeding import propose_prompts
    from metareward.types import Sampling

    sampling = Sampling(temperature, top_p, max_tokens)
    found = propose_prompts(loaded, shown.prompts, count, out, sampling, others, terminal_progress())
    _tell("prompts", counts(found))
    if found.exhausted:
        _say(f"the model came up with nothing new any more after {len(found.prompts)} of {count} prompts")
    _say(f"written to {out / 'prompts.jsonl'}")


def _recipe(name: str, changes: list[str] | None) -> Recipe:
    from metareward.config.schema import load_recipe

    return load_recipe(name, changes or ())


def _tell(title: str, numbers: Mapping[str, object]) -> None:
    """A table of numbers, those with several parts as ``part number, part number``."""
    from rich.table import Table

    table = Table("", title, title_justify="left")
    for name, value in numbers.items():
        parts = [f"{part} {number}" for part, number in value.items()] if isinstance(value, Mapping) else [str(value)]
        table.add_row(name.replace("_", " "), ", ".join(parts).replace("_", " ") or "-")
    _say(table)


def _say(what: Any) -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=140)
    console.print(what, markup=False, highlight=False, soft_wrap=isinstance(what, str))
