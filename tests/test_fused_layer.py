"""Layers on the Triton backend equal layers on torch, under the machinery of training too, or say what they refuse."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused_cases import DEVICE, EXACT, EXACT_DTYPE, relative_error
from fused_layer_cases import compare, leaves_of, on, plugins, streams, twins
from hyperconn import HyperConnection
from hyperconn.coefficients import Coefficients
from hyperconn.kernels.fused.launch import Launch
from hyperconn.kernels.poison import poisoned_memory
from hyperconn.manifolds import available
from layer_cases import DIM, PRESETS, make_block

PLUGINS = ("test-cycles", "test-diagonal")
TURNED = {"orientation": "transposed", "pre_eps": 0.25, "post_eps": 0.5, "post_gain": 1.7, "norm_eps": 0.1}
CASES: dict[str, dict[str, Any]] = {
    # Fractions have no kernels.
    **{f"{preset}, {n} streams": {"preset": preset, "n": n} for preset in PRESETS if preset != "fc" for n in (4, 3)},
    **{f"{manifold}, turned": {"manifold": manifold, **TURNED} for manifold in available()},
    "eps outside": {"manifold": "stiefel", "norm_eps": 0.3, "norm_eps_mode": "outside"},
    "sixteen streams": {"manifold": "kronecker", "n": 16},
    "per stream": {"predictor": "per_stream", "manifold": "kronecker"},
    "static": {"predictor": "static", "manifold": "kronecker"},
    "static, turned": {"predictor": "static", **TURNED},
    **{name: {"manifold": name, "n": 3} for name in PLUGINS},
    "another option": {"manifold": "test-diagonal", "n": 3, "manifold_options": {"factor": 3.0}},
}


@contextmanager
def counting_launches() -> Iterator[list[str]]:
    """Names of the kernels that run."""
    names: list[str] = []
    run = Launch.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launch, "run", lambda self: (names.append(self.name), run(self))[1])
        yield names


@contextmanager
def noting_saved() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        yield saved


@torch.no_grad()
def coefficients(block: HyperConnection, x: Tensor) -> Coefficients:
    return block.coefficients(x)


# ------------------------------------------------------------------------------------------- the same numbers


@pytest.mark.parametrize("case", CASES)
def test_every_case(case: str) -> None:
    """Also no longer registered, a manifold is still what the layer holds."""
    with plugins():
        fused, reference = twins(**CASES[case])
    with counting_launches() as launched, poisoned_memory():
        compare(fused, reference, streams(fused, 2, 3), EXACT)
    assert {"_read_kernel", "_write_kernel", "_streams_backward_kernel"} <= set(launched)
    has_pairs = fused.spec.predictor.fuses and fused.manifold.kernel is not None
    assert ("_coefficients_forward_kernel" in launched) == ("_coefficients_backward_kernel" in launched) == has_pairs
    assert ("_project_kernel" in launched) == fused.spec.predictor.fuses


def test_cases_are_covered() -> None:
    assert {case.get("preset") for case in CASES.values()} >= set(PRESETS) - {"fc"}
    with plugins():
        made = [twins(**case)[0] for case in CASES.values()]
    fuse = [block.spec.predictor.fuses and block.manifold.kernel is not None for block in made]
    assert sum(fuse) >= 15 and len(fuse) - sum(fuse) >= 4


@pytest.mark.parametrize("parameters", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("preset", ("mhc", "hc"))
def test_rounded(preset: str, dtype: torch.dtype, parameters: torch.dtype) -> None:
    fused, _ = twins(preset)
    fused = fused.to(parameters)
    reference = on(fused, "torch").double()
    x = streams(fused, 4, dtype=dtype)
    # The branch computes in the dtype of the streams, and gradients come in that of the parameters.
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
    compare(fused, reference, x, max(tolerance[dtype], tolerance[parameters]))
    for part, expected in zip(coefficients(fused, x), coefficients(reference, x.double()), strict=True):
        assert part.dtype == torch.float32 and relative_error(part, expected) < 1e-5


def test_autocast_reaches_the_branch_alone() -> None:
    fused, _ = twins("mhc", branch=nn.Linear(DIM, DIM))
    fused = fused.float()
    x = streams(fused, 4, dtype=torch.float32).requires_grad_()
    seen: list[torch.dtype] = []
    fused.branch.register_forward_hook(lambda *call: seen.append(call[-1].dtype))
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        out, under = fused(x), coefficients(fused, x)
    assert seen == [torch.bfloat16] and out.dtype == torch.float32
    for a, b in zip(under, coefficients(fused, x), strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)
    # y in bfloat16, the streams in float32: the gradient of what the branch gave comes in its dtype.
    u, write = fused.read(x)
    y = u.detach().bfloat16().requires_grad_()
    cotangent = torch.randn_like(x)
    (dy,) = torch.autograd.grad(write(y), y, cotangent)
    post = coefficients(fused, x).post
    assert dy.dtype == torch.bfloat16
    assert relative_error(dy, torch.einsum("ti,tic->tc", post, cotangent).detach()) < 1e-2


@pytest.mark.parametrize("batch", ((), (1,), (2, 1, 2)), ids=str)
def test_batches(batch: tuple[int, ...]) -> None:
    fused, reference = twins("kromhc")
    compare(fused, reference, streams(fused, *batch), EXACT)
    assert [part.shape for part in coefficients(fused, streams(fused, *batch))] == [
        (*batch, 4), (*batch, 4), (*batch, 4, 4)
    ]  # fmt: skip


@pytest.mark.parametrize("batch", ((0,), (2, 0, 3)), ids=str)
@pytest.mark.parametrize("case", ("mhc, 4 streams", "hc, 3 streams", "jpmhc, 4 streams", "static"))
def test_empty_batches(case: str, batch: tuple[int, ...]) -> None:
    fused, _ = twins(**CASES[case])
    x = streams(fused, *batch).requires_grad_()
    with poisoned_memory():
        gradients = torch.autograd.grad(fused(x).sum(), leaves_of(fused, x))
    assert gradients[0].shape == x.shape
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients)


def test_layouts_do_not_matter() -> None:
    fused, reference = twins("shc")
    n = fused.config.streams
    layouts = (
        streams(fused, 5).permute(2, 0, 1).contiguous().permute(1, 2, 0),
        torch.randn(5, 2 * n, DIM, dtype=EXACT_DTYPE, device=DEVICE)[:, ::2],
        torch.randn(5, 1, DIM, dtype=EXACT_DTYPE, device=DEVICE).expand(5, n, DIM),
    )
    for x in layouts:
        assert not x.is_contiguous()
        compare(fused, reference, x, EXACT)
    fused.fn = nn.Parameter(fused.fn.detach().mT.contiguous().mT)
    assert not fused.fn.is_contiguous()
    # A branch that returns strides, and the expanded gradient of a sum.
    fused.branch.register_forward_hook(lambda module, inputs, y: y.mT.contiguous().mT)
    expanded = lambda out: torch.ones((), dtype=out.dtype, device=out.device).expand(out.shape)  # noqa: E731
    compare(fused, reference, streams(fused, 5), EXACT, cotangent=expanded)


# ------------------------------------------------------------------------------------------- what is trained


@pytest.mark.parametrize("frozen", ("fn", "scale", "fn base scale", "x", "x fn base scale"))
def test_frozen(frozen: str) -> None:
    fused, reference = twins("mhc", branch=nn.Linear(DIM, DIM))
    for block in (fused, reference):
        for name in set(frozen.split()) - {"x"}:
            getattr(block, name).requires_grad_(False)
    assert len(leaves_of(fused, streams(fused, 1))) == 5 - len(set(frozen.split()) - {"x"})
    compare(fused, reference, streams(fused, 5), EXACT, needs_x="x" not in frozen)


def test_what_is_saved() -> None:
    """Nothing without training; with it the streams, once, and of the branch its input and output."""
    fused, reference = twins("mhc", branch=nn.Identity())
    x = streams(fused, 7).requires_grad_()
    expected = reference(x.double()).detach()
    with noting_saved() as saved:
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                out = fused(x)
            assert not out.requires_grad and out.grad_fn is None and saved == []
            assert relative_error(out.clone(), expected) < EXACT
        assert fused(x).grad_fn is not None
    wide = [t for t in saved if t.shape[-1] == DIM]
    assert {t.shape for t in wide} == {(7, 4, DIM), (7, DIM)}
    assert {t.data_ptr() for t in wide if t.dim() == 3} == {x.data_ptr()}


def test_two_runs_give_the_same_bits() -> None:
    fused, _ = twins("mhc")
    fused = fused.float()
    x = streams(fused, 17, dtype=torch.float32).requires_grad_()
    cotangent = torch.randn_like(x)
    runs = []
    for _ in range(2):
        with poisoned_memory():
            out = fused(x)
            runs.append((out, *torch.autograd.grad(out, (x, *fused.parameters()), cotangent)))
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


@pytest.mark.parametrize("use_reentrant", (False, True))
@pytest.mark.parametrize("what", ("the layer", "the branch"))
def test_checkpointed(what: str, use_reentrant: bool) -> None:
    fused, reference = twins("mhc", branch=nn.Linear(DIM, DIM))
    x = streams(fused, 3)
    cotangent = torch.randn_like(x)
    theirs = x.double().requires_grad_()
    expected = torch.autograd.grad(reference(theirs), leaves_of(reference, theirs), cotangent.double())
    mine = x.requires_grad_()
    if what == "the layer":
        out = checkpoint(fused, mine, use_reentrant=use_reentrant)
    else:
        u, write = fused.read(mine)
        out = write(checkpoint(fused.branch, u, use_reentrant=use_reentrant))
    (out * cotangent).sum().backward()  # the reentrant form supports no other
    for leaf, wanted in zip(leaves_of(fused, mine), expected, strict=True):
        assert leaf.grad is not None and relative_error(leaf.grad, wanted) < EXACT


def test_two_phases_and_a_layer_that_is_dropped() -> None:
    fused, reference = twins("mhc")

    def dropped(block: nn.Module, x: Tensor) -> Tensor:
        """What was read is used, nothing is written."""
        u, _ = block.read(x)
        return x + torch.tanh(u).unsqueeze(-2)

    def two_phases(block: nn.Module, x: Tensor) -> Tensor:
        u, write = block.read(x)
        return write(block.branch(u))

    for through in (dropped, two_phases):
        compare(fused, reference, streams(fused, 3), EXACT, through=through)


@pytest.mark.parametrize("backend", ("triton", "torch"))
def test_written_twice_or_read_without_autograd(backend: str) -> None:
    block = on(twins("mhc", branch=nn.Linear(DIM, DIM))[0], backend)
    u, write = block.read(streams(block, 3))
    write(u)
    with pytest.raises(RuntimeError, match=r"write was called twice.*call read again"):
        write(u)
    # Only the branch learns; nothing may pass for a gradient of the streams.
    x = streams(block, 3).requires_grad_()
    with torch.no_grad():
        u, write = block.read(x)
    out = write(block.branch(u))
    weight, other = torch.autograd.grad(out.sum(), (block.branch.weight, x), allow_unused=True)
    assert weight.abs().max() > 0 and other is None


# ------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("differentiated", ("x", "fn", "base"))
def test_second_derivatives_are_refused(differentiated: str) -> None:
    fused, _ = twins("mhc")
    x = streams(fused, 2).requires_grad_()
    leaf = x if differentiated == "x" else getattr(fused, differentiated)
    (first,) = torch.autograd.grad(fused(x).square().sum(), leaf, create_graph=True)
    for then in (x, fused.base, fused.scale):
        with pytest.raises(RuntimeError, match="no second derivatives.*backend='torch'"):
            torch.autograd.grad(first.square().sum(), then, retain_graph=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
def test_forward_mode_is_refused() -> None:
    """Also where no gradient is recorded and the tangent would be lost without a word."""
    fused, reference = twins("mhc")
    x = streams(fused, 2)
    tangent = torch.randn_like(x)
    fused.requires_grad_(False)
    with pytest.raises(RuntimeError, match="no forward-mode derivatives.*backend='torch'"):
        torch.func.jvp(fused, (x,), (tangent,))
    frozen = {name: value for name, value in fused.named_parameters() if name != "base"}

    def of_base(base: Tensor) -> Tensor:
        return torch.func.functional_call(fused, {**frozen, "base": base}, (x,))

    with pytest.raises(RuntimeError, match="no forward-mode derivatives.*backend='torch'"):
        torch.func.jvp(of_base, (fused.base,), (torch.randn_like(fused.base),))
    reference.requires_grad_(False)
    assert torch.func.jvp(reference, (x.double(),), (tangent.double(),))[1].abs().max() > 0


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # one kernel for each of the batch
def test_torch_func() -> None:
    fused, reference = twins("mhc")
    x = streams(fused, 2, 3)

    def gradient(block: HyperConnection) -> Any:
        names = [name for name, _ in block.named_parameters()]

        def loss(x: Tensor, *values: Tensor) -> Tensor:
            return torch.func.functional_call(block, dict(zip(names, values, strict=True)), (x,)).sin().sum()

        every = tuple(range(1 + len(names)))
        return torch.func.vmap(torch.func.grad(loss, every), (0, *(None for _ in names)))

    actual = gradient(fused)(x, *fused.parameters())
    expected = gradient(reference)(x.double(), *reference.parameters())
    for one, two in zip(actual, expected, strict=True):
        assert relative_error(one.detach(), two.detach()) < EXACT


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
@pytest.mark.parametrize("case", ("mhc, 4 streams", "hc, 4 streams", "static", "test-diagonal"))
def test_compiled_in_one_graph(case: str) -> None:
    """For a symbolic number of tokens, and with a gain that a schedule sets."""
    torch._dynamo.reset()
    with plugins():
        fused, reference = twins(**CASES[case])
    inductor = case.startswith("mhc")  # once; it takes long
    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend="inductor" if inductor else "aot_eager")
    through = lambda block, x: compiled(x) if block is fused else block(x)  # noqa: E731
    compare(fused, reference, streams(fused, 3), EXACT, through=through)
    compare(fused, reference, streams(fused, 5), EXACT, through=through)
    if inductor:
        for gain in (0.5, 1.5, 2.5):
            fused.post_gain = reference.post_gain = gain
            with torch.no_grad():
                x = streams(fused, 5)
                assert relative_error(compiled(x), reference(x.double())) < EXACT


# ------------------------------------------------------------------------------------------- copies


def test_copies_and_state_dicts() -> None:
    with plugins():
        fused, reference = twins(**CASES["test-diagonal"])
        fused(streams(fused, 1))  # what it remembers of that goes along
        for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
            assert other.config == fused.config and other.config.backend == "triton"
            compare(other, reference, streams(fused, 3), EXACT)
        buffer = io.BytesIO()
        torch.save(on(fused, "torch").state_dict(), buffer)
        buffer.seek(0)
        fresh = make_block(**CASES["test-diagonal"], backend="triton").to(DEVICE, EXACT_DTYPE)
        for parameter in fresh.parameters():
            parameter.data.zero_()
        fresh.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        compare(fresh, reference, streams(fused, 3), EXACT)
