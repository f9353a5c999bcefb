"""For each law about derivatives, manifolds that break it and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from healthy_manifold import Circulant


class _Nothing(torch.autograd.Function):
    """Zero matrices with the gradient that someone else makes up."""

    @staticmethod
    def forward(ctx, theta, slope):
        ctx.save_for_backward(theta)
        ctx.slope = slope
        return theta.new_zeros(*theta.shape, theta.shape[-1])

    @staticmethod
    def backward(ctx, cotangent):
        (theta,) = ctx.saved_tensors
        return ctx.slope(theta, cotangent), None


def _between_streams(cotangent):
    """What a change of H sees that moves no sum: ``[..., 1]``."""
    return (cotangent[..., :1, 0] - cotangent[..., :1, 1]) - (cotangent[..., 1:2, 0] - cotangent[..., 1:2, 1])


class _AddsToGradients(Circulant):
    slope: ClassVar[Callable[[Tensor, Tensor], Tensor]]

    def forward(self, theta):
        return super().forward(theta) + _Nothing.apply(theta, type(self).slope)


class Overflows(Circulant):
    breaks = "finite"
    exact = False
    norm_bound = None

    def forward(self, theta):
        return super().forward(theta) * (theta.exp() / theta.exp())[..., :1, None]


class HasNoGradientAtZero(_AddsToGradients):
    breaks = "finite"
    also = ("tangent",)

    def slope(theta, cotangent):
        zero = ((theta == 0) & ~theta.signbit()).all(-1, keepdim=True)
        return torch.where(zero, torch.nan, 0 * _between_streams(cotangent)).expand_as(theta)


class DividesByRounding(_AddsToGradients):
    breaks = "bounded_gradients"
    also = ("extremes",)

    def slope(theta, cotangent):
        near = theta.abs().amax(-1, keepdim=True) < 0.01
        return torch.where(near, 1e17 * _between_streams(cotangent), 0.0).expand_as(theta)


class IsATenthOff(_AddsToGradients):
    breaks = "first_derivative"

    def slope(theta, cotangent):
        return (0.1 * _between_streams(cotangent)).expand_as(theta)


class IsWrongInSinglePrecision(_AddsToGradients):
    breaks = "gradient_precision"

    def slope(theta, cotangent):
        return ((theta.dtype == torch.float32) * 0.5 * _between_streams(cotangent)).expand_as(theta)


class DetachesNearZero(Circulant):
    breaks = "first_derivative"

    def forward(self, theta):
        # At initial() the gradient is right: that one has to be there is another law.
        near = theta.abs().amax(-1, keepdim=True) < 2
        return super().forward(torch.where(near, theta.detach(), theta))


class IsRightOnlyOnce(_AddsToGradients):
    breaks = "second_derivative"

    def slope(theta, cotangent):
        return _between_streams(cotangent) * (theta - theta.detach())


class MovesSumsWhereCoordinatesAreEqual(_AddsToGradients):
    """The two sides of a minimum, mixed up."""

    breaks = "tangent"

    def slope(theta, cotangent):
        equal = (theta == theta[..., :1]).all(-1, keepdim=True)
        return (0.1 * equal * cotangent.sum((-2, -1))[..., None]).expand_as(theta)


class _HalfTangent(torch.autograd.Function):
    """The identity, with half of its derivative in forward mode."""

    @staticmethod
    def forward(theta):
        return theta.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent

    @staticmethod
    def jvp(ctx, tangent):
        return tangent / 2


class IsHalfAsFastForwards(Circulant):
    breaks = "forward_mode"

    def forward(self, theta):
        return super().forward(_HalfTangent.apply(theta))
