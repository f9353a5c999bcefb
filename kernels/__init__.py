"""Tensor-level building blocks: they know tensors, never manifolds or layers.

Every file holds one operation, written in plain torch. These functions are the reference that a fused
implementation of the same operation is held against.
"""

from hyperconn.kernels.maps.cayley import cayley_inverse, polish_orthogonal, saturate, skew
from hyperconn.kernels.maps.layout import entries_together, tokens_together
from hyperconn.kernels.maps.rounding import round_to_doubly_stochastic
from hyperconn.kernels.maps.sinkhorn import sinkhorn

__all__ = [
    "cayley_inverse",
    "entries_together",
    "polish_orthogonal",
    "round_to_doubly_stochastic",
    "saturate",
    "sinkhorn",
    "skew",
    "tokens_together",
]
