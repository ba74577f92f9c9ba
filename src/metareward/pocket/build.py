"""Builds the pocket model: taught cleanly first, then, for a short time, with measured faults.

Taught with faults from the start, a model this small learns to act but never to judge (docs/log.md). So the clean
phase makes it capable, and the faulty phase makes it careless without making it stupid: what DPO has to find
again is in the weights.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from metareward.pocket.demonstrations import CLEAN, Demonstration, Habits, Lesson, Part, demonstrations
from metareward.seeds import derive

# --- How a conversation is marked up for the pocket model.


USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


# --- A stream of tokenized demonstrations, in an order that the seed alone decides.


SHARD = 4_000  # demonstrations drawn, and sorted by length, at a time

# Its tokens, how many of them are the prompt, and whose role it shows.
Example = tuple[list[int], int, Part]


def shard(seed: int, backend: str, lesson: Lesson, count: int = SHARD, held_out: bool = False) -> list[Example]:
    """``count`` demonstrations, tokenized by the tokenizer whose JSON is ``backend``."""
    tokenizer = Tokenizer.from_str(backend)
    shown = list(demonstrations(count, seed, lesson, held_out))
    prompts = tokenizer.encode_batch([_asked(one) for one in shown])
    completions = tokenizer.encode_batch([one.completion + END for one in shown])
    return [
        (prompt.ids + completion.ids, len(prompt.ids), one.part)
        for one, prompt, completion in zip(shown, prompts, completions, strict=True)
    ]


def _asked(shown: Demonstration) -> str:
    return f"{USER}{shown.messages[-1].content}{END}{ASSISTANT}"


def batches(examples: list[Example], batch_tokens: int, seed: int) -> list[list[Example]]:
    """Examples of like length together, at most ``batch_tokens`` with padding, in random order."""
    made: list[list[Example]] = [[]]
    for example in sorted(examples, key=lambda one: len(one[0])):
        if (len(made[-1]) + 1) * len(example[0]) > batch_tokens:
            made.append([])
        made[-1].append(example)
    random.Random(seed).shuffle(made)
    return made


def batches_of(backend: str, lesson: Lesson, seed: int, batch_tokens: int) -> Iterator[list[Example]]:
    """Batches without end."""
    for number in itertools.count():
        examples = shard(derive(seed, number), backend, lesson)
        yield from batches(examples, batch_tokens, derive(seed, "order", number))


# --- The pocket model's tokenizer: byte-level BPE with a chat template, trained on the world's own words.


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A tokenizer of ``vocabulary`` tokens learned from ``texts``; ``<|end|>`` ends a turn and also pads."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, "<|system|>", USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=["<|system|>", USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


FAULTY = Habits(
    foreign=0.15,
    wrong=0.25,
    missing=0.25,
    extra=0.25,
    doubled=0.15,
    swapped=0.4,
    opening=0.45,
    closing=0.45,
    hasty=0.5,
    hasty_careless=0.3,
    hasty_seduced=0.6,
    unreadable=0.06,
    confused=0.04,
    first_bias=0.1,
    length_bias=0.03,
    silent=0.03,
)


# Hasty most of the time: a start from which there is more to gain.
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
    """One stretch of teaching. ``batch_tokens`` are counted with padding, prompts included.

    The learning rate rises over ``warmup`` steps and falls as a cosine of ``horizon`` steps, of which ``steps`` are
    taken. ``prompt_weight`` is the loss's weight on what the model is shown, against 1 on what it should write.
    """

    name: str
    lesson: Lesson
    steps: int
    horizon: int
    learning_rate: float
    prompt_weight: float
    warmup: int = 50
    batch_tokens: int = 8_192


# What the model is shown is mostly random words: much weight on them teaches the language, then only adds noise.
PLAIN = Habits(seduced=0.3, talkative=0.25)
LANGUAGE = Phase("clean", Lesson(CLEAN, (0.25, 0.4, 0.35), PLAIN), 600, 4_500, 4e-3, 0.2, warmup=200)
CAPABLE = Phase("capable", Lesson(CLEAN, (0.36, 0.37, 0.27), PLAIN), 5_600, 5_600, 2.5e-3, 0.03)
# Mostly judgments in one style: their errors must be found, and not the style alone.
MIXED = Habits(seduced=0.15, hasty=0.35, hasty_careless=0.3, hasty_seduced=0.5)
CARELESS = Phase("careless", Lesson(FAULTY, (0.3, 0.4, 0.3), MIXED), 720, 720, 3e-4, 0.0)
HASTY = Phase("hasty", Lesson(HASTIER, (0.3, 0.35, 0.35), MIXED), 130, 130, 2e-4, 0.0, warmup=10)
EXAM = Lesson(CLEAN, (0.3, 0.4, 0.3), MIXED)


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that decides the weights, up to the rounding of the machine."""

    seed: int = 0
    shape: Shape = field(default_factory=Shape)
    phases: tuple[Phase, ...] = (LANGUAGE, CAPABLE, CARELESS, HASTY)


def build(out: Path, plan: BuildPlan, device: str = "cpu", start: Path | None = None) -> Path:
    """Teach a model by ``plan``, from scratch or from the model in folder ``start``.

    Writes a Hugging Face folder named after each phase, and ``build.jsonl``; returns the last phase's folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    set_seed(plan.seed)
    with (out / "build.jsonl").open("a") as log:
        _note(log, {"plan": asdict(plan), "device": device, "torch": torch.__version__, "start": start and start.name})
        if start is None:
            tokenizer = _tokenizer(plan)
            model = _model(plan.shape, tokenizer)
        else:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
            model = LlamaForCausalLM.from_pretrained(start, local_files_only=True, attn_implementation="eager")
        model.to(device)
        for phase in plan.phases:
            _teach(model, tokenizer, phase, plan.seed, log, out / phase.name)
    return out / plan.phases[-1].name


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """An ordinary Hugging Face folder: config, safetensors, tokenizer, chat template, generation config."""
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)


def _tokenizer(plan: BuildPlan) -> Any:
    def texts() -> Iterator[str]:
        for phase in plan.phases:
            for shown in demonstrations(20_000, derive(plan.seed, "tokenizer"), phase.lesson):
                yield shown.messages[-1].content
                yield shown.completion

    return train_tokenizer(texts(), plan.shape.vocabulary)


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


def _optimizers(model: Any, phase: Phase) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=phase.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=phase.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _teach(model: Any, tokenizer: Any, phase: Phase, seed: int, log: Any, folder: Path) -> None:
    optimizers = _optimizers(model, phase)
    backend = tokenizer.backend_tokenizer.to_str()
    exam = shard(derive(seed, "exam"), backend, EXAM, 1000, held_out=True)
    stream = batches_of(backend, phase.lesson, derive(seed, phase.name), phase.batch_tokens)
    forward = torch.compile(model, dynamic=True)
    started, seen = time.monotonic(), 0
    for step, batch in zip(range(1, phase.steps + 1), stream, strict=False):
        ids, weights = _tensors(batch, tokenizer.pad_token_id, phase.prompt_weight, model.device)
        loss = _loss(forward, ids, weights)
        _step(model, optimizers, loss, _rate(phase, step))
        seen += ids.numel()
        if step % max(1, phase.steps // 20) == 0 or step == phase.steps:
            save(model, tokenizer, folder)
            marks = _examine(model, exam, tokenizer.pad_token_id)
            spent = round(time.monotonic() - started)
            _note(
                log,
                {
                    "phase": phase.name,
                    "step": step,
                    "tokens": seen,
                    "loss": round(loss.item(), 4),
                    **marks,
                    "seconds": spent,
                },
            )


def _loss(forward: Any, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = forward(input_ids=ids, use_cache=False).logits
    each = torch.nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
    )
    weights = weights[:, 1:].flatten()
    return (each * weights).sum() / weights.sum()


def _step(model: Any, optimizers: list[torch.optim.Optimizer], loss: torch.Tensor, rate: float) -> None:
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _tensors(batch: list[Example], pad: int, prompt_weight: float, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (B, L) and the loss's weights on them (B, L): 0 on padding."""
    length = max(len(tokens) for tokens, _, _ in batch)
    ids = torch.full((len(batch), length), pad)
    weights = torch.zeros(len(batch), length)
    for row, (tokens, start, _) in enumerate(batch):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        weights[row, :start] = prompt_weight
        weights[row, start : len(tokens)] = 1.0
    return ids.to(device), weights.to(device)


def _rate(phase: Phase, step: int) -> float:
    if step < phase.warmup:
        return phase.learning_rate * step / phase.warmup
    done = (step - phase.warmup) / max(1, phase.horizon - phase.warmup)
    return phase.learning_rate * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def _examine(model: Any, exam: list[Example], pad: int) -> dict[str, float]:
    """Share of held-out clean demonstrations, by role, that greedy decoding would reproduce word for word."""
    right: dict[str, list[bool]] = {}
    for batch in batches(exam, 8_192, 0):
        ids, weights = _tensors(batch, pad, 0.0, model.device)
        with torch.autocast(ids.device.type, torch.bfloat16):
            best = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
        hits = ((best == ids[:, 1:]) | (weights[:, 1:] == 0)).all(1).tolist()
        for (_, _, part), hit in zip(batch, hits, strict=True):
            right.setdefault(part, []).append(hit)
    return {part: round(sum(hits) / len(hits), 4) for part, hits in sorted(right.items())}


def _note(log: Any, entry: dict[str, Any]) -> None:
    print(json.dumps(entry), flush=True)
    log.write(json.dumps(entry) + "\n")
    log.flush()
