"""What layers on the Triton backend refuse, and what they say then."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from fused_cases import DEVICE
from hyperconn import BackendUnavailableError, HyperConnection, HyperConnectionConfig
from hyperconn.backends import tensor_obstacle
from layer_cases import DIM, make_block
from source_tree import ROOT

# ------------------------------------------------------------------------------------------- what is refused


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
