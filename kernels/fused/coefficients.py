"""The coefficient step: raw projections to read weights, write weights and residual matrix, in one kernel.

It is the only fused step that knows a constraint, and it moves a few dozen numbers a token where the streaming steps
move thousands. What it computes is what the layer computes with predictor "flat": normalise, scale, shift, then the two
gates and the map of the manifold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from hyperconn.kernels.fused.coefficient_kernels import (
    _coefficients_backward_kernel,
    _coefficients_forward_kernel,
    _parameter_sums_kernel,
)
from hyperconn.kernels.fused.launch import launch
from hyperconn.kernels.fused.library import register
from hyperconn.kernels.fused.pair import pair_named
from hyperconn.kernels.fused.second_order import refuse_forward_mode, refuse_second_derivatives
from hyperconn.kernels.fused.tuning import power_of_two

# Partial sums of the parameters' gradients: programs enough for any GPU, few enough for one program to add.
_MOST_PROGRAMS = 4096


@dataclass(frozen=True)
class CoefficientSpec:
    """What the coefficient step has to know of a layer besides its tensors.

    Attributes:
        pair_key: ``key`` of the device pair of the constraint.
        n: number of streams, 1 to 16.
        sizes: numbers of coordinates of pre, post, and each residual coordinate group, in this order.
        pre_key, post_key: ``key`` of the device pairs of the gates.
        pre_eps, post_eps: added to the read weights, and to the write weights.
        norm_eps: added to the mean square, or ``norm_eps_outside`` of its root.
        width: numbers in the square sum of a token, n·C.
        transposed: H is the transpose of the manifold's matrix.
    """

    pair_key: str
    n: int
    sizes: tuple[int, ...]
    pre_key: str
    post_key: str
    pre_eps: float
    post_eps: float
    norm_eps: float
    norm_eps_outside: bool
    width: int
    transposed: bool

    @property
    def coordinates(self) -> int:
        """P: all coordinates together."""
        return sum(self.sizes)

    def arguments(self) -> tuple[Any, ...]:
        """The fields as the arguments of a torch operator."""
        return tuple(list(value) if isinstance(value, tuple) else value for value in vars(self).values())

    @classmethod
    def from_arguments(cls, *arguments: Any) -> CoefficientSpec:
        """The inverse of ``arguments``."""
        fields: list[Any] = [tuple(value) if isinstance(value, list) else value for value in arguments]
        return cls(*fields)


def fused_coefficients(
    raw: Tensor, base: Tensor, scale: Tensor, spec: CoefficientSpec, post_gain: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Read weights, write weights and residual matrix of every token; differentiable once.

    Args:
        raw: ``[T, P + 1]``: the projections ``vec x · fnᵀ``, in the last column the square sum of vec x. float32; in
            Triton's interpreter also float64.
        base, scale: ``[P]``, and ``[G]``, one factor for each of ``spec.sizes``; dtype and device of raw.
        spec: everything else that stays.
        post_gain: factor of the write weights; another one compiles nothing.

    Returns:
        ``pre [T, n]``, ``post [T, n]``, ``H [T, n, n]`` in the dtype of raw.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit each other or the spec.
        RuntimeError: in a backward of the backward and in forward mode; backend="torch" has both.
    """
    refuse_forward_mode((raw, base, scale))
    if torch.is_grad_enabled() and (raw.requires_grad or base.requires_grad or scale.requires_grad):
        result: tuple[Tensor, Tensor, Tensor] = _FusedCoefficients.apply(raw, base, scale, spec, post_gain)
        return result
    return _forward(raw, base, scale, post_gain, *spec.arguments())


class _FusedCoefficients(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        raw: Tensor, base: Tensor, scale: Tensor, spec: CoefficientSpec, post_gain: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _forward(raw, base, scale, post_gain, *spec.arguments())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, ctx.spec, ctx.post_gain = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dpre: Tensor, dpost: Tensor, dH: Tensor) -> tuple[Tensor | None, ...]:
        raw, base, scale = ctx.saved_tensors
        with torch.no_grad():
            grads = _backward(raw, base, scale, dpre, dpost, dH, ctx.post_gain, *ctx.spec.arguments())
        draw, dbase, dscale = refuse_second_derivatives(grads, (raw, base, scale, dpre, dpost, dH))
        needed = ctx.needs_input_grad
        return draw if needed[0] else None, dbase if needed[1] else None, dscale if needed[2] else None, None, None


def coefficients_forward(
    raw: Tensor, base: Tensor, scale: Tensor, spec: CoefficientSpec, post_gain: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """``(pre [T, n], post [T, n], H [T, n, n])`` of ``raw [T, P + 1]``; see ``fused_coefficients``."""
    _check(raw, base, scale, spec)
    T, n = raw.shape[0], spec.n
    pre, post, H = raw.new_empty(T, n), raw.new_empty(T, n), raw.new_empty(T, n, n)
    constants = _constants(spec, "forward")
    launch(
        _coefficients_forward_kernel, (triton.cdiv(T, constants["BT"]),),
        raw.contiguous(), base.contiguous(), scale.contiguous(), pre, post, H, T, spec.width, float(post_gain),
        PRE_EPS=spec.pre_eps, POST_EPS=spec.post_eps, **constants,
    )  # fmt: skip
    return pre, post, H


def coefficients_backward(
    raw: Tensor,
    base: Tensor,
    scale: Tensor,
    dpre: Tensor,
    dpost: Tensor,
    dH: Tensor,
    spec: CoefficientSpec,
    post_gain: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(draw [T, P + 1], dbase [P], dscale [G])`` from ``dpre``, ``dpost [T, n]`` and ``dH [T, n, n]``.

    Two runs give the same bits: programs leave their sums over tokens in memory, and they are added in a fixed order.
    """
    _check(raw, base, scale, spec)
    T, P = raw.shape[0], spec.coordinates
    draw = torch.empty_like(raw, memory_format=torch.contiguous_format)
    dbase, dscale = base.new_empty(P), scale.new_empty(len(spec.sizes))
    constants = _constants(spec, "backward")
    tiles = max(1, triton.cdiv(T, constants["BT"] * _MOST_PROGRAMS))
    programs = triton.cdiv(T, constants["BT"] * tiles)
    partial = raw.new_empty(programs, 2, P)
    given = (tensor.contiguous() for tensor in (raw, base, scale, dpre, dpost, dH))
    launch(
        _coefficients_backward_kernel, (programs,), *given, draw, partial, T, spec.width, tiles, float(post_gain),
        **constants,
    )  # fmt: skip
    starts = tuple(sum(spec.sizes[:k]) for k in range(len(spec.sizes) + 1))
    widest = power_of_two(max(spec.sizes))
    launch(
        _parameter_sums_kernel, (len(spec.sizes),), partial, dbase, dscale, programs,
        P=P, STARTS=starts, WIDEST=widest, ROWS=max(1, 2048 // widest),
    )  # fmt: skip
    return draw, dbase, dscale


def _constants(spec: CoefficientSpec, direction: str) -> dict[str, Any]:
    """What either kernel is compiled for; ``direction`` is that of the functions of the pairs.

    The gain is not among it, so that a schedule of it compiles nothing.
    """
    pair, pre_gate, post_gate = map(pair_named, (spec.pair_key, spec.pre_key, spec.post_key))
    pre, post, *residual = spec.sizes
    sizes, N = (pre, post, sum(residual)), power_of_two(spec.n)
    padded = tuple(map(power_of_two, sizes))
    widest = max(N * N, *padded)  # numbers of a token in the largest tile
    return {
        "PRE": getattr(pre_gate, direction), "PRE_OPTIONS": pre_gate.options,
        "POST": getattr(post_gate, direction), "POST_OPTIONS": post_gate.options,
        "CONSTRAIN": getattr(pair, direction), "OPTIONS": pair.options,
        "n": spec.n, "N": N, "SIZES": sizes, "PADDED": padded,
        "STARTS": tuple(sum(residual[:k]) for k in range(len(residual))),
        "NORM_EPS": spec.norm_eps, "OUTSIDE": spec.norm_eps_outside, "TRANSPOSED": spec.transposed,
        # As many tokens as make two numbers a thread of one warp, which sums over rows and columns without barriers and
        # without shared memory. Only a token too large for it gets more warps.
        "BT": max(1, 64 // widest), "num_warps": min(4, max(1, widest // 64)),
    }  # fmt: skip


def _check(raw: Tensor, base: Tensor, scale: Tensor, spec: CoefficientSpec) -> None:
    if not 1 <= spec.n <= 16:
        raise ValueError(f"the coefficient kernel takes 1 to 16 streams, got n={spec.n}; use backend='torch'")
    P = spec.coordinates
    wanted = {"raw": (raw, [raw.shape[0], P + 1] if raw.dim() else [0, P + 1]), "base": (base, [P])}
    wanted["scale"] = (scale, [len(spec.sizes)])
    for name, (tensor, shape) in wanted.items():
        if list(tensor.shape) != shape:
            raise ValueError(
                f"the coefficient kernel takes {name} of shape {shape} for coordinate groups of sizes "
                f"{list(spec.sizes)}, got {list(tensor.shape)}"
            )
        if tensor.dtype != raw.dtype or tensor.device != raw.device:
            raise ValueError(
                f"the coefficient kernel takes raw, base and scale of one dtype and device; raw is {raw.dtype} on "
                f"{raw.device}, {name} is {tensor.dtype} on {tensor.device}; convert it with .to(raw)"
            )


def _forward_fake(raw: Tensor, base: Tensor, scale: Tensor, gain: float, key: str, n: int, *rest: Any) -> Any:
    T = raw.shape[0]
    return raw.new_empty(T, n), raw.new_empty(T, n), raw.new_empty(T, n, n)


_REST = (
    "float post_gain, str pair_key, int n, int[] sizes, str pre_key, str post_key, float pre_eps, float post_eps, "
    "float norm_eps, bool norm_eps_outside, int width, bool transposed"
)
_forward = register(
    f"coefficients_forward(Tensor raw, Tensor base, Tensor scale, {_REST}) -> (Tensor, Tensor, Tensor)",
    lambda raw, base, scale, gain, *spec: coefficients_forward(
        raw, base, scale, CoefficientSpec.from_arguments(*spec), gain
    ),
    _forward_fake,
)
_backward = register(
    "coefficients_backward(Tensor raw, Tensor base, Tensor scale, Tensor dpre, Tensor dpost, Tensor dH, "
    f"{_REST}) -> (Tensor, Tensor, Tensor)",
    lambda raw, base, scale, dpre, dpost, dH, gain, *spec: coefficients_backward(
        raw, base, scale, dpre, dpost, dH, CoefficientSpec.from_arguments(*spec), gain
    ),
    lambda raw, base, scale, *rest: (
        raw.new_empty(raw.shape),
        base.new_empty(base.shape),
        scale.new_empty(scale.shape),
    ),
)
