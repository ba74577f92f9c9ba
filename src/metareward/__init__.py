"""Self-Rewarding and Meta-Rewarding language models: the public names, each loaded when it is first used.

`docs/api.md` shows how they fit together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metareward.config.schema import Recipe as Recipe
    from metareward.config.schema import load_recipe as load_recipe
    from metareward.engines.base import Engine as Engine
    from metareward.engines.base import EngineError as EngineError
    from metareward.engines.base import ScriptedEngine as ScriptedEngine
    from metareward.errors import JudgeHealthError as JudgeHealthError
    from metareward.errors import UserError as UserError
    from metareward.evaluation.base import Benchmark as Benchmark
    from metareward.evaluation.base import Column as Column
    from metareward.generation.annotate import RubricJudge as RubricJudge
    from metareward.generation.verdicts import VerdictRules as VerdictRules
    from metareward.method.elo import fit_elo as fit_elo
    from metareward.method.judge import Rubric as Rubric
    from metareward.method.meta_judge import MetaRubric as MetaRubric
    from metareward.method.pairs import PairRules as PairRules
    from metareward.method.pairs import build_pairs as build_pairs
    from metareward.pipeline.api import load_records as load_records
    from metareward.pipeline.api import open_engine as open_engine
    from metareward.pipeline.api import run as run
    from metareward.pipeline.reward import as_reward as as_reward
    from metareward.types import Completion as Completion
    from metareward.types import Dropped as Dropped
    from metareward.types import Judge as Judge
    from metareward.types import Judgment as Judgment
    from metareward.types import Message as Message
    from metareward.types import PreferencePair as PreferencePair
    from metareward.types import Prompt as Prompt
    from metareward.types import PromptRecord as PromptRecord
    from metareward.types import Reward as Reward
    from metareward.types import Sampling as Sampling
    from metareward.types import Scored as Scored
    from metareward.types import Truncated as Truncated
    from metareward.types import Unparsed as Unparsed

_MODULES = {
    "config.schema": ("Recipe", "load_recipe"),
    "engines.base": ("Engine", "EngineError", "ScriptedEngine"),
    "errors": ("JudgeHealthError", "UserError"),
    "evaluation.base": ("Benchmark", "Column"),
    "generation.annotate": ("RubricJudge",),
    "generation.verdicts": ("VerdictRules",),
    "method.elo": ("fit_elo",),
    "method.judge": ("Rubric",),
    "method.meta_judge": ("MetaRubric",),
    "method.pairs": ("PairRules", "build_pairs"),
    "pipeline.api": ("load_records", "open_engine", "run"),
    "pipeline.reward": ("as_reward",),
    "types": (
        *(
            "Completion",
            "Dropped",
            "Judge",
            "Judgment",
            "Message",
            "PreferencePair",
            "Prompt",
            "PromptRecord",
            "Reward",
        ),
        *("Sampling", "Scored", "Truncated", "Unparsed"),
    ),
}
_HOME = {name: f"metareward.{module}" for module, names in _MODULES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name's module when the name is first used, so that ``import metareward`` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'metareward' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
