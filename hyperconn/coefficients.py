"""From what a layer sees to what it applies: logits, gates, and the manifold."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from hyperconn.gates import gate
from hyperconn.stream_state import Entered

if TYPE_CHECKING:
    from hyperconn.connection import HyperConnection
    from hyperconn.kernels.fused.coefficients import CoefficientSpec


class Coefficients(NamedTuple):
    """What a hyper-connection applies to a token, in float32 or wider.

    Attributes:
        pre: read weights, ``[..., n]``, or ``[..., n, n]`` with fractions.
        post: write weights, ``[..., n]``.
        H: the residual matrix, ``[..., n, n]``.
    """

    pre: Tensor
    post: Tensor
    H: Tensor


def predict(layer: HyperConnection, entered: Entered) -> Coefficients:
    """Coefficients of the flat tokens ``[T, ...]`` of a layer, fused where its backend and its manifold can."""
    x, raw = entered.projected.x, entered.projected.raw
    if entered.backend == "triton" and raw is not None:
        spec = layer.fused_spec
        if spec is not None:
            from hyperconn.kernels.fused.coefficients import fused_coefficients  # imports triton

            return Coefficients(*fused_coefficients(raw, layer.base.to(raw.dtype), layer.scale.to(raw.dtype), spec))
    return _gated(layer, _logits(layer, x, raw, layer.working_dtype(x.dtype)), x.shape[0])


def fused_spec(layer: HyperConnection) -> CoefficientSpec | None:
    """What the fused coefficient step has to know of a layer; None where the manifold has no device pair."""
    from hyperconn.kernels.fused.coefficients import CoefficientSpec  # imports triton

    config, pair = layer.config, layer.manifold.kernel
    if pair is None:
        return None
    return CoefficientSpec(
        pair_key=pair.key,
        n=config.streams,
        sizes=tuple(layer.sizes),
        pre_gate=config.pre_gate,
        post_gate=config.post_gate,
        pre_eps=config.pre_eps,
        norm_eps=config.norm_eps,
        width=config.streams * layer.stream_dim,
        transposed=config.orientation == "transposed",
    )


def _gated(layer: HyperConnection, logits: list[Tensor], tokens: int) -> Coefficients:
    n, config = layer.config.streams, layer.config
    pre, post, *residual = logits
    theta = residual[0] if len(residual) == 1 else torch.cat([pre.new_empty(*pre.shape[:-1], 0), *residual], -1)
    H = layer.manifold(theta)
    read = pre.unflatten(-1, (n, n)) if config.fractions else gate(config.pre_gate)(pre, n)
    read = read + config.pre_eps if config.pre_eps else read
    write = gate(config.post_gate)(post, n)
    H = H if config.orientation == "direct" else H.mT
    if config.predictor == "static":  # computed once, the same for every token
        read, write, H = (part.expand(tokens, *part.shape) for part in (read, write, H))
    return Coefficients(read, write, H)


def _logits(layer: HyperConnection, x: Tensor, raw: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """Logits of pre, post and each residual group, ``[T, size]`` each; without tokens where static."""
    config, sizes = layer.config, layer.sizes
    base = layer.base.to(dtype).split(sizes)
    if config.predictor == "static":
        return list(base)
    scale = layer.scale.to(dtype).unbind()
    if raw is not None:
        z, square = raw.to(dtype).split([sum(sizes), 1], -1)
        z = z * torch.rsqrt(square / (x.shape[1] * x.shape[2]) + config.norm_eps)
        return [torch.addcmul(b, s, part) for part, s, b in zip(z.split(sizes, -1), scale, base, strict=True)]
    n, norm = config.streams, layer.norm
    normed = torch.nn.functional.layer_norm(
        x.to(dtype), (layer.stream_dim,), norm.weight.to(dtype), norm.bias.to(dtype), config.norm_eps
    )
    rows = torch.tanh(normed @ layer.fn.to(dtype).mT).split([size // n for size in sizes], -1)  # [T, n, size / n] each
    alpha, beta = scale
    scales = [alpha, beta, *[alpha] * (len(sizes) - 2)]
    return [torch.addcmul(b, s, part.flatten(-2)) for part, s, b in zip(rows, scales, base, strict=True)]
