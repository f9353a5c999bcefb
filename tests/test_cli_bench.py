"""``hyperconn bench``."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from cli_cases import refused, run, words
from hyperconn import HyperConnection, HyperConnectionConfig, manifolds
from hyperconn.cli.bench import _step

SMALL = ("--tokens", "5", "--dim", "8", "--rounds", "3")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


def small(*arguments: str) -> str:
    result = run("bench", *arguments, *SMALL)
    assert result.exit_code == 0, (result.output, result.exception)
    return words(result)


def test_every_manifold_is_timed_against_the_plain_residual() -> None:
    said = small("--device", "cpu", "--backend", "torch")
    for name in manifolds.available():
        assert re.search(rf" {name} torch [\d.]+ ms [\d.]+ [\d.]+ – [\d.]+ ", said), (name, said)
    assert re.search(r"plain residual [\d.]+ ms 1\.00 1\.00 – 1\.00 ", said)
    assert "5 tokens of 4×8, float32, on cpu" in said and "medians of 3 rounds" in said


@no_gpu  # the kernels run in the interpreter, on the CPU
def test_the_backend_that_runs_is_named() -> None:
    said = small("kronecker", "--streams", "2", "--dtype", "bfloat16", "--backend", "triton", "--device", "cpu")
    assert re.search(r" kronecker triton [\d.]+ ms", said), said
    assert "birkhoff" not in said and "5 tokens of 2×8, bfloat16" in said


def test_a_step_is_a_forward_and_backward_of_everything() -> None:
    torch.manual_seed(0)
    layer = HyperConnection(nn.RMSNorm(8), 8, HyperConnectionConfig(fn_std=0.1))
    x, seen = torch.randn(3, 4, 8), {}
    parameters = dict(layer.named_parameters())
    for name, tensor in (*parameters.items(), ("x", x.requires_grad_())):
        tensor.register_post_accumulate_grad_hook(lambda t, name=name: seen.update({name: float(t.grad.abs().amax())}))
    _step(layer, x, list(parameters.values()))()
    assert set(seen) == {*parameters, "x"} and len(parameters) == 4
    assert all(largest > 0 for largest in seen.values())
    assert x.grad is None and all(tensor.grad is None for tensor in parameters.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("birkof", "unknown manifold 'birkof'. Did you mean 'birkhoff'"),
        ("--dtype int8", "--dtype is one of float32, bfloat16, float16, got 'int8'"),
        ("--device nowhere", "--device 'nowhere' cannot be used here: Expected one of cpu, cuda"),
        ("--device meta", "--device is cpu, cuda or auto, got 'meta'"),
        pytest.param("--device cuda", "--device 'cuda' cannot be used here: ", marks=no_gpu),
        ("--backend fast", "unknown backend of a HyperConnectionConfig 'fast'"),
        ("stiefel --streams 20 --backend triton", "backend='triton' cannot run: the kernels hold up to 16"),
        # What was asked for by name cannot be left out.
        ("birkhoff permutation --streams 8", "the largest n is 6"),
        ("birkhoff even --streams 8", "even of extra 1.0: ValueError: n must be"),
        ("birkhoff stumbles --streams 8", "stumbles of extra 1.0: IndexError"),
    ],
)
def test_bad_input(choosy: None, arguments: str, message: str) -> None:
    assert message in refused("bench", *arguments.split(), *SMALL)


def test_without_names_what_cannot_be_timed_is_left_out(choosy: None) -> None:
    result = run("bench", "--streams", "8", "--device", "cpu", "--backend", "torch", *SMALL)
    assert result.exit_code == 0, (result.output, result.exception)
    table, below = result.stdout.split("medians of 3 rounds")
    assert " birkhoff " in table and "stumbles" not in table
    for line in (
        "permutation: ",
        "even: even of extra 1.0: ValueError: n must be a multiple of 6",
        "lost: manifold plugin 'lost' (entry point lost = extra_lost:Odd of extra 1.0) cannot be imported: SystemExit",
        "stumbles: stumbles of extra 1.0: IndexError: list index out of range",
    ):
        assert sum(said.startswith(line) for said in below.splitlines()) == 1, (line, below)
