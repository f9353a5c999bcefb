"""Layers on the Triton backend equal layers on torch, under the machinery of training too, or say what they refuse."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from broken_pairs import Diagonal
from fused_cases import DEVICE, EXACT, EXACT_DTYPE, both_backends, counting_launches, exhaustive, relative_error
from healthy_manifold import HEALTHY
from hyperconn import BackendUnavailableError, HyperConnection, HyperConnectionConfig
from hyperconn.backends import tensor_obstacle
from hyperconn.kernels.poison import poisoned_memory
from hyperconn.manifolds import Stiefel, available
from hyperconn.testing import kernel_laws
from layer_cases import DIM, PRESETS, make_block
from source_tree import ROOT

KRONECKER: dict[str, Any] = {"manifold": "kronecker", "predictor": "flat", "n": 2}  # quick in the interpreter
TURNED = {"orientation": "transposed", "pre_eps": 0.25, "post_eps": 0.5, "post_gain": 1.7, "norm_eps": 0.1}
CASES: dict[str, dict[str, Any]] = {
    **{preset: {"preset": preset} for preset in PRESETS if preset != "fc"},  # fractions have no kernels
    **{f"{manifold}, turned": {"manifold": manifold, "n": 3, **TURNED} for manifold in available()},
    "eps outside": {"manifold": "stiefel", "norm_eps": 0.3, "norm_eps_mode": "outside"},
    "sixteen streams": {"manifold": "unconstrained", "n": 16},
    "one stream": {**KRONECKER, "n": 1},
    "per stream": {**KRONECKER, "predictor": "per_stream"},
    "static": {**KRONECKER, "predictor": "static"},
    "static, turned": {"predictor": "static", **TURNED},
    "without a pair": {"manifold": HEALTHY, "n": 3},
    "a pair of our own": {"manifold": Diagonal(n=3), "n": 3},
}
# Each kind of predictor, with and without a pair, odd sizes; and every option once.
BY_DEFAULT = (
    "hc", "jpmhc", "kromhc", "deepseek-v4.1", "kronecker, turned", "identity, turned", "eps outside", "one stream",
    "static", "without a pair", "a pair of our own",
)  # fmt: skip


def on(block: HyperConnection, backend: str) -> HyperConnection:
    """A copy of the layer on another backend."""
    other = copy.deepcopy(block)
    other.config = dataclasses.replace(block.config, backend=backend)
    return other


def twins(preset: str | None = None, **options: Any) -> tuple[HyperConnection, HyperConnection]:
    """The same layer on Triton and on torch, as exact as the device allows and in float64."""
    block = make_block(preset, backend="triton", **options).to(DEVICE, EXACT_DTYPE)
    return block, on(block, "torch").double()


def streams(block: HyperConnection, *batch: int, dtype: torch.dtype = EXACT_DTYPE) -> Tensor:
    return torch.randn(*batch, *block.stream_shape, dtype=torch.float64).to(DEVICE, dtype)


def leaves_of(block: nn.Module, x: Tensor) -> list[Tensor]:
    return [leaf for leaf in (x, *block.parameters()) if leaf.requires_grad]


def everything(out: Any) -> Tensor:
    """Streams, and beside them what a layer with delayed reads hands on."""
    return out if isinstance(out, Tensor) else torch.cat([out[0], out[1].unsqueeze(-1).to(out[0].dtype)], -1)


def compare(
    fused: nn.Module,
    reference: nn.Module,
    x: Tensor,
    tolerance: float = EXACT,
    *,
    cotangent: Callable[[Tensor], Tensor] = torch.randn_like,
    needs_x: bool = True,
) -> None:
    """Same output, and same gradients of x and of every parameter, none of which vanishes."""
    mine, theirs = x.detach().requires_grad_(needs_x), x.detach().double().requires_grad_(needs_x)
    out, expected = everything(fused(mine)), everything(reference(theirs))
    assert out.dtype == x.dtype and out.shape == expected.shape
    assert relative_error(out.detach(), expected.detach()) < tolerance
    d = cotangent(out.detach())
    gradients = torch.autograd.grad(out, leaves_of(fused, mine), d)
    wanted = torch.autograd.grad(expected, leaves_of(reference, theirs), d.double())
    for leaf, gradient, want in zip(leaves_of(fused, mine), gradients, wanted, strict=True):
        assert relative_error(gradient, want) < tolerance, list(leaf.shape)


@pytest.mark.parametrize(
    "case", [case if case in BY_DEFAULT else pytest.param(case, marks=exhaustive) for case in CASES]
)
def test_every_case(case: str) -> None:
    fused, reference = twins(**CASES[case])
    with counting_launches() as launched, poisoned_memory():
        compare(fused, reference, streams(fused, 3))
    assert {"_read_kernel", "_write_kernel", "_streams_backward_kernel"} <= set(launched)
    has_pairs = fused.spec.predictor.fuses and fused.manifold.kernel is not None
    assert ("_coefficients_forward_kernel" in launched) == ("_coefficients_backward_kernel" in launched) == has_pairs
    assert ("_project_kernel" in launched) == fused.spec.predictor.fuses


def test_cases_are_covered() -> None:
    assert {case.get("preset") for case in CASES.values()} >= set(PRESETS) - {"fc"} and set(BY_DEFAULT) <= set(CASES)
    made = [twins(**CASES[case])[0] for case in BY_DEFAULT]
    fuse = [block.spec.predictor.fuses and block.manifold.kernel is not None for block in made]
    assert sum(fuse) >= 5 and len(fuse) - sum(fuse) >= 3


@pytest.mark.parametrize(
    ("case", "dtype", "parameters"),
    (
        ("kronecker, turned", torch.bfloat16, torch.float32),
        ("kronecker, turned", torch.float16, torch.bfloat16),
        ("hc", torch.bfloat16, torch.bfloat16),
        ("hc", torch.float32, torch.bfloat16),
    ),
    ids=str,
)
def test_rounded(case: str, dtype: torch.dtype, parameters: torch.dtype) -> None:
    fused, _ = twins(**CASES[case])
    fused = fused.to(parameters)
    reference = on(fused, "torch").double()
    x = streams(fused, 4, dtype=dtype)
    # The branch computes in the dtype of the streams, and gradients come in that of the parameters.
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}
    compare(fused, reference, x, max(tolerance[dtype], tolerance[parameters]))
    with torch.no_grad():
        parts = zip(fused.coefficients(x), reference.coefficients(x.double()), strict=True)
    for part, expected in parts:
        assert part.dtype == torch.float32 and relative_error(part, expected) < 1e-5


def test_layouts_do_not_matter() -> None:
    fused, reference = twins(**KRONECKER)
    n = fused.config.streams
    layouts = (
        streams(fused, 3).permute(2, 0, 1).contiguous().permute(1, 2, 0),
        torch.randn(3, 2 * n, DIM, dtype=EXACT_DTYPE, device=DEVICE)[:, ::2],
        torch.randn(1, DIM, dtype=EXACT_DTYPE, device=DEVICE).expand(n, DIM),  # a token without a batch
    )
    for x in layouts:
        assert not x.is_contiguous()
        compare(fused, reference, x)
    fused.fn = nn.Parameter(fused.fn.detach().mT.contiguous().mT)
    assert not fused.fn.is_contiguous()
    # A branch that returns strides, and the expanded gradient of a sum.
    fused.branch.register_forward_hook(lambda module, inputs, y: y.mT.contiguous().mT)
    expanded = lambda out: torch.ones((), dtype=out.dtype, device=out.device).expand(out.shape)  # noqa: E731
    compare(fused, reference, streams(fused, 3), cotangent=expanded)


@pytest.mark.parametrize("frozen", ("scale", "fn base scale", "x fn base scale"))
def test_frozen(frozen: str) -> None:
    fused, reference = twins(**KRONECKER, branch=nn.Linear(DIM, DIM))
    for block in (fused, reference):
        for name in set(frozen.split()) - {"x"}:
            getattr(block, name).requires_grad_(False)
    assert len(leaves_of(fused, streams(fused, 1))) == 5 - len(set(frozen.split()) - {"x"})
    compare(fused, reference, streams(fused, 3), needs_x="x" not in frozen)


@both_backends
def test_written_twice(backend: str) -> None:
    block = on(twins(**KRONECKER)[0], backend)
    u, write = block.read(streams(block, 3))
    write(u)
    with pytest.raises(RuntimeError, match=r"write was called twice.*call read again"):
        write(u)


def test_second_derivatives_are_refused() -> None:
    fused, _ = twins(**KRONECKER)
    x = streams(fused, 2).requires_grad_()
    loss = fused(x).square().sum()
    for leaf in (x, fused.fn, fused.base):
        (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
        for then in (x, fused.base, fused.scale):
            with pytest.raises(RuntimeError, match="no second derivatives.*backend='torch'"):
                torch.autograd.grad(first.square().sum(), then, retain_graph=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules
def test_forward_mode_is_refused() -> None:
    """Also where no gradient is recorded and the tangent would be lost without a word."""
    fused, reference = twins(**KRONECKER)
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
    fused, reference = twins(**KRONECKER)
    x = streams(fused, 2, 2)

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
@pytest.mark.parametrize(
    ("case", "backend"),
    (("a pair of our own", "aot_eager"), pytest.param("kronecker, turned", "inductor", marks=exhaustive)),
)
def test_compiled_in_one_graph(case: str, backend: str) -> None:
    """For a symbolic number of tokens, and with a gain that a schedule sets."""
    torch._dynamo.reset()
    fused, reference = twins(**CASES[case])
    compiled = torch.compile(fused, fullgraph=True, dynamic=True, backend=backend)
    for tokens, gain in ((3, 1.0), (5, 0.5)):
        fused.post_gain = reference.post_gain = gain
        compare(compiled, reference, streams(fused, tokens))


@pytest.mark.parametrize(
    ("options", "reason"),
    (
        ({"preset": "fc"}, r"Matrix\(n=4\) reads with \[4, 4\] weights a token.*no kernels"),
        ({"manifold": "birkhoff", "n": 17}, "up to 16 streams, the config says 17"),
    ),
)
def test_configs_that_have_no_kernels(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackendUnavailableError, match=rf"backend='triton' cannot run: .*{reason}.*'auto' or 'torch'"):
        make_block(**options, backend="triton")
    for backend in ("auto", "torch"):
        make_block(**options, backend=backend)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    config = HyperConnectionConfig(4, backend="triton")
    block = HyperConnection(None, dim=DIM, config=config)
    monkeypatch.setitem(sys.modules, "triton", None)
    for call in (lambda: HyperConnection(None, dim=DIM, config=config), lambda: block.read(torch.zeros(2, 4, DIM))):
        with pytest.raises(
            BackendUnavailableError, match=r"pip install 'hyperconn\[triton\]'\); use backend='auto' or"
        ):
            call()
    with pytest.raises(BackendUnavailableError, match=r"device pairs .* pip install 'hyperconn\[triton\]'"):
        kernel_laws(Stiefel)
    auto = HyperConnection(None, dim=DIM, config=HyperConnectionConfig(4))
    assert auto.read(torch.zeros(2, 4, DIM))[0].shape == (2, DIM)


def test_tensors_that_do_not_fit_are_named() -> None:
    block = make_block("mhc", backend="triton")
    with pytest.raises(ValueError, match=r"parameters on cpu, the streams are on meta.*\.to\(device\)"):
        block.read(torch.zeros(2, 4, DIM, device="meta"))
    with pytest.raises(TypeError, match=r"dense.*sparse_coo.*to_dense"):
        block.read(torch.zeros(2, 4, DIM).to_sparse())


@pytest.mark.skipif(DEVICE != "cpu", reason="with a GPU the kernels never run on the CPU")
def test_other_devices_are_refused_by_the_interpreter() -> None:
    block = make_block("mhc", backend="triton").to("meta")
    with pytest.raises(BackendUnavailableError, match="TRITON_INTERPRET=1 runs kernels on the CPU, x is on meta"):
        block.read(torch.zeros(2, 4, DIM, device="meta"))


_ON_A_CPU = """
import sys
import torch
from hyperconn import BackendUnavailableError, HyperConnection, HyperConnectionConfig

def layer(backend):
    return HyperConnection(None, dim=8, config=HyperConnectionConfig(4, backend=backend))

x = torch.zeros(2, 4, 8)
assert layer("auto").read(x)[0].shape == layer("torch").read(x)[0].shape == (2, 8)
assert "triton" not in sys.modules, "nothing but the kernels may import triton"
for call in (lambda block: block.read(x), lambda block: block.coefficients(x)):
    try:
        call(layer("triton"))
    except BackendUnavailableError as error:
        print(error)
"""


def test_without_a_gpu_and_without_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", _ON_A_CPU], capture_output=True, text=True, env=environment, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    reason = (
        "backend='triton' cannot run: the kernels need a GPU, x is on cpu; TRITON_INTERPRET=1 runs them on the CPU, "
        "for tests; use backend='auto' or 'torch'"
    )
    assert done.stdout.splitlines() == [reason, reason]


def test_what_a_gpu_does_not_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperconn.backends.interpreting", lambda: False)
    gpu, fine, wide = torch.device("cuda"), torch.float32, torch.float64
    assert tensor_obstacle(gpu, wide, fine) == (
        "the kernels take bfloat16, float16 and float32, the streams are torch.float64"
    )
    assert "the parameters are torch.float64" in str(tensor_obstacle(gpu, fine, wide))
    assert "the kernels need a GPU, x is on mps" in str(tensor_obstacle(torch.device("mps"), fine, fine))
