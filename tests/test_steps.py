"""The steps of a hyper-connection against their formulas, under everything that autograd does with them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fused_cases import both_backends, check_gradients, noting_saved, relative_error
from hyperconn.kernels import steps

T, n, C = 4, 3, 7
P = 2 * n + n * n
EXACT = 1e-10
tanh = torch.tanh  # what a test puts another in place of: torch's own stays as the compiler knows it


class Layer(NamedTuple):
    """What one hyper-connection learns: predictions, logits, and the branch ``tanh(u W)``."""

    fn: Tensor  # [P, n·C]
    base: Tensor  # [P]
    weight: Tensor  # [C, C]


class Coefficients(NamedTuple):
    pre: Tensor
    post: Tensor
    H: Tensor


class Start(NamedTuple):
    x: Tensor
    raw: Tensor | None


def _project(x: Tensor, fn: Tensor | None) -> Start:
    flat = x.flatten(1)
    return Start(x, None if fn is None else torch.cat([flat @ fn.T, flat.square().sum(-1, keepdim=True)], -1))


def _read(start: Start, pre: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
    return start.x, torch.einsum("ti,tic->tc", pre, start.x)


def _write(x: Tensor, H: Tensor, post: Tensor, y: Tensor) -> Tensor:
    return torch.einsum("tij,tjc->tic", H, x) + torch.einsum("ti,tc->tic", post, y)


def _write_project(x: Tensor, H: Tensor, post: Tensor, y: Tensor, fn: Tensor) -> Start:
    return _project(_write(x, H, post, y), fn)


# The steps with one operation a line, nothing shared with the library.
FORMULAS: Any = SimpleNamespace(project=_project, read=_read, write=_write, write_project=_write_project)


def on(backend: str) -> Any:
    """The steps under the signatures of the formulas."""
    return SimpleNamespace(**{name: partial(getattr(steps, name), backend=backend) for name in vars(FORMULAS)})


def coefficients(raw: Tensor | None, base: Tensor) -> Coefficients:
    """Any smooth map of everything that was projected will do."""
    z = base.expand(T, P) if raw is None else base + raw[:, :-1] * torch.rsqrt(raw[:, -1:] / (n * C) + 0.1)
    pre, post, theta = z.split([n, n, n * n], -1)
    return Coefficients(pre.sigmoid(), 2 * post.sigmoid(), theta.unflatten(-1, (n, n)).softmax(-1))


def problem(depth: int = 2, *, requires_grad: bool = True) -> tuple[Tensor, list[Layer]]:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64).requires_grad_(requires_grad)

    return leaf(T, n, C), [Layer(leaf(P, n * C), leaf(P), leaf(C, C)) for _ in range(depth)]


def leaves_of(x: Tensor, layers: list[Layer]) -> list[Tensor]:
    return [x, *itertools.chain(*layers)]


def one_by_one(s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    for fn, base, weight in layers:
        start = s.project(x, fn)
        pre, post, H = coefficients(start.raw, base)
        alias, u = s.read(start, pre, H)
        x = s.write(alias, H, post, tanh(u @ weight))
    return x


def handed_over(s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    start = s.project(x, layers[0].fn)
    for k, (_, base, weight) in enumerate(layers):
        pre, post, H = coefficients(start.raw, base)
        alias, u = s.read(start, pre, H)
        y = tanh(u @ weight)
        if k + 1 == len(layers):
            return s.write(alias, H, post, y)
        start = s.write_project(alias, H, post, y, layers[k + 1].fn)
    raise AssertionError("a chain has a layer")


def without_projection(s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    pre, post, H = coefficients(None, layers[0].base)
    alias, u = s.read(s.project(x, None), pre, H)
    return s.write(alias, H, post, tanh(u @ layers[0].weight))


def part(name: str, s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    """Graphs in which a step or a result is left out, or a result is used twice."""
    start = s.project(x, layers[0].fn)
    pre, post, H = coefficients(start.raw, layers[0].base)
    if name == "raw only":
        return start.raw.sin()
    if name == "H, never read":
        return H.square()
    alias, u = s.read(start, pre, H)
    if name == "H, read but not written":
        return H.square()
    y = tanh(u @ layers[0].weight)
    if name == "write never called":
        return y
    if name == "u unused":
        return s.write(alias, H, post, x.sum(1))
    if name == "H beside the output":
        return s.write(alias, H, post, y) + H.sin().sum(-1, keepdim=True)
    if name == "the streams beside the output":
        return s.write(alias, H, post, y) * start.x
    start = s.write_project(alias, H, post, y, layers[1].fn)
    if name == "only the streams handed over":
        return start.x.sin()
    if name == "only the projection handed over":
        return start.raw.sin()
    assert name == "the streams handed over beside the output"
    pre, post, H = coefficients(start.raw, layers[1].base)
    alias, u = s.read(start, pre, H)
    return s.write(alias, H, post, tanh(u @ layers[1].weight)) * start.x.cos()


def used_elsewhere(chain: Graph, s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    inner = x * 2.0  # no leaf: its gradients are added inside autograd
    twice = chain(s, inner, layers[:1]) + chain(s, inner, layers[1:])
    return chain(s, inner, layers) * inner + inner.sin() + twice


def strided(chain: Graph, s: Any, x: Tensor, layers: list[Layer]) -> Tensor:
    """Weights and coefficients with strides."""
    turned = SimpleNamespace(**vars(s))
    turned.read = lambda start, pre, H: s.read(start, turn(pre), turn(H))
    turned.write = lambda x, H, post, y: s.write(x, turn(H), turn(post), turn(y))
    return chain(turned, x, [layer._replace(fn=turn(layer.fn)) for layer in layers])


def turn(tensor: Tensor) -> Tensor:
    turned = tensor.mT.contiguous().mT
    assert not turned.is_contiguous()
    return turned


Graph = Callable[[Any, Tensor, list[Layer]], Tensor]
CHAINS: dict[str, Graph] = {"one by one": one_by_one, "handed over": handed_over}
PARTS = (
    "raw only", "H, never read", "H, read but not written", "write never called", "u unused", "H beside the output",
    "the streams beside the output", "only the streams handed over", "only the projection handed over",
    "the streams handed over beside the output",
)  # fmt: skip
GRAPHS: dict[str, Graph] = {
    **CHAINS,
    "without projection": without_projection,
    **{name: partial(part, name) for name in PARTS},
    **{f"used elsewhere, {name}": partial(used_elsewhere, chain) for name, chain in CHAINS.items()},
    **{f"strided, {name}": partial(strided, chain) for name, chain in CHAINS.items()},
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "expanded from one number": lambda out: torch.randn((), dtype=out.dtype).expand(out.shape),
    "expanded from a row": lambda out: torch.randn(out.shape[-1], dtype=out.dtype).expand(out.shape),
    "with strides": lambda out: torch.randn(out.shape[::-1], dtype=out.dtype).permute(*range(out.dim())[::-1]),
}
both_chains = pytest.mark.parametrize("chain", CHAINS.values(), ids=list(CHAINS))


def check(
    graph: Graph, backend: str, x: Tensor, layers: list[Layer], cotangent: Callable[[Tensor], Tensor] = torch.randn_like
) -> None:
    """Same output, and the same gradient of everything that needs one and has one."""
    actual, expected = graph(on(backend), x, layers), graph(FORMULAS, x, layers)
    check_gradients(actual, expected, leaves_of(x, layers), cotangent(expected.detach()))


@both_backends
@pytest.mark.parametrize("name", GRAPHS)
def test_graphs(name: str, backend: str) -> None:
    check(GRAPHS[name], backend, *problem())


@both_backends
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layouts_of_the_gradient(layout: Callable[[Tensor], Tensor], backend: str) -> None:
    check(handed_over, backend, *problem(), layout)


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
        # The kernels are given what torch is given: one leaf in the chain with every step is enough.
        kernels = graph is handed_over and thawed == (0, 1) and len(trained) == 1
        for backend in ("torch", "triton") if kernels else ("torch",):
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
        outs.append(s.write(alias, H, post, tanh(u @ layer.weight)))
    check_gradients(outs[0], outs[1], [layer.weight, x])


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


def of_leaves(graph: Graph, s: Any) -> Callable[..., Tensor]:
    return lambda x, *parts: graph(s, x, [Layer(*parts[k : k + 3]) for k in range(0, len(parts), 3)])


@both_backends
@pytest.mark.parametrize("use_reentrant", (False, True))
def test_checkpointed_branches(backend: str, use_reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    x, layers = problem()
    leaves, cotangent = leaves_of(x, layers), torch.randn(T, n, C, dtype=x.dtype)
    expected = torch.autograd.grad(handed_over(FORMULAS, x, layers), leaves, cotangent)
    monkeypatch.setitem(globals(), "tanh", lambda z: checkpoint(torch.tanh, z, use_reentrant=use_reentrant))
    (handed_over(on(backend), x, layers) * cotangent).sum().backward()  # the reentrant kind supports no other
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
