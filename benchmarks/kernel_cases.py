"""Every Triton kernel of the library, with a call that launches it at a realistic size.

The tensors are on the meta device, so a call is good for recording its launches, not for running them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from hyperconn import manifolds
from hyperconn.gates import gate
from hyperconn.kernels.fused import coefficients, constrain
from hyperconn.kernels.fused.coefficients import CoefficientSpec
from hyperconn.kernels.fused.launch import Launch, recording
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.passes.mixing_backward import mixing_backward
from hyperconn.kernels.fused.passes.project import project
from hyperconn.kernels.fused.passes.project_backward import project_backward
from hyperconn.kernels.fused.passes.read import read
from hyperconn.kernels.fused.passes.write import write, write_project
from hyperconn.kernels.fused.passes.write_backward import write_backward
from hyperconn.manifolds import Manifold

TOKENS, CHANNELS = 4096, 1024
STREAM_COUNTS = (2, 3, 4, 8, 16)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class KernelCase:
    """One launcher.

    Attributes:
        name: what tables call it.
        launch: calls it for n streams of a dtype.
        dtypes: names of the stream dtypes that make a difference to it.
        largest_n: up to which n it exists.
    """

    name: str
    launch: Callable[[int, torch.dtype], object]
    dtypes: tuple[str, ...] = tuple(DTYPES)
    largest_n: int = 16

    def launches(self, n: int, dtype: str) -> list[Launch]:
        """What the launcher would run."""
        with recording() as launches:
            self.launch(n, DTYPES[dtype])
        return launches


@dataclass(frozen=True)
class Constraint:
    """A manifold with a device pair."""

    manifold: str
    options: Mapping[str, Any] = field(default_factory=dict)
    largest_n: int = 16

    @property
    def name(self) -> str:
        return " ".join([self.manifold, *(str(value) for value in self.options.values())])

    def make(self, n: int) -> Manifold:
        return manifolds.make(self.manifold, n=n, **self.options)


CONSTRAINTS = (
    Constraint("birkhoff"),
    Constraint("birkhoff", {"finish": "round"}),
    Constraint("birkhoff", {"gradient": "implicit"}),
    Constraint("birkhoff", {"gradient": "implicit", "finish": "round"}),
    Constraint("permutation", largest_n=6),
    Constraint("kronecker"),
    Constraint("stiefel"),
    Constraint("spectral_sphere"),
    Constraint("grassmann"),
    Constraint("identity"),
    Constraint("unconstrained"),
)


def kernel_cases() -> list[KernelCase]:
    """All of them: the coefficient step of every constraint, and the streaming kernels."""
    constraints = [case for constraint in CONSTRAINTS for case in _constraint_cases(constraint)]
    return [*constraints, *(KernelCase(name, launch) for name, launch in _STREAMING.items())]


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _constraint_cases(constraint: Constraint) -> list[KernelCase]:
    # Coefficients are float32 whatever the streams are.
    def case(step: str, launch: Callable[[Manifold], object]) -> KernelCase:
        return KernelCase(
            f"{step} {constraint.name}", lambda n, dtype: launch(constraint.make(n)), ("fp32",), constraint.largest_n
        )

    return [
        case("constrain", _constrain),
        case("constrain backward", _constrain_backward),
        case("coefficients", _coefficients),
        case("coefficients backward", _coefficients_backward),
    ]


def _pair(m: Manifold) -> DevicePair:
    if m.kernel is None:
        raise ValueError(f"{m!r} has no device pair: leave it out of CONSTRAINTS, or lower its largest_n")
    pair: DevicePair = m.kernel
    return pair


def _constrain(m: Manifold) -> object:
    return constrain.constrain_forward(_empty(TOKENS, m.num_coordinates), _pair(m), m.n)


def _constrain_backward(m: Manifold) -> object:
    theta, dH = _empty(TOKENS, m.num_coordinates), _empty(TOKENS, m.n, m.n)
    return constrain.constrain_backward(theta, dH, _pair(m), m.n)


def _coefficients(m: Manifold) -> object:
    spec = _spec(m)
    P, G = spec.coordinates, len(spec.sizes)
    return coefficients.coefficients_forward(_empty(TOKENS, P + 1), _empty(P), _empty(G), spec)


def _coefficients_backward(m: Manifold) -> object:
    spec = _spec(m)
    P, G = spec.coordinates, len(spec.sizes)
    gradients = _empty(TOKENS, m.n), _empty(TOKENS, m.n), _empty(TOKENS, m.n, m.n)
    return coefficients.coefficients_backward(_empty(TOKENS, P + 1), _empty(P), _empty(G), *gradients, spec)


def _spec(m: Manifold) -> CoefficientSpec:
    pre, post = "sigmoid", "double_sigmoid"
    sizes = (
        gate(pre).num_coordinates(m.n),
        gate(post).num_coordinates(m.n),
        *(size for _, size in m.coordinate_groups),
    )
    return CoefficientSpec(
        pair_key=_pair(m).key, n=m.n, sizes=sizes, pre_gate=pre, post_gate=post, pre_eps=0.0, norm_eps=1e-6,
        width=m.n * CHANNELS, transposed=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ the streaming kernels


def _streams(n: int, dtype: torch.dtype) -> torch.Tensor:
    return _empty(TOKENS, n, CHANNELS, dtype=dtype)


def _vectors(dtype: torch.dtype) -> torch.Tensor:
    return _empty(TOKENS, CHANNELS, dtype=dtype)


def _prediction_weights(n: int) -> torch.Tensor:
    # Rows pre | post | an n×n residual.
    return _empty(2 * n + n * n, n * CHANNELS)


def _project(n: int, dtype: torch.dtype) -> object:
    return project(_streams(n, dtype), _prediction_weights(n))


def _read(n: int, dtype: torch.dtype) -> object:
    return read(_streams(n, dtype), _empty(TOKENS, n))


def _write(n: int, dtype: torch.dtype) -> object:
    return write(_streams(n, dtype), _empty(TOKENS, n, n), _empty(TOKENS, n), _vectors(dtype))


def _write_project(n: int, dtype: torch.dtype) -> object:
    coefficients = _empty(TOKENS, n, n), _empty(TOKENS, n)
    return write_project(_streams(n, dtype), *coefficients, _vectors(dtype), _prediction_weights(n))


def _write_backward(n: int, dtype: torch.dtype) -> object:
    return write_backward(_streams(n, dtype), _empty(TOKENS, n), _vectors(dtype))


def _mixing_backward(n: int, dtype: torch.dtype) -> object:
    return mixing_backward(_streams(n, dtype), _streams(n, dtype), _vectors(dtype))


def _mixing_backward_of_pre(n: int, dtype: torch.dtype) -> object:
    # H without a gradient, as of the manifold "identity".
    return mixing_backward(_streams(n, dtype), None, _vectors(dtype))


def _project_backward(n: int, dtype: torch.dtype) -> object:
    fn = _prediction_weights(n)
    return _any_project_backward(n, dtype, fn, _empty(TOKENS, fn.shape[0] + 1), needs_x=True, needs_fn=True)


def _project_backward_of_streams(n: int, dtype: torch.dtype) -> object:
    # Frozen prediction weights.
    fn = _prediction_weights(n)
    return _any_project_backward(n, dtype, fn, _empty(TOKENS, fn.shape[0] + 1), needs_x=True, needs_fn=False)


def _project_backward_of_weights(n: int, dtype: torch.dtype) -> object:
    # Streams that no parameter came before.
    fn = _prediction_weights(n)
    return _any_project_backward(n, dtype, fn, _empty(TOKENS, fn.shape[0] + 1), needs_x=False, needs_fn=True)


def _project_backward_without_projection(n: int, dtype: torch.dtype) -> object:
    # Coefficients that are no prediction from the streams.
    return _any_project_backward(n, dtype, None, None, needs_x=True, needs_fn=False)


def _any_project_backward(
    n: int, dtype: torch.dtype, fn: torch.Tensor | None, draw: torch.Tensor | None, needs_x: bool, needs_fn: bool
) -> object:
    H, pre, G, du = _empty(TOKENS, n, n), _empty(TOKENS, n), _streams(n, dtype), _vectors(dtype)
    return project_backward(_streams(n, dtype), H, G, pre, du, fn, draw, needs_x, needs_fn)


_STREAMING: dict[str, Callable[[int, torch.dtype], object]] = {
    "project": _project,
    "read": _read,
    "write": _write,
    "write_project": _write_project,
    "write_backward": _write_backward,
    "mixing_backward": _mixing_backward,
    "mixing_backward, pre alone": _mixing_backward_of_pre,
    "project_backward": _project_backward,
    "project_backward, streams alone": _project_backward_of_streams,
    "project_backward, weights alone": _project_backward_of_weights,
    "project_backward, no projection": _project_backward_without_projection,
}
