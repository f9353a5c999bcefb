"""Where the coefficients of a layer start: exactly at a plain residual network, or at the published code."""

from __future__ import annotations

import torch
from torch import Tensor

from hyperconn.config import HyperConnectionConfig
from hyperconn.gates import gate
from hyperconn.manifolds import Manifold, invariants

# Sharpness of a start that must be the identity: 1 - tanh(9) = 3e-8, within a float32 rounding of it, and still with a
# gradient in float32, which identity() itself has not where it lies at infinity.
_NEARLY_IDENTITY = 18.0


def start_logits(config: HyperConnectionConfig, manifold: Manifold, layer_index: int) -> Tensor:
    """``[P_total]`` float64 logits at zero prediction, pre | post | residual."""
    stream = layer_index % config.streams
    # A few numbers that have to be looked at, while the model may be built on a device that has none (meta).
    with torch.device("cpu"):
        return torch.cat([_pre_start(config, stream), _post_start(config, stream), _residual_start(config, manifold)])


def _pre_start(config: HyperConnectionConfig, stream: int) -> Tensor:
    n, pre_gate = config.streams, gate(config.pre_gate)
    if config.fractions:  # every fraction is read where it lies
        return torch.eye(n, dtype=torch.float64).flatten()
    start = pre_gate.start_read
    if config.init == "published" and pre_gate.published is not None:
        start = pre_gate.published
    assert start is not None
    return start(n, stream)


def _post_start(config: HyperConnectionConfig, stream: int) -> Tensor:
    n, post_gate = config.streams, gate(config.post_gate)
    if config.init == "published" and post_gate.published is not None:
        return post_gate.published(n, stream)
    assert post_gate.start_write is not None
    return post_gate.start_write(n)


def _residual_start(config: HyperConnectionConfig, manifold: Manifold) -> Tensor:
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
