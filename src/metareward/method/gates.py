"""Gates on the figures of judge health: a threshold, what it means to be past it, a remedy, and what happens then.

The thresholds are ours: a healthy run has no warning, a run whose judge is of no use stops before it is paid for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from metareward.method.judge_health import Figure, Figures

Action = Literal["note", "warn", "stop"]
Form = Literal["share", "points", "ratio"]


@dataclass(frozen=True, slots=True)
class Limit:
    """A gate's threshold and action as set in the recipe."""

    threshold: float
    action: Action


@dataclass(frozen=True, slots=True)
class Gate:
    """A limit on a figure. ``name`` is the gate's key in the recipe's ``judge_health`` section.

    ``side``: where values are bad; ``either`` is above the threshold, or as far on the other side of one half (shares)
    or of zero (points). ``label`` names the figure, ``problem`` a value past the threshold; ``statement`` is a sentence
    with ``{value}`` and ``{n}``. ``figure``: the figure's name, if it is not the gate's.
    """

    name: str
    form: Form
    side: Literal["below", "above", "either"]
    limit: Limit
    label: str
    problem: str
    statement: str
    meaning: str
    remedy: str
    figure: str = ""

    def of(self, figures: Figures) -> Figure | None:
        """The gate's figure, if it is among ``figures``."""
        return figures.get(self.figure or self.name)


_WEAKER_STEP = (
    "training.loss_type [sigmoid, sft] (an NLL term on chosen texts), a lower training.learning_rate, or judge pairs "
    "in fewer iterations (iterations.*.judge_pairs)"
)
_ALL = (
    Gate(
        "unusable_judge",
        "share",
        "below",
        Limit(0.2, "stop"),
        label="Readable judgments",
        problem="hardly any judgment has a readable score",
        statement="{value} of {n} judgments have a readable score",
        meaning="answers get no scores, so there is nothing to train on",
        remedy=(
            "a rubric that this model follows (judgments.rubric), a higher judgments.max_tokens if judgments are "
            "cut off, judgments.verdict constrained, or a model that was taught to judge (metareward seed build, "
            "metareward sft)"
        ),
        figure="readable_judgments",
    ),
    Gate(
        "readable_judgments",
        "share",
        "below",
        Limit(0.9, "warn"),
        label="Readable judgments",
        problem="too few judgments have a readable score",
        statement="{value} of {n} judgments have a readable score",
        meaning="judgments without a score are left out, so answers are scored by fewer of them or not at all",
        remedy="judgments.retries, or the same as for unusable_judge; if it fell by training: " + _WEAKER_STEP,
    ),
    Gate(
        "readable_as_written",
        "share",
        "below",
        Limit(0.9, "warn"),
        label="Judgments readable before a score was drawn",
        problem="constrained scores cover up that the judge has lost the form",
        statement="{value} of {n} judgments had a readable score of their own before a constrained one took its place",
        meaning="the scores that are drawn from a judge that can't write some of them may run against the truth",
        remedy="judgments.verdict text, and a rubric that this model follows; if it fell by training: " + _WEAKER_STEP,
    ),
    Gate(
        "readable_by_score",
        "points",
        "either",
        Limit(0.1, "warn"),
        label="Readability, worst to best answer",
        problem="readability depends on an answer's score",
        statement=(
            "from the worst to the best answers the share of readable judgments changes by {value} over {n} judgments"
        ),
        meaning=(
            "scores are missing more often for answers of one quality, so pairs teach what is readable, not what "
            "is good"
        ),
        remedy=_WEAKER_STEP,
    ),
    Gate(
        "readable_by_truth",
        "points",
        "either",
        Limit(0.05, "warn"),
        label="Readability, perfect minus other answers",
        problem="readability depends on an answer's true quality",
        statement="the readable share of perfect answers minus that of all others is {value} over {n} judgments",
        meaning=(
            "scores are missing more often for answers of one quality, so pairs teach what is readable, not what "
            "is good"
        ),
        remedy=_WEAKER_STEP,
    ),
    Gate(
        "one_score",
        "share",
        "above",
        Limit(0.9, "stop"),
        label="Most frequent score",
        problem="nearly all answers get the same score",
        statement="{value} of {n} scores of M0's answers are the same score",
        meaning="the judge can't tell answers apart, so pairs are noise",
        remedy=(
            "a rubric with finer or stricter criteria (judgments.rubric), a higher judgments.temperature, or a "
            "model that was taught to judge"
        ),
    ),
    Gate(
        "score_entropy",
        "ratio",
        "below",
        Limit(0.5, "warn"),
        label="Entropy of scores, relative to M0",
        problem="the scores collapse",
        statement="the scores of M0's answers have {value} the entropy of M0's own, over {n} scores",
        meaning="training makes the judge give fewer different scores, so answers are told apart less well",
        remedy=_WEAKER_STEP,
    ),
    Gate(
        "top_scores",
        "share",
        "above",
        Limit(0.8, "warn"),
        label="Scores in the top tenth of the scale",
        problem="scores are saturated at the top",
        statement="{value} of {n} scores are in the top tenth of the scale",
        meaning="the judge can hardly tell good answers apart",
        remedy=(
            "a stricter rubric (judgments.rubric), a wider scale (judgments.max_score) or more judgments (judgments.n)"
        ),
    ),
    Gate(
        "bottom_scores",
        "share",
        "above",
        Limit(0.8, "warn"),
        label="Scores in the bottom tenth of the scale",
        problem="scores are saturated at the bottom",
        statement="{value} of {n} scores are in the bottom tenth of the scale",
        meaning="the judge can hardly tell bad answers apart, or does not understand the rubric",
        remedy="a rubric with criteria that these answers can meet (judgments.rubric), or easier prompts",
    ),
    Gate(
        "tied_answers",
        "share",
        "above",
        Limit(0.5, "warn"),
        label="Pairs of answers with equal mean scores",
        problem="most answers are tied",
        statement="{value} of {n} pairs of answers to the same prompt have equal mean scores",
        meaning="length or chance, not quality, decides between tied answers",
        remedy="more judgments (judgments.n), judgments.score expected, or a finer rubric (judgments.rubric)",
    ),
    Gate(
        "left_out_answers",
        "share",
        "above",
        Limit(0.1, "warn"),
        label="Answers left out by min_valid",
        problem="too many answers are left out by min_valid",
        statement="{value} of {n} answers have fewer readable judgments than judgments.min_valid",
        meaning="these answers can be neither chosen nor rejected",
        remedy="what makes judgments readable (see readable_judgments), or a lower judgments.min_valid",
    ),
    Gate(
        "lost_best",
        "share",
        "above",
        Limit(0.1, "warn"),
        label="Prompts that lost their best answer",
        problem="best answers are left out by min_valid",
        statement=(
            "{value} of {n} prompts lost their best answer, by the judgments that are readable, to judgments.min_valid"
        ),
        meaning="a worse answer is chosen in its place",
        remedy="what makes judgments readable (see readable_judgments), or a lower judgments.min_valid",
    ),
    Gate(
        "lost_best_by_truth",
        "share",
        "above",
        Limit(0.1, "warn"),
        label="Prompts that lost their truly best answer",
        problem="truly best answers are left out by min_valid",
        statement="{value} of {n} prompts lost all answers with the best true score to judgments.min_valid",
        meaning="a worse answer is chosen in their place",
        remedy="what makes judgments readable (see readable_judgments), or a lower judgments.min_valid",
    ),
    Gate(
        "actor_pairs",
        "share",
        "below",
        Limit(0.25, "warn"),
        label="Prompts with an actor pair",
        problem="few prompts give an actor pair",
        statement="{value} of {n} prompts give an actor pair",
        meaning="most of what was generated teaches nothing",
        remedy=(
            "see the drop reasons: more varied answers (answers.temperature), more judgments (judgments.n), a "
            "finer rubric"
        ),
    ),
    Gate(
        "judge_pairs",
        "share",
        "below",
        Limit(0.1, "note"),
        label="Prompts with a judge pair",
        problem="few prompts give a judge pair",
        statement="{value} of {n} prompts give a judge pair",
        meaning="the judge is hardly trained, and most meta-judgments are wasted",
        remedy="see the drop reasons: iterations.*.max_judgment_chars, judgments.n, meta_judgments.rubric",
    ),
    Gate(
        "judge_pair_share",
        "share",
        "above",
        Limit(0.6, "note"),
        label="Judge pairs among all pairs",
        problem="judge pairs outnumber actor pairs",
        statement="{value} of {n} pairs are judge pairs",
        meaning="training is mostly about judging",
        remedy="find out why actor pairs are few, or build judge pairs in fewer iterations (iterations.*.judge_pairs)",
    ),
    Gate(
        "unusable_meta_judge",
        "share",
        "below",
        Limit(0.2, "stop"),
        label="Readable verdicts",
        problem="hardly any meta-judgment has a readable verdict",
        statement="{value} of {n} meta-judgments have a readable verdict",
        meaning="no judge pairs can be built, and meta-judging is the most expensive stage",
        remedy=(
            "a rubric that this model follows (meta_judgments.rubric), a higher meta_judgments.max_tokens if they"
            " are cut off, meta_judgments.verdict constrained, or no judge pairs (iterations.*.judge_pairs false)"
        ),
        figure="readable_verdicts",
    ),
    Gate(
        "readable_verdicts",
        "share",
        "below",
        Limit(0.9, "warn"),
        label="Readable verdicts",
        problem="too few meta-judgments have a readable verdict",
        statement="{value} of {n} meta-judgments have a readable verdict",
        meaning="Elo ratings rest on fewer comparisons",
        remedy="meta_judgments.retries, or the same as for unusable_meta_judge",
    ),
    Gate(
        "verdicts_as_written",
        "share",
        "below",
        Limit(0.9, "warn"),
        label="Verdicts readable before one was drawn",
        problem="constrained verdicts cover up that the meta-judge has lost the form",
        statement="{value} of {n} meta-judgments had a readable verdict before a constrained one took its place",
        meaning="verdicts that are drawn from a meta-judge that can't write one of them favour the other",
        remedy="meta_judgments.verdict text, and a rubric that this model follows (meta_judgments.rubric)",
    ),
    Gate(
        "first_position",
        "share",
        "either",
        Limit(0.75, "warn"),
        label="Verdicts for the judgment shown first",
        problem="the meta-judge follows the position",
        statement="{value} of {n} verdicts are for the judgment that was shown first",
        meaning="the order decides more than the judgments do; position weights correct the mean, not the noise",
        remedy="a plainer meta_judgments.rubric, or no judge pairs (iterations.*.judge_pairs false)",
    ),
    Gate(
        "position_flips",
        "share",
        "above",
        Limit(0.75, "warn"),
        label="Pairs of judgments whose winner flips with the order",
        problem="most verdicts flip with the order",
        statement="{value} of {n} pairs of judgments get another winner when their order is swapped",
        meaning="the order decides more than the judgments do",
        remedy="a plainer meta_judgments.rubric, or no judge pairs (iterations.*.judge_pairs false)",
    ),
    Gate(
        "higher_score_wins",
        "share",
        "either",
        Limit(0.95, "note"),
        label="Wins of the higher-scored judgment",
        problem="the meta-judge follows the score",
        statement="the judgment with the higher score wins {value} of {n} pairs with the same winner in both orders",
        meaning="judge pairs teach higher or lower scores, not better judgments",
        remedy="meta_judgments.hide_scores",
    ),
    Gate(
        "answers_cut_off",
        "share",
        "above",
        Limit(0.1, "warn"),
        label="Answers cut off by the token limit",
        problem="answers are cut off",
        statement="{value} of {n} answers were cut off by the token limit",
        meaning="the judge grades answers without their end",
        remedy="a higher answers.max_tokens",
    ),
    Gate(
        "chosen_answer_length",
        "ratio",
        "above",
        Limit(1.1, "warn"),
        label="Length of chosen over rejected answers",
        problem="chosen answers are longer than rejected ones",
        statement="chosen answers have {value} the length of rejected ones, over {n} pairs",
        meaning="training on these pairs makes answers longer",
        remedy="a higher iterations.*.rho (0.2 to 0.4), or iterations.*.max_answer_chars",
    ),
    Gate(
        "chosen_judgment_length",
        "ratio",
        "above",
        Limit(1.1, "warn"),
        label="Length of chosen over rejected judgments",
        problem="chosen judgments are longer than rejected ones",
        statement="chosen judgments have {value} the length of rejected ones, over {n} pairs",
        meaning="training on these pairs makes judgments longer",
        remedy="a lower iterations.*.max_judgment_chars",
    ),
    Gate(
        "answer_length",
        "ratio",
        "above",
        Limit(1.5, "warn"),
        label="Answer length, relative to M0",
        problem="answers grow",
        statement="answers have {value} the length of M0's, over {n} answers",
        meaning="length grows faster than it should if quality is what is rewarded",
        remedy="a higher iterations.*.rho (0.2 to 0.4), or iterations.*.max_answer_chars",
    ),
)
GATES: Mapping[str, Gate] = {gate.name: gate for gate in _ALL}
"""Every gate by its name."""


def shown_limit(gate: Gate, limit: Limit) -> str:
    """``at least 90 %``, ``at most 1.10 times``, ``25 to 75 %``."""
    if gate.side == "either":
        return show_range(gate.form, mirrored(gate.form, limit.threshold), limit.threshold)
    return f"at {'least' if gate.side == 'below' else 'most'} {show_value(gate.form, limit.threshold)}"


def mirrored(form: Form, threshold: float) -> float:
    """The threshold on the other side of the unbiased value."""
    return 1 - threshold if form == "share" else -threshold


def show_value(form: Form, value: float) -> str:
    """``83.2 %``, ``−12 points``, ``1.18 times``, with a true minus."""
    return f"{_bare(form, value)} {'%' if form == 'share' else 'points' if form == 'points' else 'times'}"


def show_range(form: Form, low: float, high: float) -> str:
    """``80 to 86.1 %``."""
    return f"{_bare(form, low)} to {show_value(form, high)}"


def _bare(form: Form, value: float) -> str:
    shown = f"{value:.2f}" if form == "ratio" else f"{round(100 * value, 1) + 0.0:.1f}".removesuffix(".0")
    return shown.replace("-", "−")
