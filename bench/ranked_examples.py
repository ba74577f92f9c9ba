"""Writes the ranked answers of the pocket world that ship with the package: `example:pocket`.

Instructions that the preset may train on, each with three faulty answers of different true scores (bench/seeding.py).
The other example, `everyday`, was written by hand.

    python bench/ranked_examples.py
"""

from __future__ import annotations

from metareward.data.files import resolve_file
from seeding import ranked, write_ranked

PROMPTS, SEED = 160, 18


def main() -> None:
    """Write the file."""
    rows = tuple(ranked(PROMPTS, SEED, held_out=False))
    write_ranked(resolve_file("example:pocket"), rows)
    print(f"{len(rows)} prompts")


if __name__ == "__main__":
    main()
