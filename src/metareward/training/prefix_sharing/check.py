"""Whether packed rows give a model's figures: log-probabilities and, of a model to be trained, gradients.

How far rounding takes equal computations apart depends on model, number format and kernels. So it is measured: each
row alone, without padding, is compared with the padded batch, and packed rows may differ from the batch a few times as
much. In float32, where rows alone may give the same bits, so is the batch with its input embeddings perturbed by one
unit of rounding; in bfloat16 that would be more than rounding. Distances are root mean squares over all tokens, because
single values can be rounded to either neighbour. With random models of two to eight layers packed rows were at most as
far from the batch as rows alone; with the positions of some rows off by one, 3 times (bfloat16, initialized, not
trained) to 1,000,000 times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metareward.training.prefix_sharing.forward import IGNORE_INDEX, PrefixSharing
from metareward.training.prefix_sharing.packing import pack

Rows = Mapping[str, Tensor]  # input_ids, attention_mask, labels: (R, L), padded on the right
_FACTOR = 3.0  # packed rows may be so many times as far from the batch as rows alone or perturbed embeddings
# The least and the most that is allowed of log-probabilities and of gradients, relative to them: a model whose figures
# depend on padding has no measure of rounding. A confident model's log-probabilities are near 0 but are differences of
# logits, which aren't; so they count as one nat at least.
_BOUNDS = {
    torch.float32: ((1e-6, 1e-3), (1e-6, 1e-3)),
    torch.bfloat16: ((4e-4, 0.05), (4e-4, 0.2)),
}
_MESSAGE_CHARS = 200


@dataclass(frozen=True, slots=True)
class Figures:
    """What a model gives for R rows of L tokens.

    ``log_probs`` (R, L - 1) are in nats, 0 outside completions. ``gradient`` (R, L, H) is that of a sum which weighs
    every row differently, with respect to the input embeddings; (1, T, H) of a packed row; None if it isn't checked.
    """

    log_probs: Tensor
    gradient: Tensor | None


class PackingCheck:
    """The same rows through one model as a padded batch, each alone, and packed.

    ``model`` is what training calls, ``sharing`` hooks the model inside it. ``dtype`` is the format of the computation
    in ``autocast``.
    """

    def __init__(
        self,
        sharing: PrefixSharing,
        model: Any,
        rows: Rows,
        with_gradient: bool,
        dtype: torch.dtype = torch.float32,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._sharing, self._model, self._rows, self._with_gradient = sharing, model, rows, with_gradient
        self._dtype, self._autocast = dtype, autocast
        self._lengths = rows["attention_mask"].sum(dim=1)

    def try_packed(self, flex: bool) -> tuple[float, str]:
        """Pack rows from now on, with FlexAttention or without, and compare them with the batch.

        Returns how many times the allowed distance they are apart (infinity after an error; up to 1 is rounding), and
        what is wrong above 1. Any error counts: a model's own code runs here, and unpacked rows are always right.
        """
        try:
            limits = self._limits
            self._sharing.packed, self._sharing.flex = True, flex
            packed = self._run(self._rows, self._weights)
            found = self._distances(
                packed.log_probs, packed.gradient if packed.gradient is None else packed.gradient[0]
            )
        except Exception as error:
            return math.inf, " ".join(str(error).split())[:_MESSAGE_CHARS] or type(error).__name__
        times = [distance / limit for distance, limit in zip(found, limits, strict=True)]
        what = f"packed rows differ by {found[0]:.2g} nats a token"
        if times[0] <= 1.0:
            what = f"gradients of packed rows differ by {found[-1]:.2g}, rounding explains {limits[-1]:.2g}"
        return max(times), what

    @cached_property
    def _weights(self) -> Tensor:
        return 0.7 * torch.arange(1.0, len(self._lengths) + 1, device=self._lengths.device)

    @cached_property
    def _batch(self) -> Figures:
        self._sharing.packed = False
        return self._run(self._rows, self._weights)

    @cached_property
    def _perturbed(self) -> Figures:
        """The batch's figures with all input embeddings perturbed by a unit of rounding in float32, up and down."""
        self._sharing.packed = False
        return self._run(self._rows, self._weights, torch.finfo(torch.float32).eps)

    @cached_property
    def _limits(self) -> tuple[float, ...]:
        """The allowed distances of log-probabilities and of gradients."""
        log_probs, gradient = torch.zeros_like(self._batch.log_probs), None
        if self._batch.gradient is not None:
            gradient = torch.zeros_like(self._batch.gradient)
        for row, length in enumerate(self._lengths.tolist()):
            one = {name: each[row : row + 1, :length] for name, each in self._rows.items()}
            weight = self._weights[row]
            alone = self._run(one, torch.ones_like(weight)[None])  # weighted afterwards: rounded at other places
            log_probs[row, : length - 1] = alone.log_probs[0]
            if gradient is not None and alone.gradient is not None:
                gradient[row, :length] = weight * alone.gradient[0]
        apart = self._distances(log_probs, None if gradient is None else self._merged(gradient))
        if self._dtype == torch.float32:
            perturbed = self._perturbed.gradient
            merged = None if perturbed is None else self._merged(perturbed)
            found = self._distances(self._perturbed.log_probs, merged)
            apart = tuple(map(max, apart, found))
        sizes = self._distances(torch.zeros_like(log_probs), None if gradient is None else self._merged(gradient) * 0)
        sizes = (max(1.0, sizes[0]), *sizes[1:])
        bounded = zip(apart, sizes, _BOUNDS[self._dtype], strict=False)  # without gradient only the first
        return tuple(
            max(1e-30, least * size, min(_FACTOR * each, most * size)) for each, size, (least, most) in bounded
        )

    def _distances(self, log_probs: Tensor, gradient: Tensor | None) -> tuple[float, ...]:
        """Of these figures from the batch's; the ``gradient`` is laid out as the packed row (T, H)."""
        counted = self._rows["labels"][:, 1:] != IGNORE_INDEX
        differences = [(log_probs - self._batch.log_probs)[counted]]
        if gradient is not None and self._batch.gradient is not None:
            differences.append(gradient - self._merged(self._batch.gradient))
        return tuple(float(each.double().square().mean().sqrt()) for each in differences)

    def _merged(self, gradient: Tensor) -> Tensor:
        """(R, L, H) as (T, H): summed over the rows that share a column of the packed row."""
        row, real = pack(self._rows["input_ids"], self._lengths), self._rows["attention_mask"].bool()
        merged = gradient.new_zeros(row.input_ids.shape[1], gradient.shape[2])
        return merged.index_add(0, row.columns[real], gradient[real])

    def _run(self, rows: Rows, weights: Tensor, perturbation: float = 0.0) -> Figures:
        embedded: list[Tensor] = []

        def cut(_: Any, __: Any, output: Tensor) -> Tensor:
            signs = 1 - 2 * (torch.arange(output.shape[-1], device=output.device) % 2)
            factor = (1 + perturbation * signs).to(output.dtype) if perturbation else 1
            embedded.append((output.detach() * factor).requires_grad_(self._with_gradient))
            return embedded[-1]

        embeddings = self._sharing.model.get_input_embeddings()
        handle = embeddings.register_forward_hook(cut) if self._with_gradient or perturbation else None
        try:
            with torch.set_grad_enabled(self._with_gradient), self._autocast():
                log_probs = self._model(**rows, use_cache=False, fused_lm_head=True).log_probs
        finally:
            if handle is not None:
                handle.remove()
        if not self._with_gradient:
            return Figures(log_probs.float(), None)
        (gradient,) = torch.autograd.grad((log_probs.sum(dim=1) * weights).sum(), embedded[0])
        return Figures(log_probs.detach().float(), gradient.float())
