"""A tiny model, pairs that favour one word over another, and a job that trains the one on the other."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from metareward.storage.atomic import atomic_dir
from metareward.storage.pair_files import write_pairs
from metareward.training.callbacks import StepLog
from metareward.training.config import DpoJob, SftJob, TrainingJob, TrainingSettings
from metareward.training.data import fit_pairs, read_examples, read_training_pairs
from metareward.training.fit import fit
from metareward.training.launch import Event
from metareward.training.models import load_dpo_models, load_tokenizer
from metareward.training.sanity_checks import SanityCheck
from metareward.training.trainer import PairTrainer, make_dpo_trainer
from metareward.types import Message, PairKind, PreferencePair

J = TypeVar("J", bound=TrainingJob)

SENTENCE = "name four red fruits please and say which of them is the best one to eat in winter"
WORDS = SENTENCE.split()
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTEXT = 256
_PARTICULAR: dict[type[PretrainedConfig], dict[str, Any]] = {
    Qwen3Config: {"head_dim": 8},
    Gemma3TextConfig: {
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    FalconConfig: {"alibi": True},
}


def save_model(
    folder: Path, seed: int = 0, dtype: torch.dtype = torch.float32, kind: type[PretrainedConfig] = LlamaConfig
) -> Path:
    """A Hugging Face folder with a random model of two layers; its tokenizer is BPE with a chat template."""
    torch.manual_seed(seed)
    tokenizer = _tokenizer()
    config = kind(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **_PARTICULAR.get(kind, {}),
    )
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_pairs(path: Path, kind: PairKind, count: int, longest: int = 12) -> Path:
    """``count`` pairs whose chosen side says ``best`` where the rejected one says ``winter``."""
    draw = random.Random(f"{kind} {count}")
    write_pairs(path, [_pair(kind, number, draw, longest) for number in range(count)])
    return path


def make_job(folder: Path, model: Path, pairs: tuple[Path, ...]) -> DpoJob:
    """Two of three planned epochs of a brisk training in ``folder``."""
    settings = TrainingSettings(
        learning_rate=3e-3,
        num_train_epochs=3,
        stop_after_epoch=2,
        batch_size=8,
        max_length=CONTEXT,
        device="cpu",
    )
    return DpoJob(
        settings=settings,
        start=model,
        reference=model,
        data=pairs,
        output=folder / "model",
        log=folder / "training.jsonl",
    )


def changed(job: J, **changes: Any) -> J:
    """``job`` with other values of its own fields or of its settings', checked."""
    own = {name: value for name, value in changes.items() if name in type(job).model_fields}
    others = {name: value for name, value in changes.items() if name not in own}
    settings = type(job.settings).model_validate({**dict(job.settings), **others})
    return type(job).model_validate({**dict(job), "settings": settings, **own})


def moved(job: J, folder: Path) -> J:
    """The same training with its output elsewhere."""
    return changed(job, output=folder / "model", log=folder / "training.jsonl")


def train_here(job: DpoJob | SftJob) -> list[Event]:
    """Train ``job`` in this process, which spares a start of torch and TRL. Returns the events of its steps."""
    events: list[Event] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(job.threads_each)
    with atomic_dir(job.product) as folders:
        data = read_training_pairs(job.data) if isinstance(job, DpoJob) else read_examples(job.data)
        fit(job, data, folders, events.append, None)
    torch.set_num_threads(threads)
    return [event for event in events if event["event"] == "step"]


def small_job(folder: Path, kind: type[PretrainedConfig] = LlamaConfig) -> DpoJob:
    """Six steps on eight judge-like and sixteen actor-like pairs."""
    pairs = (save_pairs(folder / "actor.parquet", "actor", 16), save_pairs(folder / "judge.parquet", "judge", 8, 40))
    job = make_job(folder, save_model(folder / "M0", kind=kind), pairs)
    return changed(job, num_train_epochs=2, learning_rate=1e-3)


def eight_steps(folder: Path) -> DpoJob:
    """Two epochs of whole batches, in micro-batches that two processes can share."""
    pairs = (save_pairs(folder / "actor.parquet", "actor", 20), save_pairs(folder / "judge.parquet", "judge", 12, 30))
    job = make_job(folder, save_model(folder / "M0"), pairs)
    return changed(job, per_device_train_batch_size=2, learning_rate=1e-3)


def prepare_trainer(job: DpoJob, folder: Path, sharing: bool = True) -> PairTrainer:
    """A trainer before its first step; without ``sharing`` it is TRL's with our arguments and our order of pairs."""
    models, tokenizer = load_dpo_models(job), load_tokenizer(job.start)
    data = fit_pairs(read_training_pairs(job.data), tokenizer, job, CONTEXT)
    check = SanityCheck(job, None, lambda _: None)
    callbacks = [StepLog(job, lambda _: None, len(data.examples)), *([check] if sharing else [])]
    trainer = make_dpo_trainer(job, data, models.policy, models.reference, tokenizer, folder, callbacks, models.adapter)
    if sharing:
        check.prepare(trainer, data.lengths)
    return trainer


def _pair(kind: PairKind, number: int, draw: random.Random, longest: int) -> PreferencePair:
    def words(low: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(low, longest)))

    return PreferencePair(
        kind=kind,
        prompt_id=f"p{number}",
        prompt=(Message("user", words(3)),),
        chosen=f"{words(1)} best",
        rejected=f"{words(1)} winter",
        chosen_index=0,
        rejected_index=1,
        chosen_score=4.0,
        rejected_score=2.0,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([SENTENCE] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", chat_template=TEMPLATE
    )
