"""Constant tensors that a map needs, built once per size, dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode


@lru_cache(maxsize=128)
def _cached(build: Callable[[int], Tensor], n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor born in inference mode could not be saved for a later backward.
    with torch.inference_mode(False):
        return build(n).to(dtype=dtype, device=device)


def constant(build: Callable[[int], Tensor], n: int, like: Tensor) -> Tensor:
    """``build(n)`` in the dtype and on the device of ``like``. Never modify the result."""
    # What is built while somebody traces, fakes or watches operators belongs to them, not to those who come later.
    watched = (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or _get_current_dispatch_mode() is not None
    )
    if watched or type(like) not in (Tensor, nn.Parameter):
        return build(n).to(dtype=like.dtype, device=like.device)
    return _cached(build, n, like.dtype, like.device)
