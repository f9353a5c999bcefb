"""What a device pair promises: to be the manifold's own torch map, on the device, token by token.

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
from typing import cast

import torch
from torch import Tensor, nn
from triton.runtime.interpreter import InterpretedFunction

from hyperconn import HyperConnection, HyperConnectionConfig, manifolds
from hyperconn.backends import BackendUnavailableError, interpreting
from hyperconn.kernels.fused.constrain import constrain_backward, constrain_forward, tokens_per_program
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.poison import poisoned_memory
from hyperconn.manifolds import Manifold
from hyperconn.testing.case import Case
from hyperconn.testing.law import SCALES
from hyperconn.testing.laws.tools import gradient_of, is_constant
from hyperconn.testing.reproduce import expression

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
        if isinstance(_a_kernel(), InterpretedFunction):
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


def _a_kernel() -> object:
    from hyperconn.kernels.fused import constrain

    return constrain._constrain_forward_kernel


def dtypes() -> tuple[torch.dtype, ...]:
    """What pairs are checked in: float32, and float64 in the interpreter."""
    return (torch.float64, torch.float32) if device() == "cpu" else (torch.float32,)


# ------------------------------------------------------------------------------------------------------ the pair


def check_forward(manifold: Manifold, dtype: torch.dtype, scale: float) -> None:
    """H is the torch map's, ties and zero coordinates included."""
    case = Case(1, scale, (7,), dtype, device())
    for theta in (case.coordinates(manifold), case.smooth_coordinates(manifold)):
        H = _forward(manifold, theta)
        _agree(manifold, f"H at scale {scale:g}", H, manifold.forward(theta), manifold.forward(theta.double()))


def check_backward(manifold: Manifold, dtype: torch.dtype, scale: float) -> None:
    """The gradient is that of the torch map, for random cotangents.

    At ties a maximum has many gradients, so that coordinates are in general position here.
    """
    case = Case(2, scale, (7,), dtype, device())
    theta = case.smooth_coordinates(manifold)
    dH = case.normal(7, manifold.n, manifold.n, stream=_COTANGENT)
    found = _backward(manifold, theta, dH)
    narrow, wide = _reference_gradient(manifold, theta, dH), _reference_gradient(manifold, theta.double(), dH.double())
    if scale == 1.0 and not is_constant(manifold, device()):  # n = 1 leaves many maps one matrix
        _say(manifold, "the gradient of the torch map at scale 1 is not zero", bool(wide.abs().amax() > 0))
    _agree(manifold, f"the gradient at scale {scale:g}", found, narrow, wide)


def check_tokens(manifold: Manifold) -> None:
    """Any number of tokens: none, one, three, and more than two programs hold."""
    dtype, P, n = dtypes()[0], manifold.num_coordinates, manifold.n
    for count in (0, 1, 3, 2 * tokens_per_program(n, P) + 3):
        case = Case(3, 1.0, (count,), dtype, device())
        theta, dH = case.smooth_coordinates(manifold), case.normal(count, n, n, stream=_COTANGENT)
        H, gradient = _forward(manifold, theta), _backward(manifold, theta, dH)
        _say(manifold, f"H of {count} tokens has the shape {(count, n, n)}", H.shape == (count, n, n))
        _say(manifold, f"the gradient of {count} tokens has the shape {(count, P)}", gradient.shape == (count, P))
        if count:
            expected = _reference_gradient(manifold, theta.double(), dH.double())
            wide = manifold.forward(theta.double())
            _agree(manifold, f"H of {count} tokens", H, manifold.forward(theta), wide)
            _agree(manifold, f"the gradient of {count} tokens", gradient, expected.to(dtype), expected)


def check_bad_tokens(manifold: Manifold) -> None:
    """A token with a NaN among its coordinates spoils its own H and nobody else's H or gradient."""
    case = Case(4, 1.0, (5,), dtypes()[0], device())
    theta, dH = case.smooth_coordinates(manifold), case.normal(5, manifold.n, manifold.n, stream=_COTANGENT)
    good = _forward(manifold, theta), _backward(manifold, theta, dH)
    others = [0, 1, 3, 4]
    last = manifold.num_coordinates - 1
    for k in sorted({0, last // 2, last}):
        bad = theta.clone()
        bad[2, k] = math.nan
        H, gradient = _forward(manifold, bad), _backward(manifold, bad, dH)
        _say(manifold, f"H of a token whose coordinate {k} is NaN is not finite", not bool(H[2].isfinite().all()))
        same = torch.equal(H[others], good[0][others]) and torch.equal(gradient[others], good[1][others])
        _say(manifold, f"NaN in coordinate {k} of a token leaves the bits of the other tokens alone", same)


def check_repeatable(manifold: Manifold) -> None:
    """Two runs give the same bits."""
    case = Case(5, 1.0, (7,), dtypes()[-1], device())
    theta, dH = case.smooth_coordinates(manifold), case.normal(7, manifold.n, manifold.n, stream=_COTANGENT)
    _say(manifold, "two forward runs give the same bits", torch.equal(*(_forward(manifold, theta) for _ in range(2))))
    same = torch.equal(*(_backward(manifold, theta, dH) for _ in range(2)))
    _say(manifold, "two backward runs give the same bits", same)


# ----------------------------------------------------------------------------------------------------- the layer


def check_layer(manifold: Manifold) -> None:
    """A layer on ``backend="triton"`` is the layer on ``backend="torch"``: output, and every gradient."""
    dtype = dtypes()[0]
    case = Case(6, 1.0, (5,), dtype, device())
    with _registered(type(manifold)):
        fused = _layer(manifold, case).to(device(), dtype)
        reference = copy.deepcopy(fused).double()
        reference.config = dataclasses.replace(fused.config, backend="torch")
        x = case.normal(5, manifold.n, _DIM, stream=_STREAMS)
        cotangent = case.normal(5, manifold.n, _DIM, stream=_COTANGENT)
        with _poisoned():
            found = _outcome(fused, x, cotangent)
        expected = _outcome(reference, x.double(), cotangent.double())
    for name, want in expected.items():
        _say(manifold, f"{name} of the layer on torch is not zero", bool(want.abs().amax() > 0))
        _agree(manifold, f"{name} of the layer", found[name], want.to(dtype), want)


class _Branch(nn.Module):
    def forward(self, u: Tensor) -> Tensor:
        return torch.tanh(1.5 * u + u.roll(1, -1) ** 2)


def _layer(manifold: Manifold, case: Case) -> HyperConnection:
    """A layer in general position, whose coefficients depend on the token."""
    config = HyperConnectionConfig(streams=manifold.n, manifold=manifold, backend="triton")
    block = HyperConnection(_Branch(), dim=_DIM, config=config, layer_index=1)
    with torch.no_grad():
        for stream, (name, parameter) in enumerate(block.named_parameters(), start=_STREAMS + 1):
            noise = case.normal(*parameter.shape, stream=stream).to(parameter)
            parameter.add_(noise / (parameter.shape[1] ** 0.5 if name == "fn" else 1.0))
    return block


def _outcome(block: HyperConnection, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    out = block(x)
    leaves = {"x": x, **dict(block.named_parameters())}
    gradients = torch.autograd.grad(out, list(leaves.values()), cotangent)
    named = {f"the gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {"the output": out.detach(), **named}


@contextmanager
def _registered(cls: type[Manifold]) -> Iterator[None]:
    """Layers take manifolds by name: lend the class its own name where it is not registered."""
    if "name" not in vars(cls):
        raise ValueError(f'{cls.__name__} has no name of its own: say name = "..." in the class')
    if cls.name in manifolds.available() and manifolds.get(cls.name) is cls:
        yield
        return
    manifolds.register(cls.name)(cls)
    try:
        yield
    finally:
        manifolds.unregister(cls.name)


# ------------------------------------------------------------------------------------------------------- running


def _forward(manifold: Manifold, theta: Tensor) -> Tensor:
    with _poisoned():
        return constrain_forward(theta, _pair(manifold), manifold.n)


def _backward(manifold: Manifold, theta: Tensor, dH: Tensor) -> Tensor:
    with _poisoned():
        return constrain_backward(theta, dH, _pair(manifold), manifold.n)


def _pair(manifold: Manifold) -> DevicePair:
    return cast(DevicePair, manifold.kernel)  # kernel_laws keeps those without one away


def _reference_gradient(manifold: Manifold, theta: Tensor, dH: Tensor) -> Tensor:
    theta = theta.detach().requires_grad_()
    return gradient_of((manifold.forward(theta) * dH).sum(), theta, create_graph=False)


@contextmanager
def _poisoned() -> Iterator[None]:
    # The interpreter computes with numpy, which warns of every infinity on its way; the numbers are what is checked.
    with poisoned_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


def _agree(manifold: Manifold, what: str, found: Tensor, torchs: Tensor, expected: Tensor) -> None:
    """The device's numbers are torch's: near the float64 result, or as near to it as torch is in the same dtype."""
    limit = LIMITS[found.dtype]
    if not expected.numel():
        return
    largest = max(float(expected.detach().abs().amax()), _FLOOR)
    allowed = limit * largest + _OF_TORCH * float((torchs.detach().double() - expected.detach()).abs().amax())
    error = float((found.double() - expected.detach()).abs().amax())
    if not error <= allowed:  # NaN, too
        raise AssertionError(
            f"{expression(manifold)} in {found.dtype} on {found.device}: {what} is off by {error:.2g} where the torch "
            f"map has {largest:.2g}; allowed {allowed:.2g}"
        )


def _say(manifold: Manifold, fact: str, holds: bool) -> None:
    if not holds:
        raise AssertionError(f"{expression(manifold)}: failed: {fact}")


__all__ = [
    "LIMITS",
    "SCALES",
    "check_backward",
    "check_bad_tokens",
    "check_forward",
    "check_layer",
    "check_repeatable",
    "check_tokens",
    "device",
    "dtypes",
]
