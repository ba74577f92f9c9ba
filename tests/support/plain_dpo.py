"""DPO with AdamW in plain torch: an oracle for the trainer, written from the papers and from docs/training.md.

Of the package it uses nothing but `metareward.seeds.derive`. transformers gives the model's logits, for one row at a
time, without padding; the tokenizer gives token ids. Chat text, log-probabilities, losses, order of pairs, schedule,
clipping, weight decay and optimizer are written out here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import logsigmoid, relu

from metareward.seeds import derive

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """Token ids of a prompt and of its two completions."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def read_pairs(paths: Sequence[Any], tokenizer: Any, max_length: int) -> list[Pair]:
    """The pairs of Parquet files that fit, in the chat format of `training_world.TEMPLATE`."""

    def encode(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    pairs = []
    for row in (row for path in paths for row in pq.read_table(path).to_pylist()):
        prompt = "".join(f"<|{turn['role']}|>{turn['content']}" for turn in row["prompt"]) + "<|assistant|>"
        sides = (encode(row[side][0]["content"] + "</s>") for side in ("chosen", "rejected"))
        pairs.append(Pair(encode(prompt), *sides))
    return [pair for pair in pairs if pair.length <= max_length]


@dataclass(frozen=True)
class Sums:
    """Of a micro-batch of P pairs, all (P): log-probabilities of policy and reference, tokens, and the chosen's NLL."""

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    nll: Tensor

    @property
    def log_ratios(self) -> tuple[Tensor, Tensor]:
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected


def _exo(h: Tensor, eps: float) -> Tensor:
    q = h.sigmoid()
    return q * (q.log() - math.log(1 - eps)) + (1 - q) * ((1 - q).log() - math.log(eps))


def _smoothed(h: Tensor, eps: float) -> Tensor:
    return -(1 - eps) * logsigmoid(h) - eps * logsigmoid(-h)


def loss_of(name: str, s: Sums, beta: float, eps: float) -> Tensor:
    """TRL's loss of this name for each pair, written from its paper; a scalar where it is of the whole micro-batch."""
    c, r = s.log_ratios
    h = beta * (c - r)  # of DPO (arXiv 2305.18290 equation 7)
    per_token = c / s.chosen_tokens - r / s.rejected_tokens
    sorted_pairs = beta * (
        (s.chosen - s.rejected).sort().values - (s.reference_chosen - s.reference_rejected).sort().values
    )
    gate = (h / 0.05).sigmoid()
    formulas: dict[str, Callable[[], Tensor]] = {
        "sigmoid": lambda: -logsigmoid(h),
        "hinge": lambda: relu(1 - h),
        "ipo": lambda: (per_token - 1 / (2 * beta)) ** 2,
        "exo_pair": lambda: _exo(h, eps),
        "nca_pair": lambda: -logsigmoid(beta * c) - (logsigmoid(-beta * c) + logsigmoid(-beta * r)) / 2,
        "robust": lambda: (-(1 - eps) * logsigmoid(h) + eps * logsigmoid(-h)) / (1 - 2 * eps),
        "bco_pair": lambda: -logsigmoid(beta * c) - logsigmoid(-beta * r),
        "sppo_hard": lambda: (c - 1 / (2 * beta)) ** 2 + (r + 1 / (2 * beta)) ** 2,
        "aot": lambda: _smoothed(sorted_pairs, eps),
        "aot_unpaired": lambda: _smoothed(beta * (c.sort().values - r.sort().values), eps),
        "apo_zero": lambda: 1 - (beta * c).sigmoid() + (beta * r).sigmoid(),
        "apo_down": lambda: (beta * c).sigmoid() + 1 - h.sigmoid(),
        "discopop": lambda: -logsigmoid(h) * (1 - gate) + (-h).exp() * gate,
        "sft": lambda: s.nll.sum() / s.chosen_tokens.sum(),
        "sigmoid_norm": lambda: -logsigmoid(beta * per_token),
    }
    return formulas[name]()


def learning_rate(settings: Any, step: int, steps: int) -> float:
    """The rate of a ``step`` counted from 0: from 0 up to the peak, then down to ``min_lr``."""
    warmup = min(math.ceil(steps * settings.warmup_ratio), steps - 1)
    peak, low = settings.learning_rate, settings.min_lr
    if step < warmup:
        return float(peak * step / warmup)
    done = (step - warmup) / (steps - warmup)
    left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return float(low + (peak - low) * left[settings.lr_scheduler_type])


class PlainDpo:
    """One DPO run on ``model``; ``adapter`` holds the initial matrices of LoRA, by the name of the adapted weight."""

    def __init__(
        self, job: Any, model: Any, reference: Any, tokenizer: Any, adapter: Mapping[str, tuple[Tensor, Tensor]] | None
    ) -> None:
        self._settings, self._seed = job.settings, job.seed
        self._model, self._reference = model.eval(), reference.eval()
        self._pairs = read_pairs(job.data, tokenizer, job.settings.max_length)
        self._base: Weights = {name: each.detach().clone() for name, each in model.named_parameters()}
        self.weights: Weights = dict(self._base)
        if adapter is not None:
            self.weights = {
                f"{name}.{side}": m for name, both in adapter.items() for side, m in zip("AB", both, strict=True)
            }
        for name, each in self.weights.items():
            self.weights[name] = each.detach().clone().requires_grad_()
        self._adapted = tuple(adapter or ())
        self._moments = {name: (torch.zeros_like(each), torch.zeros_like(each)) for name, each in self.weights.items()}

    def train(self) -> Iterator[dict[str, Tensor]]:
        """Make the steps one by one; yields the gradients of each, before they are clipped."""
        settings, count = self._settings, len(self._pairs)
        steps = math.ceil(count / settings.batch_size) * settings.num_train_epochs
        step = 0
        for epoch in range(settings.stop_after_epoch or settings.num_train_epochs):
            generator = torch.Generator().manual_seed(derive(self._seed, "order", epoch))
            order = [self._pairs[index] for index in torch.randperm(count, generator=generator).tolist()]
            for first in range(0, count, settings.batch_size):
                batch = sorted(order[first : first + settings.batch_size], key=lambda pair: -pair.length)
                for start in range(0, len(batch), settings.per_device_train_batch_size):
                    micro = batch[start : start + settings.per_device_train_batch_size]
                    # The mean over the pairs of the step, however they are spread over micro-batches.
                    torch.autograd.backward(self._loss(micro) * len(micro) / len(batch))
                gradients = {name: each.grad.clone() for name, each in self.weights.items() if each.grad is not None}
                self._update(gradients, learning_rate(settings, step, steps), step + 1)
                step += 1
                yield gradients

    def _loss(self, pairs: list[Pair]) -> Tensor:
        s = self._sums(pairs)
        names = self._settings.loss_type
        weights = self._settings.loss_weights or [1.0] * len(names)
        losses = [loss_of(name, s, self._settings.beta, self._settings.label_smoothing).mean() for name in names]
        return torch.stack([loss * weight for loss, weight in zip(losses, weights, strict=True)]).sum()

    def _sums(self, pairs: list[Pair]) -> Sums:
        ours, columns = self._effective(), list[list[Tensor]]()
        for pair in pairs:
            shorter, sides = min(len(pair.chosen), len(pair.rejected)), []
            for completion in (pair.chosen, pair.rejected):
                # LD-DPO (arXiv 2409.06411): what is past the shorter side's length counts less.
                alpha = 1.0 if self._settings.ld_alpha is None else self._settings.ld_alpha
                counted = torch.tensor([1.0] * shorter + [alpha] * (len(completion) - shorter))
                policy = log_probs(self._model, ours, pair.prompt, completion)
                with torch.no_grad():
                    reference = log_probs(self._reference, {}, pair.prompt, completion)
                sides.append(
                    (counted @ policy, counted @ reference, -policy.sum(), torch.tensor(float(len(completion))))
                )
            columns.append([each for both in zip(*sides, strict=True) for each in both])
        chosen, rejected, *references, nll, _, c, r = (torch.stack(column) for column in zip(*columns, strict=True))
        return Sums(chosen, rejected, references[0], references[1], c, r, nll)

    def _effective(self) -> Weights:
        """The model's weights; with LoRA those of the base plus alpha / r B A (arXiv 2106.09685 section 4.1)."""
        if not self._adapted:
            return self.weights
        scale = self._settings.lora.lora_alpha / self._settings.lora.r
        changes = {name: scale * self.weights[f"{name}.B"] @ self.weights[f"{name}.A"] for name in self._adapted}
        return {name: each + changes[name] if name in changes else each for name, each in self._base.items()}

    def _update(self, gradients: Weights, rate: float, number: int) -> None:
        """AdamW (arXiv 1711.05101 algorithm 2) on gradients clipped to a norm; only matrices decay."""
        norm = torch.cat([each.flatten() for each in gradients.values()]).norm()
        clip = min(1.0, self._settings.max_grad_norm / (float(norm) + 1e-6))
        with torch.no_grad():
            for name, gradient in gradients.items():
                weight, (mean, square) = self.weights[name], self._moments[name]
                mean.lerp_(clip * gradient, 1 - 0.9)
                square.mul_(0.999).add_((clip * gradient) ** 2, alpha=1 - 0.999)
                weight.mul_(1 - rate * self._settings.weight_decay * (weight.dim() > 1))
                weight -= rate * (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + 1e-8)
                weight.grad = None


def log_probs(model: Any, weights: Weights, prompt: list[int], completion: list[int]) -> Tensor:
    """log p of each token of ``completion``, by ``model`` with these ``weights``; (tokens)."""
    logits = functional_call(model, weights, (torch.tensor([prompt + completion]),)).logits[0, len(prompt) - 1 : -1]
    found: Tensor = logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]
    return found
