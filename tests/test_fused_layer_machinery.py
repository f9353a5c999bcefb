"""Layers on the Triton backend under the machinery of training, and what they refuse."""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fused_cases import DEVICE, EXACT, EXACT_DTYPE, relative_error
from fused_layer_cases import compare, leaves_of, on, plugins, twins
from hyperconn import BackendUnavailableError, HyperConnection, HyperConnectionConfig
from hyperconn.backends import tensor_obstacle
from layer_cases import DIM, make_block
from source_tree import ROOT


def streams(block: HyperConnection, *batch: int) -> Tensor:
    return torch.randn(*batch, *block.stream_shape, dtype=EXACT_DTYPE, device=DEVICE)


# ------------------------------------------------------------------------------------------- read, write, recompute


@pytest.mark.parametrize("use_reentrant", (False, True))
@pytest.mark.parametrize("preset", ("mhc", "jpmhc", "hc"))
def test_checkpointed(preset: str, use_reentrant: bool) -> None:
    """The layer as a whole, and its branch alone."""
    fused, reference = twins(preset, branch=nn.Linear(DIM, DIM))
    x = streams(fused, 3)
    cotangent = torch.randn_like(x)
    theirs = x.double().requires_grad_()
    expected = torch.autograd.grad(reference(theirs), leaves_of(reference, theirs), cotangent.double())

    def branch_alone(x: Tensor) -> Tensor:
        u, write = fused.read(x)
        return write(checkpoint(fused.branch, u, use_reentrant=use_reentrant))

    for run in (lambda x: checkpoint(fused, x, use_reentrant=use_reentrant), branch_alone):
        mine = x.detach().clone().requires_grad_()
        fused.zero_grad()
        # The reentrant form supports backward() only.
        (run(mine) * cotangent).sum().backward()
        for leaf, wanted in zip(leaves_of(fused, mine), expected, strict=True):
            assert leaf.grad is not None and relative_error(leaf.grad, wanted) < EXACT


def test_two_phases_and_a_layer_that_is_dropped() -> None:
    fused, reference = twins("mhc")

    def dropped(block: nn.Module, x: Tensor) -> Tensor:
        """What was read is used, nothing is written."""
        u, _ = block.read(x)
        return x + torch.tanh(u).unsqueeze(-2)

    compare(fused, reference, streams(fused, 3), EXACT, through=dropped)

    def two_phases(block: nn.Module, x: Tensor) -> Tensor:
        u, write = block.read(x)
        return write(block.branch(u))

    compare(fused, reference, streams(fused, 3), EXACT, through=two_phases)


@pytest.mark.parametrize("backend", ("triton", "torch"))
def test_written_twice(backend: str) -> None:
    block = on(twins("mhc")[0], backend)
    u, write = block.read(streams(block, 3))
    write(u)
    with pytest.raises(RuntimeError, match=r"write was called twice.*call read again"):
        write(u)
    _, again = block.read(streams(block, 3))
    again(u)


@pytest.mark.parametrize("backend", ("triton", "torch"))
def test_read_without_autograd_and_written_with_it(backend: str) -> None:
    """Only the branch learns; nothing may pass for a gradient of the streams."""
    block = on(twins("mhc", branch=nn.Linear(DIM, DIM))[0], backend)
    x = streams(block, 3).requires_grad_()
    with torch.no_grad():
        u, write = block.read(x)
    out = write(block.branch(u))
    weight, other = torch.autograd.grad(out.sum(), (block.branch.weight, x), allow_unused=True)
    assert weight.abs().max() > 0 and other is None


# ------------------------------------------------------------------------------------------- transforms


def test_second_derivatives_are_refused() -> None:
    fused, reference = twins("mhc")
    for differentiated in ("x", "fn", "base"):
        x = streams(fused, 2).requires_grad_()
        leaf = x if differentiated == "x" else getattr(fused, differentiated)
        (first,) = torch.autograd.grad(fused(x).square().sum(), leaf, create_graph=True)
        for then in (x, fused.base, fused.scale):
            with pytest.raises(RuntimeError, match="no second derivatives.*backend='torch'"):
                torch.autograd.grad(first.square().sum(), then, retain_graph=True)
    x = streams(fused, 2).double().requires_grad_()
    (first,) = torch.autograd.grad(reference(x).square().sum(), x, create_graph=True)
    for second in torch.autograd.grad(first.square().sum(), (x, *reference.parameters())):
        assert second.abs().max() > 0


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


# Of torch's own modules.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("options", "compiler"),
    (
        ({"preset": "mhc"}, "aot_eager"),
        ({"preset": "mhc"}, "inductor"),
        ({"manifold": "test-cycles", "n": 3}, "aot_eager"),
        ({"manifold": "test-diagonal", "n": 3}, "aot_eager"),
        ({"preset": "hc"}, "aot_eager"),
        ({"preset": "mhc", "predictor": "static"}, "aot_eager"),
    ),
    ids=str,
)
def test_compiled_in_one_graph(options: dict[str, Any], compiler: str) -> None:
    torch._dynamo.reset()
    with plugins():
        fused, reference = twins(**options)
    compiled = torch.compile(fused, fullgraph=True, backend=compiler)
    through = lambda block, x: compiled(x) if block is fused else block(x)  # noqa: E731
    compare(fused, reference, streams(fused, 3), EXACT, through=through)
    compare(fused, reference, streams(fused, 5), EXACT, through=through)  # with a symbolic number of tokens
    with torch.no_grad():
        x = streams(fused, 5)
        assert relative_error(compiled(x), reference(x.double())) < EXACT


# ------------------------------------------------------------------------------------------- copies


def test_copies_and_pickles() -> None:
    with plugins():
        for options in ({"preset": "mhc"}, {"manifold": "test-diagonal", "n": 3}):
            fused, reference = twins(**options)
            fused(streams(fused, 1))  # what it remembers of that goes along
            for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
                assert other.config == fused.config and other.config.backend == "triton"
                compare(other, reference, streams(fused, 3), EXACT)


def test_state_dicts_fit_either_backend() -> None:
    one, other = make_block("mhc", backend="triton"), make_block("mhc", backend="torch")
    for parameter in other.parameters():
        parameter.data.normal_()
    x = torch.randn(3, *one.stream_shape, device=DEVICE)
    for source, target in ((other, one), (one, other)):
        buffer = io.BytesIO()
        torch.save(source.state_dict(), buffer)
        buffer.seek(0)
        target.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        source.to(DEVICE), target.to(DEVICE)
        assert relative_error(source(x).detach(), target(x).detach()) < 1e-5


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "reason"),
    (
        ({"preset": "fc"}, "reads with \\[4, 4\\] weights.*no kernels"),
        ({"manifold": "birkhoff", "n": 17}, "up to 16 streams, the config says 17"),
    ),
)
def test_configs_that_have_no_kernels(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackendUnavailableError, match=rf"backend='triton' cannot run: .*{reason}.*'auto' or 'torch'"):
        make_block(**options, backend="triton")
    for backend in ("auto", "torch"):
        make_block(**options, backend=backend)


def test_sixteen_streams() -> None:
    fused, reference = twins(manifold="kronecker", n=16)
    compare(fused, reference, streams(fused, 2), EXACT)


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    config = HyperConnectionConfig(4, backend="triton")
    block = HyperConnection(None, dim=DIM, config=config)
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "triton" else find(name, *rest))
    for call in (lambda: HyperConnection(None, dim=DIM, config=config), lambda: block.read(torch.zeros(2, 4, DIM))):
        with pytest.raises(BackendUnavailableError, match=r"triton is not installed; use backend='auto' or 'torch'"):
            call()
    auto = HyperConnection(None, dim=DIM, config=HyperConnectionConfig(4))
    assert auto.read(torch.zeros(2, 4, DIM))[0].shape == (2, DIM)


def test_tensors_that_do_not_fit_are_named() -> None:
    block = make_block("mhc", backend="triton")
    with pytest.raises(ValueError, match=r"parameters on cpu, the streams are on meta.*\.to\(device\)"):
        block.read(torch.zeros(2, 4, DIM, device="meta"))
    with pytest.raises(ValueError, match=r"\[\.\.\., 4, 8\], got \[2, 5, 8\]"):
        block.read(torch.zeros(2, 5, DIM))
    with pytest.raises(TypeError, match=r"dense.*sparse_coo.*to_dense"):
        block.read(torch.zeros(2, 4, DIM).to_sparse())
    for dtype in (torch.int64, torch.complex64):
        with pytest.raises(TypeError, match=f"floating point.*{dtype}"):
            block.read(torch.zeros(2, 4, DIM, dtype=dtype))


@pytest.mark.skipif(DEVICE != "cpu", reason="with a GPU the kernels never run on the CPU")
def test_other_devices_are_refused_by_the_interpreter() -> None:
    block = make_block("mhc", backend="triton").to("meta")
    with pytest.raises(BackendUnavailableError, match="TRITON_INTERPRET=1 runs kernels on the CPU, x is on meta"):
        block.read(torch.zeros(2, 4, DIM, device="meta"))


# ------------------------------------------------------------------------------------------- without the interpreter

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


def test_without_a_gpu() -> None:
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
