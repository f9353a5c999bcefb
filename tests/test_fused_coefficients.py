"""The fused coefficient step, against the gates and manifolds in torch."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_cases import DEVICE, EXACT, EXACT_DTYPE, exhaustive, relative_error
from hyperconn import gates
from hyperconn.kernels.fused.coefficients import (
    CoefficientSpec,
    coefficients_backward,
    coefficients_forward,
    fused_coefficients,
)
from hyperconn.kernels.fused.launch import Launch, recording
from hyperconn.kernels.fused.maps.trivial import IDENTITY, UNCONSTRAINED
from hyperconn.kernels.fused.pair import DevicePair
from hyperconn.kernels.fused.tiles import flat_from_square, inside_square, square_from_flat
from hyperconn.kernels.passes.normalisation import inverse_rms
from hyperconn.kernels.poison import poisoned_memory
from hyperconn.manifolds import Identity, Unconstrained

WIDTH = 37
FUSED = [gate for gate in gates.BUILT_IN if gate(n=2).kernel is not None]
READ_GATES, WRITE_GATES = ([gate.name for gate in FUSED if getattr(gate, role)] for role in ("reads", "writes"))
BY_KEY = {gate(n=2).kernel.key: gate for gate in FUSED}
GAIN = 1.7
Inputs = tuple[Tensor, Tensor, Tensor]


def spec_of(n: int, pre: str = "sigmoid", post: str = "double_sigmoid", identity: bool = False) -> CoefficientSpec:
    """Two groups of residual coordinates where there are enough of them, so that their border matters."""
    residual = () if identity else ((n * n,) if n == 1 else (n, n * n - n))
    read, write = gates.make(pre, n=n), gates.make(post, n=n)
    sizes = (read.num_coordinates, write.num_coordinates, *residual)
    key = (IDENTITY if identity else UNCONSTRAINED).key
    return CoefficientSpec(key, n, sizes, read.kernel.key, write.kernel.key, 1e-6, 1e-4, 1e-3, False, WIDTH, False)


def inputs_of(spec: CoefficientSpec, T: int, dtype: torch.dtype = EXACT_DTYPE) -> Inputs:
    raw = torch.randn(T, spec.coordinates + 1, dtype=torch.float64)
    raw[:, -1] = 3.0 * WIDTH * torch.rand(T, dtype=torch.float64)
    base = torch.randn(spec.coordinates, dtype=torch.float64)
    scale = torch.randn(len(spec.sizes), dtype=torch.float64) + 2.0
    return tuple(part.to(device=DEVICE, dtype=dtype) for part in (raw, base, scale))


def reference(raw: Tensor, base: Tensor, scale: Tensor, spec: CoefficientSpec) -> Inputs:
    """What the layer does, step by step; H is unconstrained or, without coordinates, the identity."""
    z = raw[:, :-1] * inverse_rms(raw[:, -1:], spec.width, spec.norm_eps, spec.norm_eps_outside)
    parts = zip(z.split(spec.sizes, -1), scale.unbind(), base.split(spec.sizes), strict=True)
    pre, post, *residual = [b + s * part for part, s, b in parts]
    manifold = Unconstrained(n=spec.n) if residual else Identity(n=spec.n)
    H = manifold(torch.cat([pre.new_empty(len(pre), 0), *residual], -1))
    H = H.mT if spec.transposed else H
    read, write = (BY_KEY[key](n=spec.n) for key in (spec.pre_key, spec.post_key))
    return read(pre) + spec.pre_eps, GAIN * write(post) + spec.post_eps, H


def reference_backward(inputs: Inputs, cotangents: Inputs, spec: CoefficientSpec) -> list[Tensor]:
    leaves = [value.detach().requires_grad_() for value in inputs]
    # The identity alone does not depend on anything.
    pairs = [pair for pair in zip(reference(*leaves, spec), cotangents, strict=True) if pair[0].requires_grad]
    return list(torch.autograd.grad([result for result, _ in pairs], leaves, [cotangent for _, cotangent in pairs]))


def check(spec: CoefficientSpec, T: int, inputs: Inputs | None = None, tolerance: float = EXACT) -> list[Tensor]:
    """The three results and the three gradients are those of the reference in float64; returns them."""
    inputs = inputs_of(spec, T) if inputs is None else inputs
    wide = tuple(part.double() for part in inputs)
    expected = reference(*wide, spec)
    cotangents = tuple(torch.randn_like(part).to(inputs[0]) for part in expected)
    with poisoned_memory():
        found = [*coefficients_forward(*inputs, spec, GAIN), *coefficients_backward(*inputs, *cotangents, spec, GAIN)]
        again = [*coefficients_forward(*inputs, spec, GAIN), *coefficients_backward(*inputs, *cotangents, spec, GAIN)]
    wanted = [*expected, *reference_backward(wide, tuple(part.double() for part in cotangents), spec)]
    for actual, other, want in zip(found, again, wanted, strict=True):
        assert actual.dtype == inputs[0].dtype and torch.equal(actual, other)
        assert relative_error(actual, want) < tolerance
    # The square sum's column is small beside the others: hold it against its own size.
    assert relative_error(found[3][:, -1], wanted[3][:, -1]) < tolerance
    return found


@pytest.mark.parametrize("n", (1, 2, 3, 4, pytest.param(5, marks=exhaustive), pytest.param(8, marks=exhaustive)))
def test_forward_and_backward(n: int) -> None:
    check(spec_of(n), 1)
    check(dataclasses.replace(spec_of(n, identity=n == 4), transposed=True), 3)
    check(spec_of(n), 3, inputs_of(spec_of(n), 3, torch.float32), 2e-5)


GATE_PAIRS = tuple(itertools.zip_longest(READ_GATES, WRITE_GATES, fillvalue="linear"))
ALL_PAIRS = (
    *((3, *pair) for pair in GATE_PAIRS),
    *(pytest.param(n, *pair, marks=exhaustive) for n in (1, 4) for pair in GATE_PAIRS),
    *(pytest.param(n, *pair, marks=exhaustive) for n in (2, 16) for pair in itertools.product(READ_GATES, WRITE_GATES)),
)


@pytest.mark.parametrize(("n", "pre", "post"), ALL_PAIRS)
def test_every_gate(n: int, pre: str, post: str) -> None:
    check(spec_of(n, pre, post), 5)


def test_every_gate_of_one_weight_a_stream_has_device_functions() -> None:
    assert {gate.name for gate in gates.BUILT_IN} - {gate.name for gate in FUSED} == {"matrix", "mean", "ones"}
    assert {pre for pre, _ in GATE_PAIRS} == set(READ_GATES) and {post for _, post in GATE_PAIRS} == set(WRITE_GATES)
    assert gates.make("sigmoid", n=17).kernel is None


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")  # numpy's
@pytest.mark.parametrize(("eps", "outside"), [(0.0, False), (0.0, True), (0.5, True), (1e-3, False)])
def test_a_token_of_zeros(eps: float, outside: bool) -> None:
    """It predicts nothing: its coefficients are those of base, and without an eps it or a tiny one has no gradient."""
    spec = dataclasses.replace(spec_of(3), norm_eps=eps, norm_eps_outside=outside)
    inputs = inputs_of(spec, 4)
    inputs[0][1:3] = inputs[0].new_tensor([[0.0], [1e-30]])
    pre, post, H, draw, *_ = check(spec, 4, inputs)
    zeros = inputs[0].new_zeros(1, spec.coordinates + 1)
    alone = reference(zeros, *inputs[1:], dataclasses.replace(spec, norm_eps=1.0))
    for actual, of_base in zip((pre, post, H), alone, strict=True):
        assert relative_error(actual[1:2], of_base) < EXACT
    assert bool(draw[1:3].any()) == (eps > 0)


def test_a_scheduled_gain_compiles_nothing() -> None:
    """It is an argument of the run, not of the compilation, so a new value is the same kernel."""
    spec, launches = spec_of(4), []
    inputs = inputs_of(spec, 3)
    for gain in (2.0, 1.5, 1.0, 0.3):
        with recording() as recorded:
            results = coefficients_forward(*inputs, spec, gain)
            coefficients_backward(*inputs, *results, spec, gain)
        launches.append(recorded)
    for recorded in launches:
        assert [launch.constants for launch in recorded] == [launch.constants for launch in launches[0]]
    assert [r[0].arguments["post_gain"] for r in launches] == [2.0, 1.5, 1.0, 0.3]
    assert all(isinstance(r[1].arguments["post_gain"], float) for r in launches)


@triton.jit
def _messy_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return tl.where(inside_square(n, N), square_from_flat(theta, n, N), float("nan"))


@triton.jit
def _messy_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    p = tl.arange(0, theta.shape[1])
    return tl.where(p[None, :] < n * n, flat_from_square(dH, n, N, theta.shape[1]), float("nan"))


def test_what_a_pair_leaves_in_the_padding_is_ignored() -> None:
    messy = DevicePair(_messy_forward, _messy_backward)
    check(dataclasses.replace(spec_of(3), pair_key=messy.key), 5)


@pytest.mark.parametrize(("most", "programs", "tiles"), ((2, 2, 3), (4096, 6, 1)))
def test_several_programs_and_several_tiles_a_program(
    most: int, programs: int, tiles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hyperconn.kernels.fused.coefficients._MOST_PROGRAMS", most)
    launched = launches(spec_of(4), 21)[0]
    assert launched.constants["BT"] == 4 and (launched.grid, launched.arguments["tiles"]) == ((programs,), tiles)
    check(spec_of(4), 21)


def launches(spec: CoefficientSpec, T: int) -> list[Launch]:
    """Of a backward pass."""
    with recording() as recorded:
        coefficients_backward(*inputs_of(spec, T), *(torch.zeros(T, *s) for s in outputs_of(spec)), spec)
    return recorded


def outputs_of(spec: CoefficientSpec) -> list[tuple[int, ...]]:
    return [(spec.n,), (spec.n,), (spec.n, spec.n)]


def test_many_partial_sums() -> None:
    """More programs than one step of the last sum adds."""
    sums = launches(spec_of(16), 9)[1]
    assert sums.arguments["programs"] == 9 > sums.constants["ROWS"]
    check(spec_of(16), 9)


@pytest.mark.parametrize("name", [gate.name for gate in FUSED])
def test_gates_of_huge_logits(name: str) -> None:
    """Neither an overflow nor a lost tail: σ(-80) is 1.8e-35, not 0."""
    n = 2
    pre, post = (name, "linear") if name in READ_GATES else ("linear", name)
    spec = dataclasses.replace(spec_of(n, pre, post), norm_eps=1.0, pre_eps=0.0, post_eps=0.0)
    raw, base, scale = inputs_of(spec, 1, torch.float32)
    base, raw[:], scale[:] = base.repeat(1), 0.0, 0.0
    logits = torch.tensor([-80.0, 90.0, 80.0, -1e4] if "_softmax" in name else [-80.0, 1e4], device=DEVICE)
    start = 0 if name in READ_GATES else spec.sizes[0]
    base[start : start + logits.numel()] = logits
    weights = coefficients_forward(raw, base, scale, spec)[0 if name in READ_GATES else 1][0]
    expected = gates.make(name, n=n)(logits.double())
    torch.testing.assert_close(weights.double(), expected, rtol=3e-5, atol=1e-38)
    cotangents = tuple(torch.ones(1, *s, device=DEVICE) for s in outputs_of(spec))
    assert all(part.isfinite().all() for part in coefficients_backward(raw, base, scale, *cotangents, spec))


def test_autograd_with_strided_inputs_and_missing_cotangents() -> None:
    spec = spec_of(3)
    raw, base, scale = inputs_of(spec, 5)
    strided = raw.mT.contiguous().mT.requires_grad_()
    assert not strided.is_contiguous()
    base.requires_grad_()
    scale.requires_grad_()
    pre, _, H = fused_coefficients(strided, base, scale, spec, GAIN)
    # post is left out, and the gradient of H comes as an expanded tensor.
    dpre, dH = torch.randn_like(pre), torch.randn(3, 3, dtype=raw.dtype, device=DEVICE).expand(5, 3, 3)
    actual = torch.autograd.grad([pre, H], [strided, base, scale], [dpre, dH])
    expected = reference_backward((raw, base, scale), (dpre, torch.zeros_like(dpre), dH), spec)
    for one, two in zip(actual, expected, strict=True):
        assert relative_error(one, two) < EXACT


@pytest.mark.parametrize("T", (0, 3))
def test_operators(T: int) -> None:
    spec = spec_of(3)
    raw, *inputs = inputs_of(spec, T)
    raw = raw.mT.contiguous().mT
    operators, cotangents = torch.ops.hyperconn, (torch.randn(T, *s).to(raw) for s in outputs_of(spec))
    torch.library.opcheck(operators.coefficients_forward.default, (raw, *inputs, GAIN, *spec.arguments()))
    torch.library.opcheck(operators.coefficients_backward.default, (raw, *inputs, *cotangents, GAIN, *spec.arguments()))


def test_what_does_not_fit_is_named() -> None:
    spec = spec_of(3)
    raw, base, scale = inputs_of(spec, 5)
    with pytest.raises(ValueError, match=r"takes raw of shape \[5, 16\] .*\[3, 3, 3, 6\], got \[5, 15\]"):
        fused_coefficients(raw[:, 1:], base, scale, spec)
    with pytest.raises(ValueError, match=r"takes base of shape \[15\]"):
        fused_coefficients(raw, base[1:], scale, spec)
    with pytest.raises(ValueError, match=r"takes scale of shape \[4\]"):
        fused_coefficients(raw, base, scale[1:], spec)
    with pytest.raises(ValueError, match=r"one dtype and device; .* scale is torch.bfloat16.*\.to\(raw\)"):
        fused_coefficients(raw, base, scale.bfloat16(), spec)
    with pytest.raises(ValueError, match="takes 1 to 16 streams, got n=17; use backend='torch'"):
        fused_coefficients(raw, base, scale, dataclasses.replace(spec, n=17))
