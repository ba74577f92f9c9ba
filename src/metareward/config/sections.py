"""Sections of a recipe: the engine, of one of several kinds, the three roles' sampling, and how pairs are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from metareward.engines.device import resolved_dtype
from metareward.engines.local.workers import LocalSettings
from metareward.engines.openai.engine import OpenAISettings
from metareward.engines.ray.settings import RaySettings, local_by_default, one_engine
from metareward.engines.vllm import VllmSettings, automatic_engine
from metareward.generation.verdicts import VerdictFormatSettings
from metareward.method.pairs import OnTie
from metareward.settings import Count, Section, Text

Temperature = Annotated[float, Field(ge=0.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]


def _default_kind(value: object) -> object:
    """An engine without a kind is the local one; kind ``auto`` is resolved for this machine."""
    if isinstance(value, Mapping) and value.get("kind") == "auto":
        chosen = {"kind": "local"} if value.get("device") == "cpu" else automatic_engine()[0]
        return {**value, **chosen}
    return local_by_default(value)


ENGINE = "What runs the model: kind 'local' (the default), 'openai', 'vllm', 'ray' or 'auto': vLLM on GPUs, else local"
EngineSettings = Annotated[
    LocalSettings | OpenAISettings | VllmSettings | RaySettings,
    Field(discriminator="kind"),
    BeforeValidator(_default_kind),
]


def engine_fingerprint(settings: EngineSettings) -> dict[str, object]:
    """What of the engine bears on the texts: the batch's shape only where the run promises the same text again.

    Replicas on a cluster write what one engine writes.
    """
    engine = one_engine(settings)
    kind: dict[str, object] = {"engine.kind": engine.kind}
    if engine.kind == "openai":
        return {**kind, "engine.model": engine.model, "engine.tokenizer": engine.tokenizer}
    if engine.kind == "vllm":
        return {**kind, "engine.dtype": engine.dtype}  # 'auto' is the model's own, which counts too
    shape = {"engine.max_num_seqs": engine.max_num_seqs} if engine.deterministic else {}
    dtype = resolved_dtype(engine.dtype, engine.device)
    return {**kind, "engine.dtype": dtype, "engine.deterministic": engine.deterministic, **shape}


class PromptSettings(Section):
    """Where prompts come from."""

    source: Text = Field(
        description="Prompts in a file, folder, hub:OWNER/NAME or example:NAME; "
        "'pocket', 'constraints': worlds with an oracle"
    )
    field: Text | None = Field(None, description="The field of a row that holds the prompt, where rows have several")
    network: bool = Field(
        False, description="Whether source, held_out and benchmarks' files may be fetched from the Hugging Face hub"
    )
    per_iteration: Count = Field(
        5000, description="Prompts answered in each iteration, no prompt twice (paper: 5000 of 20,000)"
    )
    in_flight: Count = Field(64, description="Prompts worked on at a time; raise it where an engine has many GPUs")
    held_out: Text | Count = Field(
        256, description="What every model is evaluated on: so many prompts that training doesn't need, or a JSONL file"
    )


class AnswerSettings(Section):
    """The actor's sampling (Meta-Rewarding section 2)."""

    k: int = Field(7, ge=2, description="Answers sampled for each prompt, K (paper: 7)")
    temperature: Temperature = Field(0.8, description="Sampling temperature (paper: 0.8)")
    top_p: TopP = Field(0.95, description="Nucleus sampling mass (paper: 0.95)")
    max_tokens: Count = Field(1024, description="Longest answer, in new tokens")
    system_prompt: Text | None = Field(None, description="System prompt for prompts that have none")


VerdictKind = Literal["text", "constrained"]
_VERDICT = "'text': as written (paper); 'constrained': drawn from the rubric's values, always readable"


class JudgmentSettings(Section):
    """The judge's rubric and sampling (Meta-Rewarding section 2)."""

    n: Count = Field(11, description="Judgments of each answer, N (paper: 11)")
    first_round: Count | None = Field(
        None,
        description="Judgments of each answer at first; more, up to n, where they can change a pair; null (paper): n",
    )
    rubric: Text = Field(
        "judge", description="Packaged rubric, a .txt file of your own, or criteria: 'criteria' or a .yaml file"
    )
    verdict_format: VerdictFormatSettings
    temperature: Temperature = Field(0.8, description="Sampling temperature (paper: 0.8)")
    top_p: TopP = Field(0.95, description="Nucleus sampling mass (paper: 0.95)")
    max_tokens: Count = Field(1024, description="Longest judgment, in new tokens; one that is cut off is invalid")
    system_prompt: Text | None = Field(None, description="System prompt of the judge")
    score: Literal["sampled", "expected"] = Field(
        "sampled", description="A judgment's score: as written (paper), or the mean over the tokens possible there"
    )
    verdict: VerdictKind = Field("text", description=f"Scores {_VERDICT}")
    retries: int = Field(0, ge=0, description="How often an unreadable judgment is asked again (paper: 0)")
    min_valid: Count = Field(2, description="An answer with fewer valid judgments is left out, never scored 0")
    min_score: float = Field(0.0, description="Lowest score of the rubric")
    max_score: float = Field(5.0, description="Highest score of the rubric (paper: 5)")


class MetaJudgmentSettings(Section):
    """The meta-judge's rubric and sampling (Meta-Rewarding section 2). It works where judge pairs are made."""

    rubric: Text = Field("metajudge", description="Packaged meta-judge rubric, or a .txt file of your own")
    verdict_format: VerdictFormatSettings
    temperature: Temperature = Field(0.8, description="Sampling temperature; 0 is greedy")
    top_p: TopP = Field(0.95, description="Nucleus sampling mass")
    max_tokens: Count = Field(1024, description="Longest meta-judgment, in new tokens")
    system_prompt: Text | None = Field(None, description="System prompt of the meta-judge")
    verdict: VerdictKind = Field("text", description=f"Winners {_VERDICT}")
    retries: int = Field(0, ge=0, description="How often an unreadable meta-judgment is asked again (paper: 0)")
    hide_scores: bool = Field(False, description="Hide the scores of the judgments compared (paper: they are shown)")
    max_pairs: Count | None = Field(
        None,
        description="Most pairs of judgments compared for a prompt, to find the best and the worst; null (paper): all",
    )


class ReasoningSettings(Section):
    """Models that write their reasoning before the answer."""

    strip: bool = Field(False, description="Judge and parse only what follows the reasoning; training keeps all of it")
    start: Text = Field("<think>", description="Tag at which the reasoning begins")
    end: Text = Field("</think>", description="Tag at which the reasoning ends")


class PairSettings(Section):
    """How scores become actor pairs and verdicts judge pairs (Meta-Rewarding section 2)."""

    on_tie: OnTie = Field(
        "shortest",
        description="Which of equal scores at rho 0: shortest best, longest worst; any; or least variance of judgments",
    )
    mask_truncated_completions: bool = Field(
        True, description="Leave answers that answers.max_tokens cut off out of actor pairs"
    )
    min_margin: float = Field(
        0.0, ge=0.0, description="By how many standard errors the two scores of an actor pair must differ; 0: by any"
    )
    position_weights_scope: Literal["iteration", "answer"] = Field(
        "iteration", description="Position weights from all battles of the iteration, or of each answer alone"
    )
    elo_prior: float = Field(0.1, gt=0.0, description="Weight of the prior that keeps Elo ratings finite")
    min_battles: Count = Field(2, description="A judge pair needs at least this many readable comparisons")
