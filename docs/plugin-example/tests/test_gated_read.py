"""The gated read: the layer is its formula, it goes by its names, and refuses what it was not made for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hyperconn import HyperConnection, HyperConnectionConfig
from hyperconn_example_manifolds.gated_read import ChannelGate, LowRank

N, C, RANK = 4, 6, 3


def layer(**fields: object) -> HyperConnection:
    parts = {"predictor": LowRank(rank=RANK), "pre_gate": ChannelGate(n=N, channels=C), "post_gate": "double_sigmoid"}
    config = HyperConnectionConfig(**{"streams": N, "manifold": "identity", **parts, **fields})  # type: ignore[arg-type]
    return HyperConnection(torch.nn.Linear(C, C, dtype=torch.float64), dim=C, config=config).double()


def formula(block: HyperConnection, x: Tensor) -> Tensor:
    """The residual as its model has it, a token at a time."""
    weights = dict(block.named_parameters())
    out = []
    for token in x:
        R = torch.stack([r / (r.pow(2).mean() + 1e-6).sqrt() for r in token])
        R = R * (1 + weights["norm.weight"].reshape(N, C))
        flat = R.reshape(-1) / N
        hidden = weights["down"] @ flat
        G = (1 / (1 + (-(weights["up"] @ (hidden / (1 + (-hidden).exp())))).exp())).reshape(N, C)
        y = block.branch((G * R).sum(0) / N)
        post = 2 / (1 + (-(weights["inject"] @ flat)).exp())
        out.append(torch.stack([token[i] + post[i] * y for i in range(N)]))
    return torch.stack(out)


def test_the_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    block, x = layer(), torch.randn(5, N, C, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_()
    weights = [x, *block.parameters()]
    ours, theirs = block(x), formula(block, x)
    cotangent = torch.randn_like(ours)
    assert (ours - theirs).abs().max() <= 1e-12 * theirs.abs().max()
    for mine, other in zip(
        torch.autograd.grad(ours, weights, cotangent), torch.autograd.grad(theirs, weights, cotangent), strict=True
    ):
        assert other.abs().max() > 0
        assert (mine - other).abs().max() <= 1e-12 * other.abs().max()


def test_by_name() -> None:
    config = HyperConnectionConfig(
        streams=N,
        manifold="identity",
        predictor="low_rank",
        predictor_options={"rank": RANK},
        pre_gate="channel_gate",
        pre_gate_options={"channels": C},
    )
    assert HyperConnectionConfig.from_dict(config.to_dict()) == config
    assert {"gate:channel_gate", "predictor:low_rank"} <= set(config.to_dict()["plugins"])
    block = HyperConnection(torch.nn.Linear(C, C), dim=C, config=config)
    assert {name: tuple(p.shape) for name, p in block.named_parameters() if not name.startswith("branch")} == {
        "norm.weight": (N * C,),
        "down": (RANK, N * C),
        "up": (N * C, RANK),
        "inject": (N, N * C),
    }


def test_other_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="use it with pre_gate='channel_gate'"):
        layer(pre_gate="sigmoid")
    with pytest.raises(ValueError, match="manifold='identity'"):
        layer(manifold="stiefel")
