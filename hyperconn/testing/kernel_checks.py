"""What a device pair promises: to be the map's own torch formula, on the device, token by token.

Importing this module imports triton. Every check raises AssertionError with the numbers; ``kernel_laws`` makes tests
of them.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from triton.runtime.interpreter import InterpretedFunction

from hyperconn.backends import BackendUnavailableError, interpreting
from hyperconn.config import HyperConnectionConfig
from hyperconn.connection import HyperConnection
from hyperconn.gates import Gate
from hyperconn.kernels.fused import constrain
from hyperconn.kernels.fused.coefficients import CoefficientSpec, coefficients_backward, coefficients_forward
from hyperconn.kernels.fused.maps.gates import LINEAR
from hyperconn.kernels.fused.maps.trivial import IDENTITY
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.poison import poisoned_memory
from hyperconn.manifolds.core.map import Map
from hyperconn.testing.case import Case
from hyperconn.testing.expressions import expression
from hyperconn.testing.law import SCALES
from hyperconn.testing.law_tools import gradient_of, is_constant

# Float64 exists in the interpreter alone; there a wrong term cannot hide behind rounding.
LIMITS = {torch.float64: 1e-10, torch.float32: 2e-5}
# Far out maps are ill-conditioned, in torch as on the device: this many times torch's own error is allowed on top.
_OF_TORCH = 4.0
# What is smaller than this is compared absolutely: saturated maps have gradients of 1e-300.
_FLOOR = 1e-3
_COTANGENT, _STREAMS = 2, 3
_DIM = 8


def device() -> str:
    """Where pairs run here: the GPU, or the CPU in Triton's interpreter.

    Raises:
        BackendUnavailableError: there is neither; the message says what to set.
    """
    if interpreting():
        if isinstance(constrain._constrain_forward_kernel, InterpretedFunction):
            return "cpu"
        raise BackendUnavailableError(
            "TRITON_INTERPRET=1 was set after triton was imported, which is too late: set it in the environment of "
            "pytest, or in the first lines of conftest.py"
        )
    if torch.cuda.is_available():
        return "cuda"
    raise BackendUnavailableError(
        "device pairs run on a GPU, or on the CPU in Triton's interpreter: set TRITON_INTERPRET=1 in the environment "
        "of pytest, or os.environ['TRITON_INTERPRET'] = '1' in conftest.py, before triton is imported"
    )


def dtypes() -> tuple[torch.dtype, ...]:
    """What pairs are checked in: float32, and float64 in the interpreter."""
    return (torch.float64, torch.float32) if device() == "cpu" else (torch.float32,)


def check_forward(subject: Map, dtype: torch.dtype, scale: float) -> None:
    """The value is the torch map's, ties and zero coordinates included."""
    for smooth in (False, True):
        theta = _case(subject, 1, 7, dtype, scale, smooth).theta
        found = _forward(subject, theta)
        _agree(subject, f"the value at scale {scale:g}", found, subject.forward(theta), subject.forward(theta.double()))


def check_backward(subject: Map, dtype: torch.dtype, scale: float) -> None:
    """The gradient is that of the torch map, for random cotangents.

    At ties a maximum has many gradients, so that coordinates are in general position here.
    """
    case = _case(subject, 2, 7, dtype, scale)
    theta, dH = case.theta, _cotangent(subject, case)
    found = _backward(subject, theta, dH)
    narrow, wide = _reference_gradient(subject, theta, dH), _reference_gradient(subject, theta.double(), dH.double())
    if scale == 1.0 and not is_constant(subject, device()):  # n = 1 leaves many maps one matrix
        _say(subject, "the gradient of the torch map at scale 1 is not zero", bool(wide.abs().amax() > 0))
    _agree(subject, f"the gradient at scale {scale:g}", found, narrow, wide)


def check_tokens(subject: Map) -> None:
    """Any number of tokens: none, one, three, and more than two programs hold."""
    dtype, P = dtypes()[0], subject.num_coordinates
    for count in (0, 1, 3, 2 * constrain.tokens_per_program(subject.n, P) + 3):
        case = _case(subject, 3, count, dtype)
        theta, dH = case.theta, _cotangent(subject, case)
        H, gradient = _forward(subject, theta), _backward(subject, theta, dH)
        shape = (count, *subject.value_shape)
        _say(subject, f"the value of {count} tokens has the shape {shape}", H.shape == shape)
        _say(subject, f"the gradient of {count} tokens has the shape {(count, P)}", gradient.shape == (count, P))
        if count:
            expected = _reference_gradient(subject, theta.double(), dH.double())
            _agree(subject, f"{count} values", H, subject.forward(theta), subject.forward(theta.double()))
            _agree(subject, f"the gradient of {count} tokens", gradient, expected.to(dtype), expected)


def check_bad_tokens(subject: Map) -> None:
    """A token with a NaN among its coordinates spoils its own value and nobody else's value or gradient."""
    case = _case(subject, 4, 5, dtypes()[0])
    theta, dH = case.theta, _cotangent(subject, case)
    good = _forward(subject, theta), _backward(subject, theta, dH)
    others = [0, 1, 3, 4]
    last = subject.num_coordinates - 1
    for k in sorted({0, last // 2, last}):
        bad = theta.clone()
        bad[2, k] = math.nan
        H, gradient = _forward(subject, bad), _backward(subject, bad, dH)
        _say(subject, f"what coordinate {k} = NaN is mapped to is not finite", not bool(H[2].isfinite().all()))
        same = torch.equal(H[others], good[0][others]) and torch.equal(gradient[others], good[1][others])
        _say(subject, f"NaN in coordinate {k} of a token leaves the bits of the other tokens alone", same)


def check_repeatable(subject: Map) -> None:
    """Two runs give the same bits."""
    case = _case(subject, 5, 7, dtypes()[-1])
    theta, dH = case.theta, _cotangent(subject, case)
    _say(subject, "two forward runs give the same bits", torch.equal(*(_forward(subject, theta) for _ in range(2))))
    same = torch.equal(*(_backward(subject, theta, dH) for _ in range(2)))
    _say(subject, "two backward runs give the same bits", same)


def _case(subject: Map, seed: int, count: int, dtype: torch.dtype, scale: float = 1.0, smooth: bool = True) -> Case:
    return Case.of(subject, seed, scale, (count,), dtype, device(), smooth=smooth)


def _cotangent(subject: Map, case: Case) -> Tensor:
    return case.normal(case.count, *subject.value_shape, stream=_COTANGENT)


def check_layer(subject: Map) -> None:
    """A layer on ``backend="triton"`` is the layer on ``backend="torch"``: output, and every gradient."""
    dtype = dtypes()[0]
    fused = _layer(subject).to(device(), dtype)
    reference = copy.deepcopy(fused).double()
    reference.config = dataclasses.replace(fused.config, backend="torch")
    case = _case(subject, 6, 5, dtype)
    x, cotangent = (case.normal(5, subject.n, _DIM, stream=stream) for stream in (_STREAMS, _COTANGENT))
    with _poisoned():
        found = _outcome(fused, x, cotangent)
    expected = _outcome(reference, x.double(), cotangent.double())
    for name, want in expected.items():
        _say(subject, f"{name} of the layer on torch is not zero", bool(want.abs().amax() > 0))
        _agree(subject, f"{name} of the layer", found[name], want.to(dtype), want)


class _Branch(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return torch.tanh(1.5 * u + u.roll(1, -1) ** 2)


def _layer(subject: Map) -> HyperConnection:
    """A layer in general position, whose coefficients depend on the token."""
    field = "manifold"
    if isinstance(subject, Gate):
        field = "pre_gate" if subject.reads else "post_gate"
    config = HyperConnectionConfig(**cast(Any, {"streams": subject.n, field: subject, "backend": "triton"}))
    block = HyperConnection(_Branch(), dim=_DIM, config=config, layer_index=1)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator).to(parameter)
            parameter.add_(noise / (parameter.shape[1] ** 0.5 if name == "fn" else 1.0))
    return block


def _outcome(block: HyperConnection, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    out = block(x)
    leaves = {"x": x, **dict(block.named_parameters())}
    gradients = torch.autograd.grad(out, list(leaves.values()), cotangent)
    named = {f"the gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"the output": out.detach(), **named}


def _forward(subject: Map, theta: Tensor) -> Tensor:
    pair = cast(DevicePair, subject.kernel)  # kernel_laws keeps those without one away
    with _poisoned():
        if isinstance(subject, Gate):
            return coefficients_forward(*_as_raw(subject, theta))[0]
        return constrain.constrain_forward(theta, pair, subject.n)


def _backward(subject: Map, theta: Tensor, dH: Tensor) -> Tensor:
    pair = cast(DevicePair, subject.kernel)
    with _poisoned():
        if isinstance(subject, Gate):
            raw, base, scale, spec = _as_raw(subject, theta)
            rest = theta.new_zeros(theta.shape[0], subject.n), theta.new_zeros(theta.shape[0], subject.n, subject.n)
            return coefficients_backward(raw, base, scale, dH, *rest, spec)[0][:, : subject.num_coordinates]
        return constrain.constrain_backward(theta, dH, pair, subject.n)


def _as_raw(gate: Gate, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, CoefficientSpec]:
    """Projections of unit root mean square whose read logits are ``theta``: the coefficient step, seen as a gate."""
    n, pair = gate.n, cast(DevicePair, gate.kernel)
    sizes = (gate.num_coordinates, n)
    raw = torch.cat([theta, theta.new_zeros(theta.shape[0], n), theta.new_ones(theta.shape[0], 1)], -1)
    spec = CoefficientSpec(IDENTITY.key, n, sizes, pair.key, LINEAR.key, 0.0, 0.0, 0.0, False, 1, False)
    return raw, theta.new_zeros(sum(sizes)), theta.new_ones(2), spec


def _reference_gradient(subject: Map, theta: Tensor, dH: Tensor) -> Tensor:
    theta = theta.detach().requires_grad_()
    return gradient_of((subject.forward(theta) * dH).sum(), theta)


@contextmanager
def _poisoned() -> Iterator[None]:
    # The interpreter computes with numpy, which warns of every infinity on its way; the numbers are what is checked.
    with poisoned_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _agree(subject: Map, what: str, found: Tensor, torchs: Tensor, expected: Tensor) -> None:
    """The device's numbers are torch's: near the float64 result, or as near to it as torch is in the same dtype."""
    limit = LIMITS[found.dtype]
    if not expected.numel():
        return
    largest = max(float(expected.detach().abs().amax()), _FLOOR)
    allowed = limit * largest + _OF_TORCH * float((torchs.detach().double() - expected.detach()).abs().amax())
    error = float((found.double() - expected.detach()).abs().amax())
    if not error <= allowed:  # NaN, too
        raise AssertionError(
            f"{expression(subject)} in {found.dtype} on {found.device}: {what} is off by {error:.2g} where the torch "
            f"map has {largest:.2g}; allowed {allowed:.2g}"
        )


def _say(subject: Map, fact: str, holds: bool) -> None:
    if not holds:
        raise AssertionError(f"{expression(subject)}: failed: {fact}")


__all__ = ["LIMITS", "SCALES", "check_backward", "check_bad_tokens", "check_forward", "check_layer"]
__all__ += ["check_repeatable", "check_tokens", "device", "dtypes"]
