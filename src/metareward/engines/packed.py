"""Linear layers whose weights are laid out once, as the CPU's kernels want them.

For a product of some tens of rows PyTorch's `linear` spends about as long on laying the weights out, call after call,
as on multiplying, above all in bfloat16. oneDNN takes weights that were laid out before.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Products of other sizes work as well; the layout suits those of about so many rows best.
_ROWS = 96


class PackedLinear(nn.Module):
    """What ``linear`` does, for inference on a CPU."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self._bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weight, self._bias, "none", [], "")
        return outputs


def pack(model: Any) -> None:
    """Put a packed layer into the place of every linear one of a model that is on a CPU, where oneDNN is there."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    for module in list(model.modules()):
        for name, child in module.named_children():
            # Kinds derived from it may do more than multiply.
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
