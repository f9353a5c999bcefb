"""What the tests of the fused kernels share: where they run and how exact they have to be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

# In the interpreter kernels run in float64 too, where a wrong term cannot hide behind rounding.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT_DTYPE = torch.float32 if torch.cuda.is_available() else torch.float64
EXACT = 2e-5 if torch.cuda.is_available() else 1e-10

SIZES = (1, 2, 3, 4, 5, 8)

exhaustive = pytest.mark.exhaustive


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected entry, which must not vanish; NaN where actual is not finite."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    largest = float(expected.abs().amax())
    assert largest > 0, "a reference that vanishes proves nothing"
    return float((actual.double() - expected.double()).abs().amax()) / largest


def reference_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], cotangent: Tensor) -> list[Tensor]:
    """Gradients of ``function(*inputs)`` by autograd, in the dtype of the inputs."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    return list(torch.autograd.grad(function(*leaves), leaves, cotangent))


@contextmanager
def noting_saved() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        yield saved
