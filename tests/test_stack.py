"""A stack of hyper-connections computes what its layers compute one by one, in fewer passes; and hand-overs."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused_cases import (
    DEVICE,
    EXACT,
    EXACT_DTYPE,
    both_backends,
    check_gradients,
    counting_launches,
    exhaustive,
    noting_saved,
    relative_error,
)
from hyperconn import Handover, HyperConnection, HyperConnectionStack
from hyperconn.kernels.fused.launch import recording
from layer_cases import DIM, Branch, make_block

# Quick in the interpreter: predicted, or the same for every token.
QUICK: dict[str, Any] = {"preset": "kromhc", "n": 2}
STATIC = {**QUICK, "predictor": "static"}

HC, IHC, JPMHC = ({"preset": preset, "n": 2} for preset in ("hc", "ihc", "jpmhc"))

KINDS: dict[str, tuple[dict[str, Any], ...]] = {
    "one": (QUICK,),
    "two": (QUICK, QUICK),
    "mixed": (STATIC, QUICK, HC, STATIC, JPMHC, IHC),
    "fractions": ({"preset": "fc", "n": 2},) * 3,
}


def layers_of(kind: str, backend: str = "torch", branch: Callable[[], nn.Module] = Branch) -> list[HyperConnection]:
    """Layers in general position, each with other numbers."""
    layers = [make_block(**options, backend=backend, branch=branch()) for options in KINDS[kind]]
    for seed, layer in enumerate(layers):
        generator = torch.Generator().manual_seed(seed)
        for parameter in layer.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return [layer.to(DEVICE, EXACT_DTYPE) for layer in layers]


def streams(*batch: int, dtype: torch.dtype = EXACT_DTYPE) -> Tensor:
    return torch.randn(*batch, QUICK["n"], DIM, dtype=torch.float64).to(DEVICE, dtype)


def one_by_one(layers: list[HyperConnection], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    for layer in layers:
        x = layer(x, *args, **kwargs)
    return x


@both_backends
@pytest.mark.parametrize("kind", ("mixed", "fractions"))
def test_equals_its_layers(kind: str, backend: str) -> None:
    layers = layers_of(kind, "torch" if kind == "fractions" else backend)  # they have no kernels
    x = torch.randn(1, 3, *layers[0].stream_shape, dtype=EXACT_DTYPE, device=DEVICE).requires_grad_()
    stack = HyperConnectionStack(layers)
    check_gradients(stack(x), one_by_one(layers, x), [x, *stack.parameters()])


@both_backends
def test_narrow_streams(backend: str) -> None:
    """Between layers the streams are rounded where they are stored, and the projection sees them rounded."""
    layers = [layer.float() for layer in layers_of("two", backend, nn.Identity)]
    stack, x = HyperConnectionStack(layers), streams(4, dtype=torch.bfloat16).requires_grad_()
    fused, plain = stack(x), one_by_one(layers, x)
    assert fused.dtype == plain.dtype == torch.bfloat16
    handed = layers[0](x, into=layers[1])
    assert handed.streams.dtype == torch.bfloat16 and torch.equal(handed.streams, layers[0](x))
    # The very same roundings, so to the accuracy of float32 sums and hardly ever a different bfloat16.
    assert (fused != plain).double().mean() <= 0.05
    check_gradients(fused, plain, [x, *stack.parameters()], tolerance=2e-2)


@both_backends
def test_mixed_backends_and_dtypes(backend: str) -> None:
    """A layer on the other backend, or with wider parameters, takes the streams in by itself."""
    first, second, third = layers_of("two", backend) + layers_of("one", backend)
    second.config = dataclasses.replace(second.config, backend="torch" if backend == "triton" else "triton")
    x = streams(3).requires_grad_()
    layers = [first, second, third]
    with counting_launches() as counts:
        out = HyperConnectionStack(layers)(x)
    on_triton = [layer.config.backend for layer in layers].count("triton")
    assert counts["_coefficients_forward_kernel"] == counts["_write_kernel"] == on_triton
    check_gradients(out, one_by_one(layers, x), leaves_and(x, layers))
    if DEVICE == "cpu":  # float64 is for the interpreter
        x = streams(3, dtype=torch.float32).requires_grad_()
        layers = [copy.deepcopy(first).float(), third]
        check_gradients(HyperConnectionStack(layers)(x), one_by_one(layers, x), leaves_and(x, layers), tolerance=1e-4)


def leaves_and(x: Tensor, layers: list[HyperConnection]) -> list[Tensor]:
    return [x, *(parameter for layer in layers for parameter in layer.parameters())]


@both_backends
def test_an_empty_batch(backend: str) -> None:
    stack = HyperConnectionStack(layers_of("mixed", backend))
    x = streams(2, 0, 3).requires_grad_()
    gradients = torch.autograd.grad(stack(x).sum(), [x, *stack.parameters()])
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_an_empty_stack_is_the_identity() -> None:
    x = streams(3)
    assert HyperConnectionStack([])(x) is x and len(HyperConnectionStack([])) == 0


@both_backends
@pytest.mark.parametrize("mode", (torch.no_grad, torch.inference_mode))
def test_inference_saves_nothing(backend: str, mode: Callable[[], Any]) -> None:
    stack, x = HyperConnectionStack(layers_of("two", backend)), streams(3)
    with noting_saved() as saved:
        with mode():
            out = stack(x)
        assert saved == [] and not out.requires_grad
        expected = stack(x)
    assert saved and relative_error(out.clone(), expected.detach()) < EXACT


def test_launches_of_a_sublayer() -> None:
    """Three kernels a sublayer forward, four backward and one to sum partial gradients of the parameters."""
    counts = []
    for depth in (2, 3):
        stack = HyperConnectionStack([layer for _ in range(depth) for layer in layers_of("one", "triton")])
        x = streams(3).requires_grad_()
        with recording() as forward:
            out = stack(x)
        with recording() as backward:
            out.sum().backward()
        counts.append([Counter(launch.name for launch in launches) for launches in (forward, backward)])
    (forward, backward), (more_forward, more_backward) = counts
    assert more_forward - forward == Counter(
        {"_write_project_kernel": 1, "_coefficients_forward_kernel": 1, "_read_kernel": 1}
    )
    assert more_backward - backward == Counter(
        {
            "_streams_backward_kernel": 1,
            "_mixing_backward_kernel": 1,
            "_write_backward_kernel": 1,
            "_coefficients_backward_kernel": 1,
            "_parameter_sums_kernel": 1,
        }
    )
    # The ends: one projection before the first layer, one plain write after the last.
    assert forward["_project_kernel"] == forward["_write_kernel"] == 1 == forward["_write_project_kernel"]


@both_backends
def test_handover(backend: str) -> None:
    first, second = layers_of("two", backend)
    x = streams(1, 3).requires_grad_()
    handed = first(x, into=second)
    assert isinstance(handed, Handover) and handed.layer is second
    between = first(x)
    assert handed.streams.shape == x.shape and relative_error(handed.streams.detach(), between.detach()) < EXACT
    # Used for something else as well, before and after it was read.
    actual = second(handed) * handed.streams.cos() + handed.streams.sin()
    expected = second(between) * between.cos() + between.sin()
    check_gradients(actual, expected, [x, *first.parameters(), *second.parameters()])
    for part, other in zip(second.coefficients(first(x, into=second)), second.coefficients(between), strict=True):
        assert relative_error(part.detach(), other.detach()) < EXACT


def test_handover_to_another_layer_is_refused() -> None:
    first, second = layers_of("two")
    for wrong in (first, copy.deepcopy(second)):
        for call in (wrong, wrong.read, wrong.coefficients):
            with pytest.raises(ValueError, match=r"handed over to another layer.*handover\.streams.*into="):
                call(first(streams(2), into=second))


@both_backends
def test_handover_to_a_layer_that_does_not_fit(backend: str) -> None:
    (first,) = layers_of("one", backend)
    x = streams(2)
    with pytest.raises(ValueError, match=r"\[\.\.\., 3, 8\], got \[2, 2, 8\]"):
        first(x, into=make_block("mhc", n=3, backend=backend).to(x))
    with pytest.raises(ValueError, match=r"parameters on meta, the streams are on (cpu|cuda:0)"):
        first(x, into=copy.deepcopy(first).to("meta"))


@both_backends
def test_a_handover_is_read_once(backend: str) -> None:
    first, second = layers_of("two", backend)
    handed = first(streams(3).requires_grad_(), into=second)
    second.coefficients(handed)  # looking is not reading
    output = second(handed)
    with pytest.raises(RuntimeError, match=r"read twice.*handover\.streams"):
        second(handed)
    assert torch.allclose(second(handed.streams), output)


@both_backends
def test_a_checkpoint_reads_a_handover_again(backend: str) -> None:
    first, second = layers_of("two", backend)
    x = streams(3).requires_grad_()
    handed = first(x, into=second)
    check_gradients(checkpoint(second, handed, use_reentrant=False), second(first(x)), [x, *second.parameters()])


def test_into_takes_a_layer() -> None:
    (layer,) = layers_of("one")
    with pytest.raises(TypeError, match="into takes the HyperConnection that reads next, got Linear"):
        layer(streams(3), into=nn.Linear(2, 2))


def test_parameters_are_named_as_in_a_module_list() -> None:
    layers = layers_of("mixed", branch=lambda: nn.Linear(DIM, DIM))
    stack, plain = HyperConnectionStack(layers), nn.ModuleList(layers)
    assert list(stack.state_dict()) == list(plain.state_dict()) and len(stack) == len(layers)
    assert "0.branch.weight" in stack.state_dict() and "5.base" in stack.state_dict()
    assert [*stack] == layers and stack[1] is layers[1]
    assert isinstance(stack[1:3], HyperConnectionStack) and [*stack[1:3]] == layers[1:3]


@both_backends
def test_copies_pickles_and_state_dicts(backend: str) -> None:
    stack, x = HyperConnectionStack(layers_of("mixed", backend)), streams(3)
    expected = stack(x).detach()
    fresh = HyperConnectionStack(layers_of("mixed", backend))
    for parameter in fresh.parameters():
        parameter.data.zero_()
    fresh.load_state_dict(stack.state_dict(), strict=True)
    for other in (copy.deepcopy(stack), pickle.loads(pickle.dumps(stack)), fresh):
        assert torch.equal(other(x), expected)


@both_backends
@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpointed(backend: str, use_reentrant: bool) -> None:
    stack = HyperConnectionStack(layers_of("two", backend))
    x = streams(3).requires_grad_()
    out = stack(x)
    cotangent, leaves = torch.randn_like(out), [x, *stack.parameters()]
    expected = torch.autograd.grad(out, leaves, cotangent)
    (checkpoint(stack, x, use_reentrant=use_reentrant) * cotangent).sum().backward()
    for leaf, wanted in zip(leaves, expected, strict=True):
        assert leaf.grad is not None and relative_error(leaf.grad, wanted) < EXACT


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
@pytest.mark.parametrize("backend", (pytest.param("torch", marks=exhaustive), "triton"))
def test_compiled_in_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    layers = layers_of("two", backend)
    stack = HyperConnectionStack(layers)
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    x = streams(3).requires_grad_()
    expected = one_by_one(layers, x)
    check_gradients(compiled(x), expected, [x, *stack.parameters()])
    with torch.no_grad():
        assert relative_error(compiled(x), expected) < EXACT


def test_extra_arguments_reach_every_branch() -> None:
    class Masked(nn.Module):
        def forward(self, u: Tensor, mask: Tensor, *, gain: float) -> Tensor:
            return gain * torch.tanh(u) * mask

    layers = layers_of("two", branch=Masked)
    x, mask = streams(3), torch.rand(3, 1, dtype=EXACT_DTYPE, device=DEVICE)
    out = HyperConnectionStack(layers)(x, mask, gain=3.0)
    assert relative_error(out.detach(), one_by_one(layers, x, mask, gain=3.0).detach()) < EXACT
    assert relative_error(out.detach(), one_by_one(layers, x, mask, gain=1.0).detach()) > 1e-3


class Cached(nn.Module):
    def forward(self, u: Tensor) -> tuple[Tensor, str]:
        return torch.tanh(u), "cache"


@pytest.mark.parametrize("position", (0, 1))
def test_branches_that_return_more_are_refused(position: int) -> None:
    layers = layers_of("two")
    layers[position].branch = Cached()
    with pytest.raises(TypeError, match=r"returned 2 values.*one by one.*into="):
        HyperConnectionStack(layers)(streams(2))
    # As the message says.
    x = streams(2)
    handed, *_ = first if isinstance(first := layers[0](x, into=layers[1]), tuple) else (first,)
    out = layers[1](handed)
    assert (out[0] if isinstance(out, tuple) else out).shape == x.shape


def test_what_is_no_layer_is_refused() -> None:
    (layer,) = layers_of("one")
    with pytest.raises(TypeError, match=r"holds HyperConnection modules, got Linear.* at 1"):
        HyperConnectionStack([layer, nn.Linear(DIM, DIM)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"layer 1 takes streams \[3, 8\], layer 0 takes \[2, 8\]"):
        HyperConnectionStack([layer, make_block("mhc", n=3)])
    # What comes in later is looked at when it runs.
    stack = HyperConnectionStack([layer])
    stack.append(nn.Linear(DIM, DIM))
    with pytest.raises(TypeError, match="holds HyperConnection modules, got Linear"):
        stack(streams(2))
    stack = HyperConnectionStack([layer])
    stack.append(make_block("mhc", n=3))
    with pytest.raises(ValueError, match=r"layer 1 takes streams \[3, 8\], layer 0 takes \[2, 8\]"):
        stack(streams(2))
