"""Packed linear layers multiply as the plain ones do, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from metareward.engines.packed import PackedLinear, pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 48), (3, 7, 48), (300, 48)])
@torch.inference_mode()
def test_the_same_product(dtype: torch.dtype, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    plain = nn.Linear(48, 80, bias=bias, dtype=dtype)
    inputs = torch.randn(shape, dtype=dtype)
    exact = nn.functional.linear(inputs.double(), plain.weight.double(), plain.bias.double() if bias else None)
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    packed = PackedLinear(plain)(inputs)
    assert packed.shape == exact.shape and packed.dtype == dtype
    torch.testing.assert_close(packed.double(), exact, rtol=rounding, atol=rounding)


class Odd(nn.Linear):
    """A linear layer that does more."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


@torch.inference_mode()
def test_only_plain_linear_layers_are_replaced() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Odd(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    inputs = torch.randn(5, 4)
    before = model(inputs)
    pack(model)
    kinds = [type(module) for module in model.modules() if not isinstance(module, nn.Sequential)]
    assert kinds == [PackedLinear, Odd, nn.ReLU, PackedLinear]
    torch.testing.assert_close(model(inputs), before)
