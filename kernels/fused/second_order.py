"""Second derivatives and forward mode, refused: no kernel here computes them.

A silent zero would be worse than none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def refuse_second_derivatives(
    outputs: Sequence[Tensor | None], dependencies: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The outputs, gradients or None, that a backward is about to return, made to raise when they are differentiated.

    Call it at the end of the ``backward`` of an autograd function whose kernels ran under ``torch.no_grad()``, with the
    tensors that the outputs depend on. Unless that backward runs with ``create_graph=True`` they come back as they are;
    otherwise differentiating one of them raises RuntimeError.
    """
    if not torch.is_grad_enabled():
        return tuple(outputs)
    result: tuple[Tensor | None, ...] = _Refuse.apply(len(outputs), *outputs, *dependencies)
    return result


def refuse_forward_mode(tensors: Sequence[Tensor | None]) -> None:
    """Raise RuntimeError where a tensor is a dual number of forward mode: a kernel would drop its tangent."""
    # A number without a public name; -1 outside of forward mode, which costs nothing to see.
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise RuntimeError(
            "the fused kernels of hyperconn have no forward-mode derivatives; use backend='torch' for torch.func.jvp, "
            "jacfwd and the like"
        )


class _Refuse(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(count: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if tensor is None else tensor.view_as(tensor) for tensor in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        raise RuntimeError(
            "the fused kernels of hyperconn have no second derivatives, and a gradient that they computed is being "
            "differentiated; use backend='torch' for a gradient penalty, a Hessian-vector product or anything else "
            "that needs create_graph=True"
        )
