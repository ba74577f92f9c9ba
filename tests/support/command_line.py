"""The command line parsed without running anything."""

from __future__ import annotations

from typer.main import get_command

from metareward.cli.main import app

GROUP = get_command(app)


def parse(words: list[str]) -> None:
    """Understands the words without doing anything; raises what a typing mistake raises."""
    context = GROUP.make_context("metareward", words)
    while words := [*context._protected_args, *context.args]:
        name, command, rest = context.command.resolve_command(context, words)  # type: ignore[attr-defined]
        context = command.make_context(name, rest, parent=context)
