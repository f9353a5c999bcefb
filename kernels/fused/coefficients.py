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
from hyperconn.kernels.fused.launch import Launch
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
        raw: ``[T, P + 1]`` float32: the projections ``vec x · fnᵀ``, in the last column the square sum of vec x. In
            Triton's interpreter also float64.
        base: ``[P]`` of the same dtype and device.
        scale: ``[G]``, likewise: one factor for each of ``spec.sizes``.
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
    pair, pre_gate, post_gate = map(pair_named, (spec.pair_key, spec.pre_key, spec.post_key))
    BT = tokens_per_program(spec)
    Launch(
        _coefficients_forward_kernel,
        (triton.cdiv(T, BT),),
        {
            "raw_ptr": raw.contiguous(), "base_ptr": base.contiguous(), "scale_ptr": scale.contiguous(),
            "pre_ptr": pre, "post_ptr": post, "H_ptr": H, "T": T, "width": spec.width,
            "post_gain": float(post_gain),
        },
        {
            "PRE": pre_gate.forward, "PRE_OPTIONS": pre_gate.options, "POST": post_gate.forward,
            "POST_OPTIONS": post_gate.options, "CONSTRAIN": pair.forward, "OPTIONS": pair.options, **_layout(spec),
            "PRE_EPS": spec.pre_eps, "POST_EPS": spec.post_eps, "BT": BT,
        },
        num_warps=_warps(spec),
    ).run()  # fmt: skip
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
    """``(draw [T, P + 1], dbase [P], dscale [G])`` from the gradients of the three results.

    Two runs give the same bits: each program leaves its sums over tokens in memory, and they are added in a fixed
    order.

    Args:
        raw, base, scale, spec, post_gain: as for ``fused_coefficients``.
        dpre, dpost: ``[T, n]``.
        dH: ``[T, n, n]``.
    """
    _check(raw, base, scale, spec)
    T, P = raw.shape[0], spec.coordinates
    raw = raw.contiguous()
    draw, dbase, dscale = torch.empty_like(raw), base.new_empty(P), scale.new_empty(len(spec.sizes))
    pair, pre_gate, post_gate = map(pair_named, (spec.pair_key, spec.pre_key, spec.post_key))
    BT = tokens_per_program(spec)
    tiles = max(1, triton.cdiv(T, BT * _MOST_PROGRAMS))
    programs = triton.cdiv(T, BT * tiles)
    partial = raw.new_empty(programs, 2, P)
    Launch(
        _coefficients_backward_kernel,
        (programs,),
        {
            "raw_ptr": raw, "base_ptr": base.contiguous(), "scale_ptr": scale.contiguous(),
            "dpre_ptr": dpre.contiguous(), "dpost_ptr": dpost.contiguous(), "dH_ptr": dH.contiguous(),
            "draw_ptr": draw, "partial_ptr": partial, "T": T, "width": spec.width, "tiles": tiles,
            "post_gain": float(post_gain),
        },
        {
            "PRE": pre_gate.backward, "PRE_OPTIONS": pre_gate.options, "POST": post_gate.backward,
            "POST_OPTIONS": post_gate.options, "CONSTRAIN": pair.backward, "OPTIONS": pair.options, **_layout(spec),
            "BT": BT,
        },
        num_warps=_warps(spec),
    ).run()  # fmt: skip
    ends = [sum(spec.sizes[:k]) for k in range(len(spec.sizes) + 1)]
    widest = power_of_two(max(spec.sizes))
    Launch(
        _parameter_sums_kernel,
        (len(spec.sizes),),
        {"partial_ptr": partial, "dbase_ptr": dbase, "dscale_ptr": dscale, "programs": programs},
        {"P": P, "STARTS": tuple(ends), "WIDEST": widest, "ROWS": max(1, 2048 // widest)},
    ).run()
    return draw, dbase, dscale


def tokens_per_program(spec: CoefficientSpec) -> int:
    """How many tokens a tile holds: as many as make two numbers a thread of one warp, whatever n is."""
    return max(1, 64 // _widest_tile(spec))


def _warps(spec: CoefficientSpec) -> int:
    # A single warp sums over rows and columns without barriers and without shared memory. Only a token too large for
    # it gets more.
    return min(4, max(1, _widest_tile(spec) // 64))


def _widest_tile(spec: CoefficientSpec) -> int:
    """Numbers of a token in the largest tile."""
    return max(power_of_two(spec.n) ** 2, *_padded(_part_sizes(spec)))


def _part_sizes(spec: CoefficientSpec) -> tuple[int, int, int]:
    pre, post, *residual = spec.sizes
    return pre, post, sum(residual)


def _padded(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(power_of_two(size) for size in sizes)


def _layout(spec: CoefficientSpec) -> dict[str, Any]:
    residual = spec.sizes[2:]
    return {
        "n": spec.n,
        "N": power_of_two(spec.n),
        "SIZES": _part_sizes(spec),
        "PADDED": _padded(_part_sizes(spec)),
        "STARTS": tuple(sum(residual[:k]) for k in range(len(residual))),
        "NORM_EPS": spec.norm_eps,
        "OUTSIDE": spec.norm_eps_outside,
        "TRANSPOSED": spec.transposed,
    }


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


def _forward_op(
    raw: Tensor, base: Tensor, scale: Tensor, post_gain: float, *spec: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return coefficients_forward(raw, base, scale, CoefficientSpec.from_arguments(*spec), post_gain)


def _backward_op(
    raw: Tensor, base: Tensor, scale: Tensor, dpre: Tensor, dpost: Tensor, dH: Tensor, post_gain: float, *spec: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return coefficients_backward(raw, base, scale, dpre, dpost, dH, CoefficientSpec.from_arguments(*spec), post_gain)


def _forward_fake(
    raw: Tensor, base: Tensor, scale: Tensor, post_gain: float, pair_key: str, n: int, *rest: Any
) -> tuple[Tensor, ...]:
    T = raw.shape[0]
    return raw.new_empty(T, n), raw.new_empty(T, n), raw.new_empty(T, n, n)


def _backward_fake(raw: Tensor, base: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return raw.new_empty(raw.shape), base.new_empty(base.shape), scale.new_empty(scale.shape)


_REST = (
    "float post_gain, str pair_key, int n, int[] sizes, str pre_key, str post_key, float pre_eps, float post_eps, "
    "float norm_eps, bool norm_eps_outside, int width, bool transposed"
)
_forward = register(
    f"coefficients_forward(Tensor raw, Tensor base, Tensor scale, {_REST}) -> (Tensor, Tensor, Tensor)",
    _forward_op,
    _forward_fake,
)
_backward = register(
    "coefficients_backward(Tensor raw, Tensor base, Tensor scale, Tensor dpre, Tensor dpost, Tensor dH, "
    f"{_REST}) -> (Tensor, Tensor, Tensor)",
    _backward_op,
    _backward_fake,
)
