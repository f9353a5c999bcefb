"""The passes over the streams as Triton kernels: the functions of ``kernels/passes/streaming.py``, under its names.

Results are differentiable once; a second derivative is refused with a clear error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hyperconn.kernels.fused.library import register
from hyperconn.kernels.fused.passes import mixing_backward as _mixing
from hyperconn.kernels.fused.passes import project as _project
from hyperconn.kernels.fused.passes import project_backward as _project_backward
from hyperconn.kernels.fused.passes import read as _read
from hyperconn.kernels.fused.passes import write as _write
from hyperconn.kernels.fused.passes import write_backward as _write_backward
from hyperconn.kernels.fused.second_order import refuse_forward_mode, refuse_second_derivatives
from hyperconn.kernels.fused.tuning import accumulator


def _raw_like(x: Tensor, fn: Tensor) -> Tensor:
    dtype = accumulator(torch.promote_types(x.dtype, fn.dtype))
    return x.new_empty(x.shape[0], fn.shape[0] + 1, dtype=dtype)


_project_op = register("project(Tensor x, Tensor fn) -> Tensor", _project.project, _raw_like)
_read_op = register(
    "read(Tensor x, Tensor pre) -> Tensor", _read.read, lambda x, pre: x.new_empty(x.shape[0], x.shape[2])
)
_write_op = register(
    "write(Tensor x, Tensor H, Tensor post, Tensor y) -> Tensor",
    _write.write,
    lambda x, H, post, y: torch.empty_like(x),
)
_write_project_op = register(
    "write_project(Tensor x, Tensor H, Tensor post, Tensor y, Tensor fn) -> (Tensor, Tensor)",
    _write.write_project,
    lambda x, H, post, y, fn: (torch.empty_like(x), _raw_like(x, fn)),
)
_write_backward_op = register(
    "write_backward(Tensor G, Tensor post, Tensor y) -> (Tensor, Tensor)",
    _write_backward.write_backward,
    lambda G, post, y: (torch.empty_like(y), torch.empty_like(post)),
)


def _mixing_fake(x: Tensor, G: Tensor | None, du: Tensor | None) -> tuple[Tensor, Tensor]:
    (T, n, _), dtype = x.shape, accumulator(x.dtype)
    dH = x.new_empty(0 if G is None else T, n, n, dtype=dtype)
    return dH, x.new_empty(0 if du is None else T, n, dtype=dtype)


_mixing_backward_op = register(
    "mixing_backward(Tensor x, Tensor? G, Tensor? du) -> (Tensor, Tensor)", _mixing.mixing_backward, _mixing_fake
)


def _project_backward_fake(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    *_, fn, _draw, needs_x, needs_fn = others
    dx = x.new_empty(x.shape[0] if needs_x else 0, *x.shape[1:])
    return dx, torch.empty_like(fn) if needs_fn and fn is not None else x.new_empty(0, x.shape[1] * x.shape[2])


_project_backward_op = register(
    "project_backward(Tensor x, Tensor? H, Tensor? G, Tensor? pre, Tensor? du, Tensor? fn, Tensor? draw, bool needs_x, "
    "bool needs_fn) -> (Tensor, Tensor)",
    _project_backward.project_backward,
    _project_backward_fake,
)


def project(x: Tensor, fn: Tensor) -> Tensor:
    """As ``streaming.project``."""
    _require("project", x, fn=(fn, (fn.shape[0], x.shape[1] * x.shape[2])))
    return _project_op(*_dense(x, fn))


def read(x: Tensor, pre: Tensor) -> Tensor:
    """As ``streaming.read``."""
    _require("read", x, pre=(pre, x.shape[:2]))
    return _read_op(*_dense(x, pre))


def write(x: Tensor, H: Tensor, post: Tensor, y: Tensor) -> Tensor:
    """As ``streaming.write``."""
    T, n, C = x.shape
    _require("write", x, H=(H, (T, n, n)), post=(post, (T, n)), y=(y, (T, C)))
    return _write_op(*_dense(x, H, post, y))


def write_project(x: Tensor, H: Tensor, post: Tensor, y: Tensor, fn: Tensor) -> tuple[Tensor, Tensor]:
    """As ``streaming.write_project``."""
    T, n, C = x.shape
    fits = {"H": (H, (T, n, n)), "post": (post, (T, n)), "y": (y, (T, C)), "fn": (fn, (fn.shape[0], n * C))}
    _require("write_project", x, **fits)
    return _write_project_op(*_dense(x, H, post, y, fn))


def write_backward(G: Tensor, post: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """As ``streaming.write_backward``."""
    T, n, C = G.shape
    _require("write_backward", G, post=(post, (T, n)), y=(y, (T, C)))
    with torch.no_grad():
        results = _write_backward_op(*_dense(G, post, y))
    dy, dpost = refuse_second_derivatives(results, (G, post, y))
    assert dy is not None and dpost is not None
    return dy, dpost


def coefficients_backward(x: Tensor, G: Tensor | None, du: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """As ``streaming.coefficients_backward``."""
    if G is None and du is None:
        return None, None
    T, _, C = x.shape
    _require("coefficients_backward", x, G=(G, x.shape), du=(du, (T, C)))
    with torch.no_grad():
        dH, dpre = _mixing_backward_op(*_dense(x, G, du))
    dH, dpre = refuse_second_derivatives((None if G is None else dH, None if du is None else dpre), (x, G, du))
    return dH, dpre


def project_backward(
    x: Tensor,
    mixing: tuple[Tensor, Tensor] | None,
    reading: tuple[Tensor, Tensor] | None,
    projection: tuple[Tensor, Tensor] | None,
    needs_x: bool = True,
    needs_fn: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """As ``streaming.project_backward``."""
    H, G = mixing or (None, None)
    pre, du = reading or (None, None)
    fn, draw = projection or (None, None)
    needs_fn = needs_fn and fn is not None
    needs_x = needs_x and (G is not None or du is not None or draw is not None)
    if not (needs_x or needs_fn):
        return None, None
    T, n, C = x.shape
    P = 0 if fn is None else fn.shape[0]
    fits = {"H": (H, (T, n, n)), "G": (G, x.shape), "pre": (pre, (T, n)), "du": (du, (T, C))}
    _require("project_backward", x, **fits, fn=(fn, (P, n * C)), draw=(draw, (T, P + 1)))
    with torch.no_grad():
        dx, dfn = _project_backward_op(*_dense(x, H, G, pre, du, fn, draw), needs_x, needs_fn)
    results = (dx if needs_x else None, dfn if needs_fn else None)
    dx, dfn = refuse_second_derivatives(results, (x, H, G, pre, du, fn, draw))
    return dx, dfn


def _require(step: str, x: Tensor, **others: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """A kernel would read whatever lies where a tensor of the right shape ends."""
    for name, (tensor, shape) in others.items():
        if tensor is not None and (tensor.shape != shape or tensor.device != x.device):
            raise ValueError(
                f"{step}: beside streams {list(x.shape)} on {x.device}, {name} has to have shape {list(shape)} on that "
                f"device; got {list(tensor.shape)} on {tensor.device}"
            )


def _dense(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """What kernels address: without strides. A transposed H or a gradient that autograd expanded is copied."""
    refuse_forward_mode(tensors)
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)
