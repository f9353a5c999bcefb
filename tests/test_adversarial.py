"""A NaN stays in its token through whole layers; of coordinates at the edges speaks the law ``extremes``."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fused_cases import DEVICE, EXACT, EXACT_DTYPE
from hyperconn import HyperConnectionStack
from layer_cases import DIM, PRESETS, Branch, make_block, run

# ------------------------------------------------------------------------------------------------- a NaN token

BACKENDS = ("torch", "triton")
# Triton's interpreter computes with numpy, which warns of what these tests are about.
numpy_warns = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def around(block: torch.nn.Module, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the streams."""
    leaf = x.clone().requires_grad_()
    out = run(block, leaf)
    (gradient,) = torch.autograd.grad(out, leaf, cotangent)
    return out.detach(), gradient


@numpy_warns
@pytest.mark.parametrize(
    ("preset", "backend", "value"),
    [
        *((preset, "torch", value) for preset in PRESETS for value in (math.nan, math.inf, -math.inf)),
        *((preset, "triton", math.nan) for preset in PRESETS if preset != "fc"),  # fractions run on torch only
    ],
)
def test_a_bad_token_contaminates_only_itself(preset: str, backend: str, value: float) -> None:
    block = make_block(preset, backend=backend).to(DEVICE, EXACT_DTYPE)
    check_isolation(block, block.config.streams, block.stream_dim, value)


@numpy_warns
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_token_in_a_stack(backend: str) -> None:
    """Streams are handed over from layer to layer, and the products with the next layer's weights with them."""
    blocks = [make_block("kromhc", backend=backend, branch=Branch()) for _ in range(3)]
    check_isolation(HyperConnectionStack(blocks).to(DEVICE, EXACT_DTYPE), 4, DIM, math.nan)


def check_isolation(block: torch.nn.Module, n: int, channels: int, value: float) -> None:
    tokens, bad = 7, 3
    others = [token for token in range(tokens) if token != bad]
    clean = torch.randn(tokens, n, channels, dtype=EXACT_DTYPE, device=DEVICE)
    dirty = clean.clone()
    dirty[bad, n - 1, 2 % channels] = value
    cotangent = torch.randn_like(clean)
    (out, gradient), (dirty_out, dirty_gradient) = around(block, clean, cotangent), around(block, dirty, cotangent)
    assert not dirty_out[bad].isfinite().all(), "a NaN is passed on"
    for here, there in ((out, dirty_out), (gradient, dirty_gradient)):
        assert here.isfinite().all() and here.abs().max() > 0
        assert (here - there)[others].abs().max() <= EXACT * here.abs().max()


def test_the_check_can_fail() -> None:
    class Mixed(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.0 * x.sum(0)

    with pytest.raises(AssertionError):
        check_isolation(Mixed(), 4, DIM, math.nan)
