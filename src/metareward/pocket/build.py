"""Training of the pocket model: on right demonstrations first, then for a short time on demonstrations with faults.

Trained with faults from the start, a model this small learns to act but never to judge (docs/log.md). The right
demonstrations make it capable, the faulty ones make it careless: what DPO has to recover is in the weights.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from metareward.pocket.demonstrations import CLEAN, EVAL_MIX, PARTLY_HASTY, FaultRates, TaskMix, demonstrations
from metareward.seeds import derive
from metareward.types import ModelRole

SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_CHUNK = 4_000  # demonstrations drawn, and sorted by length, at a time
_EVAL_DEMONSTRATIONS = 1_000

# Token ids, the number of prompt tokens among them, and the role.
Example = tuple[list[int], int, ModelRole]


FAULTY = FaultRates(
    wrong_kind=0.15,
    wrong_item=0.25,
    missing=0.25,
    extra=0.25,
    repeated=0.15,
    swapped=0.4,
    opening=0.45,
    closing=0.45,
    hasty=0.5,
    hasty_wrong_criterion=0.3,
    hasty_chat_bias=0.6,
    unreadable=0.01,
    random_verdict=0.04,
    position_bias=0.1,
    length_bias=0.03,
    no_verdict=0.03,
)
# Mostly hasty judgments: a starting point from which there is more to gain.
HASTIER = replace(FAULTY, hasty=0.78)


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the model. Multiples of 32 and heads of 48 keep a CPU's matrix units busy (docs/log.md)."""

    hidden: int = 192
    layers: int = 4
    heads: int = 4
    intermediate: int = 512
    vocabulary: int = 640
    context: int = 512


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of training. ``batch_tokens`` includes padding and prompts.

    The learning rate rises over ``warmup`` steps, then follows a cosine of ``horizon`` steps, of which ``steps`` are
    taken. ``prompt_weight`` is the loss weight of prompt tokens, against 1 for completion tokens.
    """

    name: str
    task_mix: TaskMix
    steps: int
    horizon: int
    learning_rate: float
    prompt_weight: float
    warmup: int = 50
    batch_tokens: int = 8_192


# Prompts are mostly random words: a high loss weight on them teaches the language, then only adds noise.
_CAREFUL = FaultRates(chat_bias=0.3, preamble=0.25)
LANGUAGE = Phase("clean", TaskMix(CLEAN, (0.25, 0.4, 0.35), _CAREFUL), 600, 4_500, 4e-3, 0.2, warmup=200)
CAPABLE = Phase("capable", TaskMix(CLEAN, (0.36, 0.37, 0.27), _CAREFUL), 5_600, 5_600, 2.5e-3, 0.03)
CARELESS = Phase("careless", TaskMix(FAULTY, (0.3, 0.4, 0.3), PARTLY_HASTY), 720, 720, 3e-4, 0.0)
HASTY = Phase("hasty", TaskMix(HASTIER, (0.3, 0.35, 0.35), PARTLY_HASTY), 130, 130, 2e-4, 0.0, warmup=10)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """All that determines the weights, up to floating-point differences between machines."""

    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    phases: tuple[Phase, ...] = (LANGUAGE, CAPABLE, CARELESS, HASTY)


def build(out: Path, plan: BuildPlan, device: str = "cpu", start: Path | None = None) -> Path:
    """Train a model by ``plan``, from scratch or from the model in folder ``start``.

    Writes a Hugging Face folder named after each phase and the log ``build.jsonl``; returns the last phase's folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    set_seed(plan.seed)
    with (out / "build.jsonl").open("a") as log:
        _log(log, {"plan": asdict(plan), "device": device, "torch": torch.__version__, "start": start and start.name})
        if start is None:
            seed = derive(plan.seed, "tokenizer")
            shown = (each for phase in plan.phases for each in demonstrations(20_000, seed, phase.task_mix))
            texts = (text for each in shown for text in (each.messages[-1].content, each.completion))
            tokenizer = train_tokenizer(texts, plan.shape.vocabulary)
            model = _model(plan.shape, tokenizer)
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
            model = LlamaForCausalLM.from_pretrained(start, local_files_only=True, attn_implementation="eager")
        model.to(device)
        for phase in plan.phases:
            _train_phase(model, tokenizer, phase, plan.seed, log, out / phase.name)
    return out / plan.phases[-1].name


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder: config, safetensors, tokenizer, chat template, generation config."""
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE of ``vocabulary`` tokens trained on ``texts``; ``<|end|>`` ends a turn and is the padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, SYSTEM, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def _model(shape: Shape, tokenizer: Any) -> Any:
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.04,
        attn_implementation="eager",  # bf16 SDPA's backward takes half of a step on a CPU
    )
    return LlamaForCausalLM(config)


def tokenized_demonstrations(
    seed: int, tokenizer_json: str, mix: TaskMix, count: int = _CHUNK, held_out: bool = False
) -> list[Example]:
    """``count`` demonstrations, tokenized by the tokenizer with this JSON."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    drawn = list(demonstrations(count, seed, mix, held_out))
    prompts = tokenizer.encode_batch([f"{USER}{each.messages[-1].content}{END}{ASSISTANT}" for each in drawn])
    completions = tokenizer.encode_batch([each.completion + END for each in drawn])
    return [
        (prompt.ids + completion.ids, len(prompt.ids), each.role)
        for each, prompt, completion in zip(drawn, prompts, completions, strict=True)
    ]


def _batches(examples: list[Example], batch_tokens: int, seed: int) -> list[list[Example]]:
    """Batches of examples of similar length, at most ``batch_tokens`` with padding, in random order."""
    batches: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda each: len(each[0])):
        if (len(batches[-1]) + 1) * len(example[0]) > batch_tokens:
            batches.append([])
        batches[-1].append(example)
    random.Random(seed).shuffle(batches)
    return batches


def _train_phase(model: Any, tokenizer: Any, phase: Phase, seed: int, log: Any, folder: Path) -> None:
    tokenizer_json, pad = tokenizer.backend_tokenizer.to_str(), tokenizer.pad_token_id
    eval_set = tokenized_demonstrations(derive(seed, "exam"), tokenizer_json, EVAL_MIX, _EVAL_DEMONSTRATIONS, True)
    phase_seed = derive(seed, phase.name)
    batches = (
        batch
        for number in itertools.count()
        for batch in _batches(
            tokenized_demonstrations(derive(phase_seed, number), tokenizer_json, phase.task_mix),
            phase.batch_tokens,
            derive(phase_seed, "order", number),
        )
    )
    # Muon for the matrices of the layers, AdamW for embeddings and norms.
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=phase.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    forward = torch.compile(model, dynamic=True)
    started, tokens = time.monotonic(), 0
    for step, batch in zip(range(1, phase.steps + 1), batches, strict=False):
        ids, weights = _tensors(batch, pad, phase.prompt_weight, model.device)
        loss = _loss(forward, ids, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = _learning_rate(phase, step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        if step % max(1, phase.steps // 20) == 0 or step == phase.steps:
            save(model, tokenizer, folder)
            progress = {"phase": phase.name, "step": step, "tokens": tokens, "loss": round(loss.item(), 4)}
            accuracies = _evaluate(model, eval_set, pad)
            _log(log, {**progress, **accuracies, "seconds": round(time.monotonic() - started)})


def _loss(forward: Any, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The weighted mean cross entropy of the next tokens."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = forward(input_ids=ids, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weights = weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def _tensors(batch: list[Example], pad: int, prompt_weight: float, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, L) and their loss weights (B, L), 0 on padding."""
    length = max(len(tokens) for tokens, _, _ in batch)
    ids = torch.full((len(batch), length), pad)
    weights = torch.zeros(len(batch), length)
    for row, (tokens, prompt_tokens, _) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, :prompt_tokens] = prompt_weight
        weights[row, prompt_tokens : len(tokens)] = 1.0
    return ids.to(device), weights.to(device)


def _learning_rate(phase: Phase, step: int) -> float:
    if step < phase.warmup:
        return phase.learning_rate * step / phase.warmup
    done = (step - phase.warmup) / max(1, phase.horizon - phase.warmup)
    return phase.learning_rate * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def _evaluate(model: Any, eval_set: list[Example], pad: int) -> dict[str, float]:
    """By role, the share of held-out right demonstrations that greedy decoding reproduces exactly."""
    exact: dict[str, list[bool]] = {}
    for batch in _batches(eval_set, 8_192, 0):
        ids, weights = _tensors(batch, pad, 0.0, model.device)
        with torch.autocast(ids.device.type, torch.bfloat16):
            best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        matches = ((best == ids[:, 1:]) | (weights[:, 1:] == 0)).all(1).tolist()
        for (_, _, role), match in zip(batch, matches, strict=True):
            exact.setdefault(role, []).append(match)
    return {role: round(sum(matches) / len(matches), 4) for role, matches in sorted(exact.items())}


def _log(log: Any, entry: dict[str, Any]) -> None:
    print(json.dumps(entry), flush=True)
    log.write(json.dumps(entry) + "\n")
    log.flush()
