"""LLMBar's published statistics, as its own script counts them (princeton-nlp/LLMBar, LLMEvaluator/evaluate.py).

Its kappa is not Cohen's kappa of labels and verdicts: labels are coded 1 and 2, verdicts 1 and 0, where 0 stands for
"the second output" as well as for no verdict at all. It is here to compare with the published files; the right one is
`metareward.benchmarks.judge_pairs.PairQuality.kappa`.
"""

from __future__ import annotations

from collections.abc import Sequence

from metareward.benchmarks.judge_pairs import JudgedPair, cohen_kappa, mean


def llmbar_statistics(judged: Sequence[JudgedPair]) -> dict[str, float | None]:
    """The numbers of a ``statistics.json``, shares in [0, 1]. All pairs must be judged in both orders."""
    original, swapped = ([pair.winners[order] for pair in judged] for order in (0, 1))
    labels = [pair.label for pair in judged]
    right = [[winner == label for winner, label in zip(said, labels, strict=True)] for said in (original, swapped)]
    coded = [[int(winner == 1) for winner in said] for said in (original, swapped)]
    kappas = [cohen_kappa(list(zip(said, labels, strict=True))) for said in coded]
    return {
        "correct_False": mean(right[0]),
        "correct_True": mean(right[1]),
        "correct_average": mean(right[0] + right[1]),
        "correct_both": mean([a and b for a, b in zip(*right, strict=True)]),
        "equal": mean([a == b for a, b in zip(original, swapped, strict=True)]),
        "kappa_False": kappas[0],
        "kappa_True": kappas[1],
        "kappa_average": mean([kappa for kappa in kappas if kappa is not None]),
        "kappa_agreement": cohen_kappa(list(zip(*coded, strict=True))),
    }
