"""Other people's hyper-connections, used as their authors use them, each with a plain account of its own formula."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from harness import Contender, Shape, Subject, UnavailableError
from ours import NORM_EPS, Branch, generator, randomise, rms_norm, subject, sublayer

SWEEPS = 20
SINKHORN_EPS = 1e-6


def _import(module: str, distribution: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or module.split(".")[0] != error.name.split(".")[0]:
            raise
        raise UnavailableError(f"{distribution} is not installed: pip install 'hyperconn[bench,peers]'") from error


@torch.no_grad()
def _randomise(module: nn.Module, std: float) -> None:
    for name, parameter in module.named_parameters():
        if not name.startswith("branch"):
            shift = torch.randn(parameter.shape, device=parameter.device, generator=generator(parameter.device, 2))
            parameter += std * shift


def _lucidrains_split(x: Tensor, gamma: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Streams ``[b, s, n, C]`` of ``[(b n), s, C]``, and what the weights are predicted from."""
    streams = x.unflatten(0, (-1, n)).movedim(1, -2)
    norm = streams.square().sum(-1, keepdim=True).sqrt()
    return streams, streams / norm * streams.shape[-1] ** 0.5 * (gamma + 1)


def _lucidrains_write(mixed: Tensor, y: Tensor, beta: Tensor) -> Tensor:
    return (mixed + beta.unsqueeze(-1) * y.unsqueeze(-2)).movedim(-2, 1).flatten(0, 1)


def _hc(x: Tensor, p: Mapping[str, Tensor], n: int) -> Tensor:
    streams, normed = _lucidrains_split(x, p["norm.gamma"], n)
    alpha = torch.tanh(normed @ p["dynamic_alpha_fn"]) * p["dynamic_alpha_scale"] + p["static_alpha"]
    beta = torch.tanh(normed @ p["dynamic_beta_fn"]) * p["dynamic_beta_scale"] + p["static_beta"]
    mixed = alpha.mT @ streams
    y = rms_norm(mixed[..., 0, :], p.get("branch.weight"))
    return _lucidrains_write(mixed[..., 1:, :], y, beta)


def _mhc(x: Tensor, p: Mapping[str, Tensor], n: int) -> Tensor:
    streams, normed = _lucidrains_split(x, p["norm.gamma"], n)
    scale = torch.cat([p["pre_branch_scale"], p["residual_scale"].expand(n)])
    alpha = normed @ p["dynamic_alpha_fn"][0] * scale + p["static_alpha"]
    beta = 2 * torch.sigmoid(normed @ p["dynamic_beta_fn"] * p["h_post_scale"] + p["static_beta"])
    pre, H = torch.sigmoid(alpha[..., 0]), alpha[..., 1:].exp()
    for _ in range(SWEEPS):
        H = H / H.sum(-2, keepdim=True)
        H = H / H.sum(-1, keepdim=True)
    y = rms_norm((pre.unsqueeze(-2) @ streams).squeeze(-2), p.get("branch.weight"))
    return _lucidrains_write(H.mT @ streams, y, beta)


def lucidrains_contender(kind: str, branch: Branch) -> Contender:
    """PyPI ``hyper-connections``, ``kind`` "HC" or "mHC". Its streams lie in the batch: ``[(b n), s, C]``."""

    def build(shape: Shape, device: torch.device) -> Subject:
        package = _import("hyper_connections", "hyper-connections")
        n, C, (rows, columns) = shape.streams, shape.channels, shape.batch
        make: Any = package.HyperConnections if kind == "HC" else package.mHC
        module = make(n, dim=C, branch=branch(C, device, shape.dtype), layer_index=0).to(device, shape.dtype)
        _randomise(module, 0.02)
        plain = _hc if kind == "HC" else _mhc
        return subject(module, (rows * n, columns, C), shape, device, lambda x, p: plain(x, p, n))

    return Contender(f"hyper-connections {kind}", "peer", build)


class DeepseekSublayer(nn.Module):
    """``DeepseekV4HyperConnection`` around a branch, with the write formula of the model's decoder layer."""

    def __init__(self, connection: nn.Module, branch: nn.Module) -> None:
        super().__init__()
        self.connection, self.branch = connection, branch

    def forward(self, x: Tensor) -> Tensor:
        post, comb, collapsed = self.connection(x)
        y = self.branch(collapsed)
        mixed = torch.matmul(comb.to(x.dtype).transpose(-1, -2), x)
        return post.to(x.dtype).unsqueeze(-1) * y.unsqueeze(-2) + mixed


def transformers_contender(branch: Branch) -> Contender:
    """``DeepseekV4HyperConnection`` of Hugging Face transformers."""

    def build(shape: Shape, device: torch.device) -> Subject:
        folder = "transformers.models.deepseek_v4"
        modeling = _import(f"{folder}.modeling_deepseek_v4", "transformers")
        configuration = _import(f"{folder}.configuration_deepseek_v4", "transformers")
        n = shape.streams
        config = configuration.DeepseekV4Config(
            hidden_size=shape.channels, hc_mult=n, hc_sinkhorn_iters=SWEEPS, hc_eps=SINKHORN_EPS, rms_norm_eps=NORM_EPS
        )
        connection = modeling.DeepseekV4HyperConnection(config).to(device)
        nn.init.zeros_(connection.base)
        randomise(connection, 2)
        module = DeepseekSublayer(connection, branch(shape.channels, device, shape.dtype))

        def formula(x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
            own = {key: p[f"connection.{key}"] for key in ("fn", "base", "scale")}
            return _deepseek(x, own, p.get("branch.weight"), transposed=True, pre_eps=SINKHORN_EPS)

        return subject(module, shape.size, shape, device, formula)

    return Contender("transformers DeepseekV4", "peer", build)


def _deepseek(x: Tensor, p: Mapping[str, Tensor], weight: Tensor | None, *, transposed: bool, pre_eps: float) -> Tensor:
    n, eps = x.shape[-2], SINKHORN_EPS

    def residual(theta: Tensor) -> Tensor:
        # A row softmax with eps on its entries, then columns, rows, …, columns.
        H = theta.unflatten(-1, (n, n)).softmax(-1) + eps
        H = H / (H.sum(-2, keepdim=True) + eps)
        for _ in range(SWEEPS - 1):
            H = H / (H.sum(-1, keepdim=True) + eps)
            H = H / (H.sum(-2, keepdim=True) + eps)
        return H.mT if transposed else H

    return sublayer(x, p, [n, n, n * n], residual, lambda u: rms_norm(u, weight), pre_eps)


def liger_contender(branch: Branch) -> Contender:
    """``LigerMHC`` of PyPI ``liger-kernel``, its weights in the dtype of the streams so that it uses tensor cores."""

    def build(shape: Shape, device: torch.device) -> Subject:
        package = _import("liger_kernel.transformers.mhc", "liger-kernel")
        n, C = shape.streams, shape.channels
        inside = branch(C, device, shape.dtype)
        module = package.LigerMHC(inside, hc=n, c=C, phi_dtype=shape.dtype, allow_fp32=True).to(device)
        numbers = generator(device, 3)
        with torch.no_grad():
            module.phi.normal_(std=0.5 * (n * C) ** -0.5, generator=numbers)
            module.b.normal_(std=0.5, generator=numbers)

        def formula(x: Tensor, p: Mapping[str, Tensor]) -> Tensor:
            scale = torch.stack([p["alpha_pre"], p["alpha_post"], p["alpha_res"]])
            own = {"fn": p["phi"].mT, "base": p["b"], "scale": scale}
            return _deepseek(x, own, p.get("layer.weight"), transposed=False, pre_eps=0.0)

        return subject(module, shape.size, shape, device, formula)

    return Contender("LigerMHC", "peer", build)
