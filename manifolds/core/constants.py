"""Constant tensors that a map needs, built once per size, dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from hyperconn.kernels.passes.watched import watched
from hyperconn.manifolds.core.map import real_numbers


@lru_cache(maxsize=128)
def _cached(build: Callable[[int], Tensor], n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor born in inference mode could not be saved for a later backward, one born in a mode is that mode's.
    with torch.inference_mode(False), real_numbers():
        return build(n).to(dtype=dtype, device=device)


def constant(build: Callable[[int], Tensor], n: int, like: Tensor) -> Tensor:
    """``build(n)`` in the dtype and on the device of ``like``. Never modify the result."""
    if torch.compiler.is_compiling():  # a traced graph owns its constants
        return build(n).to(dtype=like.dtype, device=like.device)
    if watched() or type(like) not in (Tensor, nn.Parameter):  # they get numbers of their own, made by one operator
        numbers = _cached(build, n, torch.float64, torch.device("cpu")).tolist()
        return torch.tensor(numbers, dtype=like.dtype, device=like.device)
    return _cached(build, n, like.dtype, like.device)
