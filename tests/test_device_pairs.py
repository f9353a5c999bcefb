"""Device pairs: what they are made of, and the names that torch operators carry for them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hyperconn.kernels.fused import pair as pair_module
from hyperconn.kernels.fused.maps.trivial import IDENTITY, _identity_backward, _identity_forward
from hyperconn.kernels.fused.pair import DevicePair, pair_named
from hyperconn.manifolds import Birkhoff

_PAIR_MODULE = """
import triton
import triton.language as tl
from hyperconn.kernels.fused.pair import DevicePair

@triton.jit
def _identity_forward(theta, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return theta

@triton.jit
def _identity_backward(theta, dH, n: tl.constexpr, N: tl.constexpr, OPTIONS: tl.constexpr):
    return theta

PAIR = DevicePair(_identity_forward, _identity_backward)
"""


def test_pairs_are_named_by_their_own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pair_of_a_plugin.py").write_text(_PAIR_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("pair_of_a_plugin")
    monkeypatch.setitem(sys.modules, "pair_of_a_plugin", module)
    assert module.PAIR.key != IDENTITY.key  # whose functions have the same names
    assert pair_named(module.PAIR.key) is module.PAIR
    first, second = module.PAIR, importlib.reload(module).PAIR  # as running a notebook cell again does
    assert pair_named(second.key) is second is not first
    with pytest.raises(ValueError, match="two device pairs are called .*other names"):
        _ = first.key


def test_a_key_is_enough_to_find_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Birkhoff(n=3).kernel.key
    monkeypatch.setattr("hyperconn.kernels.fused.pair._PAIRS", {})  # another process
    assert pair_named(key) == Birkhoff(n=3).kernel


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([1.0], TypeError, "options are a tuple, got"),
        ((np.float64(1.0),), TypeError, r"got np.float64\(1.0\); convert it"),
        (((1, torch.tensor(2)),), TypeError, "an option is a number, boolean, string or tuple"),
        ((None,), TypeError, "got None"),
        ((float("inf"),), ValueError, "options are finite, got inf"),
        ((float("nan"),), ValueError, "options are finite, got nan"),
    ],
)
def test_options_that_no_name_can_carry(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        DevicePair(_identity_forward, _identity_backward, options)


def test_options_of_every_kind_come_back_from_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = DevicePair(_identity_forward, _identity_backward, (1, 2.5, True, "a|b", (3, (4.0,))))
    key = pair.key
    monkeypatch.delitem(pair_module._PAIRS, key)
    assert pair_named(key) == pair and pair_named(key) is not pair


def test_a_pair_takes_kernel_functions() -> None:
    with pytest.raises(TypeError, match="backward takes a @triton.jit function, got <function"):
        DevicePair(_identity_forward, lambda theta, dH, n, N, OPTIONS: dH)
