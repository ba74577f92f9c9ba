"""Our files as they are, with all their columns, in TRL's own trainers: loaded by `datasets`, trained on for a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from training_world import save_model, save_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from metareward.types import PairKind

QUIET: dict[str, Any] = {
    "max_steps": 1,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "logging_steps": 1,
}


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def start(folder: Path) -> tuple[Any, Any]:
    path = save_model(folder / "M0")
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), AutoTokenizer.from_pretrained(path)


def test_pairs_in_the_dpo_trainer(tmp_path: Path, cache: str) -> None:
    paths = [save_pairs(tmp_path / f"{kind}.parquet", kind, 4) for kind in get_args(PairKind)]
    rows = Dataset.from_parquet([str(path) for path in paths], cache_dir=cache)
    model, tokenizer = start(tmp_path)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(output_dir=str(tmp_path / "out"), **QUIET),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    asked = tokenizer.apply_chat_template(rows[0]["prompt"], add_generation_prompt=True)["input_ids"]
    assert trainer.train_dataset[0]["prompt_ids"] == asked


def test_seed_sets_in_the_sft_trainer(tmp_path: Path, cache: str) -> None:
    user, said = {"role": "user", "content": "name four red fruits"}, {"role": "assistant", "content": "best"}
    row = {"id": "q/eft/0", "kind": "eft", "prompt": [user], "completion": [said], "prompt_id": "q", "rank": 0.0}
    (tmp_path / "eft.jsonl").write_text("".join(json.dumps(row | {"score": n / 2}) + "\n" for n in range(4)))
    rows = Dataset.from_json(str(tmp_path / "eft.jsonl"), cache_dir=cache)
    model, tokenizer = start(tmp_path)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(tmp_path / "out"), **QUIET),
        train_dataset=rows,
        processing_class=tokenizer,
    )
    trainer.train()
    asked = tokenizer.apply_chat_template([user], add_generation_prompt=True)["input_ids"]
    labels = trainer.train_dataset[0]["labels"]
    assert set(labels[: len(asked)]) == {-100} and -100 not in labels[len(asked) :]
