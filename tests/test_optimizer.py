"""How fast logits learn: the default at any width, published systems with ``parameter_groups``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperconn import HyperConnection, HyperConnectionConfig, HyperConnectionHead, manifolds, parameter_groups

LR = 1e-3
PUBLISHED = ("mhc", "kromhc", "hc", "shc", "jpmhc", "deepseek-v4")


def steps_of_logits(config: HyperConnectionConfig, dim: int, grouped: bool, steps: int) -> list[float]:
    """How far each step of Adam moves what the layer predicts for one token, in learning rates."""
    torch.manual_seed(0)
    layer = HyperConnection(None, dim, config)
    x, cotangent = torch.randn(4, dim), torch.randn(4, dim)
    own = parameter_groups(layer, lr=LR) if grouped else layer.parameters()
    optimizer = torch.optim.Adam(own, lr=LR)

    @torch.no_grad()
    def predicted() -> Tensor:
        parameters = {**layer.predictor_parameters()}
        if "base" in parameters:
            parameters["base"] = torch.zeros_like(parameters["base"])
        predictor, layout = layer.spec.predictor, layer.spec.layout
        weights, flat = predictor.projection(parameters, layout), x.reshape(1, -1)
        raw = None if weights is None else torch.cat([flat @ weights.mT, flat.square().sum(-1, keepdim=True)], -1)
        return predictor.logits(x[None], raw, parameters, layout).clone()

    moved, before = [], predicted()
    for _ in range(steps):
        u, write = layer.read(x)
        loss = (write(functional.silu(u)) * cotangent).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved.append(float((predicted() - before).abs().max()) / LR)
        before = predicted()
    return moved


@pytest.mark.parametrize("dim", (64, 512, 4096))
def test_a_step_moves_the_logits_as_much_at_any_width(dim: int) -> None:
    moved = steps_of_logits(HyperConnectionConfig(), dim, grouped=False, steps=20)
    assert all(7 < step < 9 for step in moved), moved  # 0.8 · rate, at the start and later
    assert steps_of_logits(HyperConnectionConfig(predictor_options={"rate": 2.5}), dim, False, 1)[0] < 2.3


@pytest.mark.parametrize("preset", PUBLISHED)
def test_groups_slow_published_systems_down(preset: str) -> None:
    """Alone, a step moves the logits of wide streams much further than those of narrow ones."""
    config = HyperConnectionConfig.preset(preset)
    narrow, wide = (max(steps_of_logits(config, dim, True, 10)) for dim in (64, 2048))
    assert 2 < narrow < 30 and 2 < wide < 30, (narrow, wide)
    alone_narrow, alone_wide = (max(steps_of_logits(config, dim, False, 10)) for dim in (64, 2048))
    assert alone_wide > 5 * alone_narrow and alone_wide > wide, (alone_narrow, alone_wide, wide)


def test_groups_hold_every_parameter_once() -> None:
    torch.manual_seed(0)
    config = HyperConnectionConfig.preset("kromhc")
    branch = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    frozen, mixing = nn.Linear(8, 8), manifolds.constrain(nn.Linear(4, 4), "weight", "stiefel")
    frozen.requires_grad_(False)
    layers = [HyperConnection(branch, 8, config, layer_index=index) for index in range(2)]  # they share a branch
    model = nn.Sequential(*layers, HyperConnectionHead(8, 4), mixing, frozen)
    groups = parameter_groups(model, lr=0.5, weight_decay=0.25)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len({*held}) == len(learning) and {*held} == {*learning}
    of = {parameter: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]}
    head = model[2]
    assert of[layers[1].fn] == of[head.hc_fn] == (pytest.approx(0.5 * 10 / (32 * 0.01)), 0.25)
    assert of[layers[0].scale] == of[head.hc_scale] == (pytest.approx(0.005), 0.0)
    for vector in (layers[0].base, layers[0].norm.weight, head.hc_base, branch[0].weight, branch[1].bias):
        assert of[vector] == (0.5, 0.0)
    assert of[branch[1].weight] == (0.5, 0.25)
    assert of[mixing.parametrizations.weight.original] == (0.5, 0.0)
    assert len({*of.values()}) == len(groups)
    torch.optim.AdamW(groups).step()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ([nn.Linear(2, 2)], {"lr": 0.1}, "takes a module, got list"),
        (nn.Linear(2, 2), {"lr": -1.0}, "lr must be a finite number of at least 0, got -1.0"),
        (nn.Linear(2, 2), {"lr": 0.1, "weight_decay": float("inf")}, "weight_decay must be .*, got inf"),
    ],
)
def test_bad_arguments_of_groups(model: Any, options: dict[str, float], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        parameter_groups(model, **options)
