"""Sinkhorn–Knopp balancing.

One half-sweep that normalises an axis of ``M = exp(L)`` is, in logs, ``L ← log_softmax(L)`` along that axis. It is
finite for any finite logits. The plain loop of these is what ``torch.compile`` sees, and what defines the rest.
Elsewhere the sweeps carry their own backward: with ``y = exp(L)`` after a half-sweep the gradient steps back through
it as ``dL ← dL − y · Σ dL``, along the same axis. Tokens are moved to the last axis first: every reduction then runs
over a leading axis of length n, which vectorises over tokens (6× faster than balancing ``[T, n, n]`` in place).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from hyperconn.kernels.maps.cayley import saturate
from hyperconn.kernels.maps.layout import tokens_together
from hyperconn.kernels.passes.watched import watched

Axis = Literal["rows", "columns"]
EpsMode = Literal["denominator", "softmax"]

# In [n, n, T] layout: "rows" makes every row sum to 1, so it normalises along the column index, and vice versa.
_NORMALISED_DIM = {"rows": 1, "columns": 0}


def sinkhorn(
    logits: Tensor,
    iterations: int,
    *,
    first_axis: Axis = "columns",
    eps: float = 0.0,
    eps_mode: EpsMode = "denominator",
    implicit: bool = False,
) -> Tensor:
    """Balance ``exp(logits)``, ``[..., n, n]``, float32 or float64, with ``iterations`` sweeps of two half-sweeps each.

    Args:
        first_axis: the axis that each sweep normalises first; the other one is exact at the end (eps = 0).
        eps: added to every denominator.
        eps_mode: ``"denominator"`` as said; ``"softmax"`` starts with an exact softmax, adds eps to its
            *entries*, and adds eps to the denominators from the second half-sweep on (DeepSeek-V4).
        implicit: differentiate the fixed point instead of the sweeps (arXiv 2602.18308).

    Returns:
        ``[..., n, n]`` nonnegative, same dtype; a view with the tokens innermost in memory.

    Source: mHC, arXiv 2512.24880; Cuturi, arXiv 1306.0895.
    """
    token_last = tokens_together(logits)
    # Differences of logits are formed before anything is normalised: keep them finite at the end of the range.
    token_last = saturate(token_last, torch.finfo(logits.dtype).max / 64, dims=(0, 1))
    if implicit:
        balanced: Tensor = _ImplicitSinkhorn.apply(token_last, iterations, first_axis, eps, eps_mode)  # type: ignore[no-untyped-call]
    else:
        balanced = _sweeps(token_last, iterations, first_axis, eps, eps_mode)
    return balanced.movedim((0, 1), (-2, -1))


def _sweeps(logits: Tensor, iterations: int, first_axis: Axis, eps: float, eps_mode: EpsMode) -> Tensor:
    """``[n, n, ...]`` logits to ``[n, n, ...]`` balanced entries."""
    first = _NORMALISED_DIM[first_axis]
    axes = [first, 1 - first] * iterations
    if eps == 0.0:
        if torch.compiler.is_compiling():
            return _by_logarithms(logits, axes)
        balanced: Tensor = _Sweeps.apply(logits, axes)[0]  # type: ignore[no-untyped-call]
        return balanced

    log_eps = torch.full((), math.log(eps), dtype=logits.dtype, device=logits.device)
    if eps_mode == "softmax":
        logits = torch.logaddexp(torch.log_softmax(logits, first), log_eps)
        axes = axes[1:]
    else:
        # A denominator plus eps is not scale-free: entries are taken relative to the largest, as the paper does.
        logits = logits - logits.amax((0, 1), keepdim=True)
    for dim in axes:
        logits = logits - torch.logaddexp(torch.logsumexp(logits, dim, keepdim=True), log_eps)
    return logits.exp()


def _by_logarithms(logits: Tensor, axes: list[int]) -> Tensor:
    for dim in axes[:-1]:
        logits = torch.log_softmax(logits, dim)
    return torch.softmax(logits, axes[-1])


def _half_sweeps_in_logs(n: int, count: int, dtype: torch.dtype) -> int:
    """How many half-sweeps, of ``count``, have to run in the log domain.

    A sum and a division take a third of the time of a ``log_softmax``, but entries too small for the dtype get lost.
    After two half-sweeps no sum lies outside [1/n, n] any more, so an entry grows at most n-fold in each that follows:
    the last ones, few enough that what was lost could not reach a rounding of 1, may divide.
    """
    info = torch.finfo(dtype)
    harmless = count if n == 1 else int(math.log(info.eps / 16 / info.tiny, n))
    return min(count, max(2, count - harmless))


class _Sweeps(torch.autograd.Function):
    """The result of all half-sweeps, and what the backward needs: logarithms of the first iterates, sums of the others.

    An iterate is the next one times the sums that it was divided by, so the backward finds them again on its way.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, axes: list[int]) -> tuple[Tensor, ...]:
        in_logs = _half_sweeps_in_logs(logits.shape[0], len(axes), logits.dtype)
        kept: list[Tensor] = []
        for dim in axes[:in_logs]:
            before, logits = logits, torch.log_softmax(logits, dim)
            kept.append(logits)
        entries = torch.softmax(before, axes[in_logs - 1])  # its sums are closer to 1 than those of exp(logits)
        for dim in axes[in_logs:]:
            kept.append(entries.sum(dim, keepdim=True))
            entries = entries / kept[-1] if watched() else entries.div_(kept[-1])
        return (entries, *kept)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        logits, ctx.axes = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, *output)
        ctx.save_for_forward(logits, *output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        if grads[0] is None:
            return None, None
        logits, entries, *kept = ctx.saved_tensors
        grad = grads[0].contiguous()  # the steps inherit its layout
        if torch.is_grad_enabled():  # a second derivative is wanted, which runs through the iterates
            return _gradient_step_by_step(logits, grad, ctx.axes), None
        in_logs = _half_sweeps_in_logs(logits.shape[0], len(ctx.axes), logits.dtype)
        step = grad * entries
        entries = entries.clone()
        for dim, sums in zip(reversed(ctx.axes[in_logs:]), reversed(kept[in_logs:]), strict=True):
            total = step.sum(dim, keepdim=True)
            if watched():
                step, entries = torch.addcmul(step, entries, total, value=-1), entries * sums
            else:
                step.addcmul_(entries, total, value=-1)
                entries.mul_(sums)
        for dim, logarithms in zip(reversed(ctx.axes[:in_logs]), reversed(kept[:in_logs]), strict=True):
            step = step - logarithms.exp() * step.sum(dim, keepdim=True)
        return step, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _axes: None) -> tuple[Tensor | None, ...]:
        logits, entries, *_ = ctx.saved_tensors
        for dim, y in zip(ctx.axes, _iterates(logits, ctx.axes), strict=True):
            tangent = tangent - (y * tangent).sum(dim, keepdim=True)
        return (tangent * entries, *[None] * len(ctx.axes))


def _iterates(logits: Tensor, axes: list[int]) -> list[Tensor]:
    """The entries after every half-sweep."""
    iterates = []
    for dim in axes:
        logits = torch.log_softmax(logits, dim)
        iterates.append(logits.exp())
    return iterates


def _gradient_step_by_step(logits: Tensor, grad: Tensor, axes: list[int]) -> Tensor:
    """What the backward of ``_Sweeps`` computes, differentiable in both."""
    iterates = _iterates(logits, axes)
    step = grad * iterates[-1]
    for dim, y in zip(reversed(axes), reversed(iterates), strict=True):
        step = step - y * step.sum(dim, keepdim=True)
    return step


class _ImplicitSinkhorn(torch.autograd.Function):
    """Sinkhorn with the gradient of its fixed point: O(n²) state whatever the number of sweeps."""

    @staticmethod
    def forward(logits: Tensor, iterations: int, first_axis: Axis, eps: float, eps_mode: EpsMode) -> Tensor:
        return _sweeps(logits, iterations, first_axis, eps, eps_mode)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.iterations = inputs[1]
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None, None]:
        (balanced,) = ctx.saved_tensors
        weighted = balanced * grad_outputs[0].contiguous()
        row_total, column_total = weighted.sum(1), weighted.sum(0)
        # Solve  u + P v = G'1,  v + Pᵀu = G'ᵀ1  by alternation, at the convergence rate of the sweeps themselves.
        # Dividing by the sums that P really has (1 at the fixed point) keeps the alternation bounded where the
        # sweeps have not converged.
        row_sum, column_sum = balanced.sum(1), balanced.sum(0)
        tiny = torch.finfo(balanced.dtype).tiny
        v = torch.zeros_like(column_total)
        u = row_total / row_sum.clamp(min=tiny)
        for _ in range(ctx.iterations):
            v = (column_total - (balanced * u.unsqueeze(1)).sum(0)) / column_sum.clamp(min=tiny)
            u = (row_total - (balanced * v.unsqueeze(0)).sum(1)) / row_sum.clamp(min=tiny)
        return weighted - balanced * (u.unsqueeze(1) + v.unsqueeze(0)), None, None, None, None
