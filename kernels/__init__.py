"""Tensor-level building blocks: they know tensors, never manifolds or layers.

Every file holds one operation, written in plain torch. These functions are the reference that a fused
implementation of the same operation is held against.
"""

from hyperconn.kernels.maps.cayley import cayley_inverse, polish_orthogonal, saturate, skew
from hyperconn.kernels.maps.layout import entries_together, tokens_together
from hyperconn.kernels.maps.rounding import round_to_doubly_stochastic
from hyperconn.kernels.maps.sinkhorn import sinkhorn
from hyperconn.kernels.passes.mixing import mean_square_projection, read_streams, write_streams

__all__ = [
    "cayley_inverse",
    "entries_together",
    "mean_square_projection",
    "polish_orthogonal",
    "read_streams",
    "round_to_doubly_stochastic",
    "saturate",
    "sinkhorn",
    "skew",
    "tokens_together",
    "write_streams",
]
