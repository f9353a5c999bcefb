"""The steps of a hyper-connection against their formulas, under everything that autograd does with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fused_cases import relative_error
from hyperconn.kernels import steps
from step_cases import (
    CHAINS,
    COTANGENTS,
    EXACT,
    FORMULAS,
    GRAPHS,
    C,
    Coefficients,
    Graph,
    Layer,
    T,
    both_backends,
    both_chains,
    check,
    check_gradients,
    coefficients,
    handed_over,
    leaves_of,
    n,
    on,
    problem,
    without_projection,
)

# ------------------------------------------------------------------------------------------- gradients


@both_backends
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, backend: str) -> None:
    check(GRAPHS[name], backend, *problem())


@both_backends
@both_chains
def test_depths(chain: Graph, backend: str) -> None:
    for depth in (1, 3):
        check(chain, backend, *problem(depth))


@both_backends
@pytest.mark.parametrize("cotangent", [name for name in COTANGENTS if name != "random"])
def test_layouts_of_the_gradient(cotangent: str, backend: str) -> None:
    check(handed_over, backend, *problem(), cotangent)


KINDS = ("x", *Layer._fields)
TRAINED = [kinds for size in range(1, 4) for kinds in itertools.combinations(KINDS, size)]


@pytest.mark.parametrize("trained", TRAINED, ids=" ".join)
def test_what_is_frozen(trained: tuple[str, ...]) -> None:
    """In all layers, or in the first or the second alone."""
    for graph, thawed in itertools.product((*CHAINS.values(), without_projection), ((0, 1), (0,), (1,))):
        x, layers = problem(requires_grad=False)
        x.requires_grad_("x" in trained)
        for leaf in (getattr(layers[k], kind) for k in thawed for kind in trained if kind != "x"):
            leaf.requires_grad_()
        # The kernels are given what torch is given: the chain with every step is enough.
        for backend in ("torch", "triton") if graph is handed_over and thawed == (0, 1) else ("torch",):
            if graph(FORMULAS, x, layers).requires_grad:
                check(graph, backend, x, layers)
            else:
                assert not graph(on(backend), x, layers).requires_grad


@both_backends
@pytest.mark.parametrize("needed", Coefficients._fields)
def test_one_coefficient_alone_needs_a_gradient(backend: str, needed: str) -> None:
    x, (layer, _) = problem(requires_grad=False)
    made = coefficients(None, layer.base)
    leaf = getattr(made, needed).clone().requires_grad_()
    pre, post, H = made._replace(**{needed: leaf})
    outs = []
    for s in (on(backend), FORMULAS):
        alias, u = s.read(s.project(x, None), pre, H)
        outs.append(s.write(alias, H, post, u.cos()))
    check_gradients(outs[0], outs[1], [leaf])


@both_backends
def test_streams_read_without_autograd_have_no_gradient_when_written(backend: str) -> None:
    """A detached hyper-connection with a trained branch: G itself must not pass for the gradient of x."""
    x, (layer, _) = problem()
    outs = []
    for s, streams in ((on(backend), x), (FORMULAS, x.detach())):
        with torch.no_grad():
            start = s.project(streams, layer.fn)
            pre, post, H = coefficients(start.raw, layer.base)
            alias, u = s.read(start, pre, H)
        outs.append(s.write(alias, H, post, torch.tanh(u @ layer.weight)))
    check_gradients(outs[0], outs[1], [layer.weight, x])


# ------------------------------------------------------------------------------------------- what is saved


@contextmanager
def noting_saved() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        yield saved


@both_backends
@both_chains
def test_inference_saves_nothing(chain: Graph, backend: str) -> None:
    x, layers = problem()
    for mode in (torch.no_grad, torch.inference_mode):
        with noting_saved() as saved, mode():
            out = chain(on(backend), x, layers)
        assert saved == [] and out.grad_fn is None and not out.requires_grad
        assert relative_error(out, chain(FORMULAS, x, layers).detach()) < EXACT
    with noting_saved() as saved:
        chain(on(backend), x, layers)
    assert saved, "the hook sees nothing, so the count above means nothing"


@both_backends
def test_training_saves_the_streams_once_a_layer(backend: str) -> None:
    """Of the size of the streams nothing but the streams; of the size of a token's vector, y."""
    x, layers = problem()
    s, between = on(backend), []

    def cut(start: Any, pre: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        between.append(start.x)
        alias, u = steps.read(start, pre, H, backend)
        return alias, u.detach()  # the branch saves what it likes

    s.read = cut
    with noting_saved() as saved:
        handed_over(s, x, [layer._replace(weight=torch.eye(C, dtype=x.dtype)) for layer in layers])
    wide = [tensor for tensor in saved if C in tensor.shape or n * C in tensor.shape]
    assert {tensor.shape for tensor in wide} == {x.shape, (T, C), layers[0].fn.shape}
    streams = {tensor.data_ptr() for tensor in wide if tensor.shape == x.shape}
    assert streams == {tensor.data_ptr() for tensor in between} and len(streams) == 2 and x.data_ptr() in streams
    assert len({tensor.data_ptr() for tensor in wide if tensor.shape == (T, C)}) == 2


def test_slots_take_no_memory() -> None:
    x, layers = problem()
    start = steps.project(x, layers[0].fn, "torch")
    assert start.slots is not None and len(start.slots) == 3
    for slot in start.slots:
        assert slot.numel() > 1 and slot.untyped_storage().nbytes() == slot.element_size()
    assert start.alias.data_ptr() == start.x.data_ptr()


# ------------------------------------------------------------------------------------------- transforms


def of_leaves(graph: Graph, s: Any) -> Callable[..., Tensor]:
    return lambda x, *parts: graph(s, x, [Layer(*parts[k : k + 3]) for k in range(0, len(parts), 3)])


@both_backends
@both_chains
@pytest.mark.parametrize("use_reentrant", (False, True))
@pytest.mark.parametrize("what", ("everything", "the branch"))
def test_checkpointed(chain: Graph, backend: str, use_reentrant: bool, what: str) -> None:
    x, layers = problem()
    leaves, s = leaves_of(x, layers), on(backend)
    cotangent = torch.randn(T, n, C, dtype=x.dtype)
    expected = torch.autograd.grad(chain(FORMULAS, x, layers), leaves, cotangent)
    if what == "everything":
        out = checkpoint(of_leaves(chain, s), *leaves, use_reentrant=use_reentrant)
    else:
        with pytest.MonkeyPatch.context() as patch:
            tanh = torch.tanh
            patch.setattr(torch, "tanh", lambda z: checkpoint(tanh, z, use_reentrant=use_reentrant))
            out = chain(s, x, layers)
    (out * cotangent).sum().backward()  # the reentrant kind supports no other
    for leaf, wanted in zip(leaves, expected, strict=True):
        assert leaf.grad is not None and relative_error(leaf.grad, wanted) < EXACT


@both_chains
def test_second_derivatives(chain: Graph) -> None:
    x, layers = problem()
    leaves = leaves_of(x, layers)
    run = of_leaves(chain, on("torch"))
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)
    # And against the formula: a gradient penalty reaches everything.
    penalties = []
    cotangent = torch.randn(T, n, C, dtype=x.dtype)
    for out in (run(*leaves), chain(FORMULAS, x, layers)):
        (dx,) = torch.autograd.grad(out, x, cotangent, create_graph=True)
        penalties.append(dx.sin())
    check_gradients(penalties[0], penalties[1], leaves)


@both_chains
@pytest.mark.parametrize("batched", ("all", *range(4)), ids=("all", *KINDS))
def test_vmap(chain: Graph, batched: int | str) -> None:
    """A batch of problems at once and gradients of each; or of one tensor, as in ensembles that share the rest."""
    x, layers = problem(1, requires_grad=False)
    leaves = leaves_of(x, layers)
    every = tuple(range(len(leaves)))
    axes = tuple(0 if batched in ("all", k) else None for k in every)
    values = [
        torch.randn(3, *leaf.shape, dtype=x.dtype) if a == 0 else leaf for leaf, a in zip(leaves, axes, strict=True)
    ]
    cotangent = torch.randn(T, n, C, dtype=x.dtype)

    def gradients(s: Any) -> Callable[..., Any]:
        run = of_leaves(chain, s)
        return torch.func.grad_and_value(lambda *leaves: (run(*leaves) * cotangent).sum(), every)

    found, value = torch.func.vmap(gradients(on("torch")), axes)(*values)
    for b in range(3):
        one = [leaf if a is None else leaf[b] for leaf, a in zip(values, axes, strict=True)]
        wanted, expected = gradients(FORMULAS)(*one)
        assert relative_error(value[b], expected) < EXACT
        for mine, theirs in zip(found, wanted, strict=True):
            assert relative_error(mine[b], theirs) < EXACT


# Of torch's own modules.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@both_backends
def test_compiled_in_one_graph(backend: str) -> None:
    torch._dynamo.reset()
    s = on(backend)
    compiled = torch.compile(lambda x, layers: handed_over(s, x, layers), fullgraph=True, backend="aot_eager")
    x, layers = problem()
    check_gradients(compiled(x, layers), handed_over(FORMULAS, x, layers), leaves_of(x, layers))
    with torch.no_grad():
        assert relative_error(compiled(x, layers), handed_over(FORMULAS, x, layers)) < EXACT
