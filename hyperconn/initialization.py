"""Where the logits of a layer start: exactly at a plain residual network, or at the published code."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperconn.manifolds import invariants
from hyperconn.manifolds.core.map import real_numbers
from hyperconn.spec import LayerSpec

# Sharpness of a start that must be the identity: 1 - tanh(9) = 3e-8, within a float32 rounding of it, and still with a
# gradient in float32, which identity() itself has not where it lies at infinity.
_NEARLY_IDENTITY = 18.0

# How far a start may be off a plain residual network: some float32 roundings.
_ROUNDING = 1e-6


def start_logits(spec: LayerSpec) -> Tensor:
    """``[P_total]`` float64 logits at zero prediction, pre | post | residual.

    Raises:
        ValueError: ``init="residual"`` and a gate that does not reach the weights of a plain residual network.
    """
    with real_numbers():
        logits = torch.cat([_pre_start(spec), _post_start(spec), _residual_start(spec)]).tolist()
    return torch.tensor(logits, dtype=torch.float64, device="cpu")


def _pre_start(spec: LayerSpec) -> Tensor:
    gate, stream = spec.pre_gate, spec.layer_index % spec.layout.n
    published = gate.published_start(stream) if spec.config.init == "published" else None
    if published is not None:
        return published
    logits = gate.read_start(stream)
    if spec.config.init == "residual" and spec.one_weight_a_stream:
        _require_plain(spec, "read weights add up to", float(gate(logits).sum()))
    return logits


def _post_start(spec: LayerSpec) -> Tensor:
    gate, config = spec.post_gate, spec.config
    published = gate.published_start(spec.layer_index % spec.layout.n) if config.init == "published" else None
    if published is not None:
        return published
    logits = gate.write_start((1 - config.post_eps) / config.post_gain)
    if config.init == "residual":
        weights = config.post_gain * gate(logits) + config.post_eps
        for weight in (weights.min(), weights.max()):
            _require_plain(spec, "write weights are", float(weight))
    return logits


def _require_plain(spec: LayerSpec, what: str, value: float) -> None:
    if not abs(value - 1) <= _ROUNDING:
        config = spec.config
        raise ValueError(
            f"{spec.summary()} cannot start as a plain residual network, whose {what} 1: its gates "
            f"{spec.pre_gate!r} and {spec.post_gate!r} with post_gain={config.post_gain} and post_eps={config.post_eps}"
            f" come to {value:.6g}; take gates that reach 1, or init='published' with gates that have a published start"
        )


def _residual_start(spec: LayerSpec) -> Tensor:
    manifold, config = spec.manifold, spec.config
    theta = manifold.initial(config.sharpness, dtype=torch.float64)
    if config.init == "published":
        return theta
    # With equal streams every H whose rows sum to 1 acts as the identity, so H may start where it can learn.
    rows = invariants.row_sums if config.orientation == "direct" else invariants.column_sums
    summed = rows in manifold.invariants
    summed = summed or float(rows.residual(manifold(theta))) <= manifold.tolerance(torch.float64)
    if summed and not config.fractions:  # fractions differ from each other
        return theta
    # Any other H has to start at the identity, or where that lies at infinity so near that float32 hardly tells.
    return manifold.initial(_NEARLY_IDENTITY, dtype=torch.float64)
