"""Parameter counts and starts of the presets, as published."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperconn import (
    HyperConnection,
    HyperConnectionConfig,
)
from preset_systems import LAYERS, SYSTEMS, C, every_size

# ------------------------------------------------------------------------------------------- counts


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


WEIGHTED = {"predictor_options": {"norm_weight": "weight"}}


@pytest.mark.parametrize(
    ("preset", "overrides", "dim", "sublayers", "published"),
    [
        # OLMo-1B of the HC paper: 32 sublayers of width 2048
        ("hc", {}, 2048, 32, 394_048),
        ("hc", {"predictor": "static"}, 2048, 32, 768),
        # Frac-Connections: the same, in four fractions of 512
        ("fc", {}, 2048, 32, 165_056),
        ("fc", {"predictor": "static"}, 2048, 32, 1_152),
        # JPmHC: n·C = 2048
        ("jpmhc", {}, 512, 1, 102_400),
        # The table of the KromHC paper: 24 sublayers of width 768; all its models keep a weight in the norm
        ("mhc", WEIGHTED, 768, 24, 1_843_848),
        ("mhc-lite", {}, 768, 24, 2_433_864),
        ("kromhc", {}, 768, 24, 958_824),
    ],
)
def test_published_parameter_counts(
    preset: str, overrides: dict[str, Any], dim: int, sublayers: int, published: int
) -> None:
    config = HyperConnectionConfig.preset(preset, streams=4, **overrides)
    assert sublayers * count(HyperConnection(None, dim=dim, config=config)) == published


@pytest.mark.parametrize("n", (2, 3, 4, 5))
def test_flat_parameter_counts(n: int) -> None:
    """``nC·P + P + groups``."""
    for preset, groups in (("mhc", (n, n, n * n)), ("ihc", (n, n)), ("deepseek-v4", (n, n, n * n))):
        block = HyperConnection(None, C, HyperConnectionConfig.preset(preset, streams=n))
        total = sum(groups)
        assert block.fn.shape == (total, n * C) and block.scale.shape == (len(groups),)
        assert count(block) == n * C * total + total + len(groups)


# ------------------------------------------------------------------------------------------- published starts


def one_hot(index: int, n: int) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index % n), n).float()


def residual_of_the_released_code(preset: str, n: int) -> Tensor:
    """0 at the identity and −8 elsewhere, for every permutation mixture and for mHC's matrix; s = 4 on the sphere."""
    if preset == "mhc":
        return -8.0 * (1 - torch.eye(n).reshape(-1))
    if preset == "shc":
        return torch.cat([torch.zeros((n - 1) * (n - 2)), torch.full((n - 1,), 4.0)])
    sizes = {2: [2], 3: [6], 4: [2, 2]}[n] if preset == "kromhc" else [math.factorial(n)]
    return torch.cat([torch.tensor([0.0] + [-8.0] * (size - 1)) for size in sizes])


@pytest.mark.parametrize("preset", ["mhc", "mhc-lite", "kromhc", "shc"])
@every_size
@pytest.mark.parametrize("layer_index", LAYERS)
def test_start_of_the_released_code(preset: str, n: int, layer_index: int) -> None:
    """+1 at stream ``layer_index mod n`` and −1 elsewhere, for both gates; nothing dynamic yet."""
    block = SYSTEMS[preset].block(n, layer_index)
    gate = 2 * one_hot(layer_index, n) - 1
    assert torch.equal(block.base, torch.cat([gate, gate, residual_of_the_released_code(preset, n)]))
    assert not block.fn.any() and torch.equal(block.scale, torch.full_like(block.scale, 0.01))
    if preset == "shc":
        *_, H = block.coefficients(torch.randn(n, C))
        target = math.tanh(4.0) * torch.eye(n) + (1 - math.tanh(4.0)) / n
        assert (H - target).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["hc", "hc-static", "fc", "fc-static"])
@every_size
@pytest.mark.parametrize("layer_index", LAYERS)
def test_start_of_the_papers_of_hc(name: str, n: int, layer_index: int) -> None:
    """Read one stream, or each fraction where it lies; write 1; keep everything."""
    block = SYSTEMS[name].block(n, layer_index)
    read = torch.eye(n).flatten() if name.startswith("fc") else one_hot(layer_index, n)
    assert torch.equal(block.base, torch.cat([read, torch.ones(n), torch.eye(n).flatten()]))
    if "static" not in name:
        assert not block.fn.any() and torch.equal(block.scale, torch.full((2,), 0.01))


@every_size
def test_jpmhc_starts_at_random(n: int) -> None:
    """Without a bias, streams that start alike would stay alike: the prediction weights break the symmetry."""
    torch.manual_seed(1)
    block = SYSTEMS["jpmhc"].block(n)
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "fn": (3 * n * n, n * C),
        "norm.weight": (n * C,),
        "norm.bias": (n * C,),
    }
    assert 0.015 < float(block.fn.detach().std()) < 0.025
    coefficients = block.coefficients(torch.randn(5, n, C))
    near = (torch.full((5, n), 1 / n), torch.ones(5, n), torch.eye(n).expand(5, n, n))
    for part, plain in zip(coefficients, near, strict=True):
        assert 0 < float((part - plain).detach().abs().max()) < 0.6
