"""The published systems: how each is configured, and the naive account of its formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig
from hyperconn.testing import formulas

C = 12  # divisible by every n below, so that fractions work too
LAYERS = (0, 1, 6)


class Branch(nn.Module):
    """A random nonlinear branch of the last dimension, the same for a token and for a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(7, C, dtype=torch.float64))
        self.w2 = nn.Parameter(torch.randn(C, 7, dtype=torch.float64))

    def forward(self, u: Tensor) -> Tensor:
        return torch.tanh(u @ self.w1.T) @ self.w2.T


Formula = Callable[[HyperConnection, Tensor, Any], formulas.Sublayer]


@dataclass(frozen=True)
class System:
    """A preset with overrides, and its transcription."""

    preset: str
    formula: Formula
    overrides: dict[str, Any] = field(default_factory=dict)

    def block(self, n: int, layer_index: int = 0, branch: nn.Module | None = None) -> HyperConnection:
        config = HyperConnectionConfig.preset(self.preset, streams=n, **self.overrides)
        return HyperConnection(branch, dim=C, config=config, layer_index=layer_index)


def flat(formula: Callable[..., formulas.Sublayer], **constants: Any) -> Formula:
    def run(block: HyperConnection, x: Tensor, branch: Any) -> formulas.Sublayer:
        weight = {"weight": block.norm.weight} if hasattr(block, "norm") else {}
        return formula(x, block.fn, block.base, block.scale, branch, eps=1e-6, **weight, **constants)

    return run


def jpmhc(block: HyperConnection, x: Tensor, branch: Any) -> formulas.Sublayer:
    return formulas.jpmhc(x, block.fn, block.norm.weight, block.norm.bias, branch, eps=1e-6)


def megatron(x: Tensor, fn: Tensor, base: Tensor, scale: Tensor, branch: Any, eps: float) -> formulas.Sublayer:
    """Megatron main: eps beside the root, no mixing here (its sweeps are a manifold's business)."""
    n = x.shape[0]
    pre, post = formulas.flat_logits(x, fn, base, scale, (n, n), eps, outside=True)
    H = torch.eye(n, dtype=x.dtype)
    return formulas.write(x, formulas.sigmoid(pre), 2 * formulas.sigmoid(post), H, branch)


def letters(block: HyperConnection, columns: int, **norm: Any) -> formulas.HCParameters:
    """The paper's letters in the layer's packed parameters: rows and entries in the order pre | post | residual."""
    n, fn, base = block.config.streams, block.fn, block.base
    learned = dict(block.norm.named_parameters()) if hasattr(block, "norm") else {}
    assert fn.shape == (columns + 1 + n, block.stream_dim) and base.shape == (n * columns + n + n * n,)
    return formulas.HCParameters(
        W_m=fn[:columns].T,
        W_b=fn[columns : columns + 1].T,
        W_r=fn[columns + 1 :].T,
        A_m0=base[: n * columns].reshape(n, columns),
        B0=base[n * columns : n * columns + n].reshape(n, 1),
        A_r0=base[n * columns + n :].reshape(n, n),
        s_a=block.scale[0],
        s_b=block.scale[1],
        norm_weight=learned.get("weight"),
        norm_bias=learned.get("bias"),
        **norm,
    )


def hc(block: HyperConnection, x: Tensor, branch: Any) -> formulas.Sublayer:
    return formulas.hc_dynamic(x, letters(block, 1), branch, eps=1e-5)


def lucidrains(block: HyperConnection, x: Tensor, branch: Any) -> formulas.Sublayer:
    p = letters(block, 1, norm=formulas.rms_norm, activation=lambda z: z)
    return formulas.hc_dynamic(x, p, branch, eps=1e-5)


def hc_static(block: HyperConnection, x: Tensor, branch: Any) -> formulas.Sublayer:
    n = block.config.streams
    A_m, B, A_r = block.base.split((n, n, n * n))
    return formulas.hc_static(x, A_m, B, A_r.reshape(n, n), branch)


def fc(block: HyperConnection, x: Tensor, branch: Any) -> formulas.Sublayer:
    return formulas.fc_dynamic(x, letters(block, block.config.streams), branch, eps=1e-5)


def fc_static(block: HyperConnection, x: Tensor, branch: Any) -> formulas.Sublayer:
    n = block.config.streams
    Y, B, A = block.base.split((n * n, n, n * n))
    return formulas.fc_write(x, Y.reshape(n, n), B, A.reshape(n, n), branch)


def deepseek_v41(block: HyperConnection, x: Tensor, branch: Any) -> formulas.Sublayer:
    seed = torch.eye(x.shape[0], dtype=x.dtype)[0]
    return formulas.deepseek_v41(x, seed, block.fn, block.base, block.scale, branch, eps=1e-6)


HY_V4 = {"pre_eps": 1e-3, "post_gate": "sigmoid", "post_gain": 1.5, "post_eps": 1e-3, "init": "published"}
SYSTEMS = {
    "mhc": System("mhc", flat(formulas.mhc)),
    "mhc-lite": System("mhc-lite", flat(formulas.mhc_lite)),
    "kromhc": System("kromhc", flat(formulas.kromhc)),
    "jpmhc": System("jpmhc", jpmhc),
    "shc": System("shc", flat(formulas.shc, gamma=1.0)),
    "ihc": System("ihc", flat(formulas.ihc)),
    "deepseek-v4": System("deepseek-v4", flat(formulas.deepseek_v4)),
    "deepseek-v4.1": System("deepseek-v4.1", deepseek_v41),
    "hy_v4": System("ihc", flat(formulas.hy_v4, magnitude=1.5, hc_eps=1e-3), HY_V4),
    "megatron": System("ihc", flat(megatron), {"norm_eps_mode": "outside"}),
    "hc": System("hc", hc),
    "hc with a learned norm": System("hc", hc, {"predictor_options": {"norm_weight": "affine"}}),
    "hc-static": System("hc", hc_static, {"predictor": "static"}),
    "lucidrains-mhc": System("hc", lucidrains, {"predictor_options": {"norm": "rms", "activation": "none"}}),
    "fc": System("fc", fc),
    "fc-static": System("fc", fc_static, {"predictor": "static"}),
}

every_system = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)
every_size = pytest.mark.parametrize("n", (2, 3, 4))
