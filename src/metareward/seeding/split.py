"""Which prompts are for IFT, for EFT, and held out: by groups, so that no prompt is in two of them.

Self-Rewarding has 3,200 prompts in IFT and 2,171 in EFT, a quarter of which evaluate the judge, without overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metareward.seeding.ranked import Ranked
from metareward.seeds import derive

Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """Three lots of prompts without a group in common, and those ``left_over``, which teach nothing where they are."""

    ift: tuple[Ranked, ...]
    eft: tuple[Ranked, ...]
    held_out: tuple[Ranked, ...]
    left_over: tuple[Ranked, ...]


def split(ranked: Sequence[Ranked], ift_share: float, held_out_share: float, seed: int) -> Parts:
    """``ift_share`` of the groups for IFT, and of the others ``held_out_share`` held out; both 0 to 1, by ``seed``.

    Groups in which nothing can be compared go to IFT first, since the judge learns nothing from them.
    """
    groups: dict[Group, list[Ranked]] = {}
    for each in ranked:
        groups.setdefault(each.group, []).append(each)
    order = sorted(groups, key=lambda group: (derive(seed, "seed sets", *group), group))
    order.sort(key=lambda group: any(each.comparable for each in groups[group]))
    count = round(ift_share * len(order))
    ift, rest = order[:count], order[count:]
    usable = [group for group in rest if any(each.comparable for each in groups[group])]
    held = round(held_out_share * len(usable))
    chosen = {
        **dict.fromkeys(ift, "ift"),
        **dict.fromkeys(usable[:held], "held_out"),
        **dict.fromkeys(usable[held:], "eft"),
    }
    lots: dict[str, list[Ranked]] = {"ift": [], "eft": [], "held_out": [], "": []}
    for each in ranked:
        lot = chosen.get(each.group, "")
        lots[lot if lot == "ift" or each.comparable else ""].append(each)
    return Parts(tuple(lots["ift"]), tuple(lots["eft"]), tuple(lots["held_out"]), tuple(lots[""]))
