"""What the tests of the fused kernels share: where they run and how exact they have to be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from hyperconn.kernels.fused.launch import Launch

# In the interpreter kernels run in float64 too, where a wrong term cannot hide behind rounding.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXACT_DTYPE = torch.float32 if torch.cuda.is_available() else torch.float64
EXACT = 2e-5 if torch.cuda.is_available() else 1e-10

both_backends = pytest.mark.parametrize("backend", ("torch", "triton"))
exhaustive = pytest.mark.exhaustive


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected entry, which must not vanish; NaN where actual is not finite."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    largest = float(expected.abs().amax())
    assert largest > 0, "a reference that vanishes proves nothing"
    return float((actual.double() - expected.double()).abs().amax()) / largest


def check_gradients(
    actual: Tensor,
    expected: Tensor,
    leaves: list[Tensor],
    cotangent: Tensor | None = None,
    tolerance: float | None = None,
) -> None:
    """Same output and, under a random cotangent, the same gradient of every leaf that needs one and has one."""
    assert actual.dtype == expected.dtype
    tolerance = tolerance or (1e-10 if expected.dtype == torch.float64 else 2e-5)
    assert relative_error(actual.detach(), expected.detach()) < tolerance
    cotangent = torch.randn_like(expected) if cotangent is None else cotangent
    needed = [leaf for leaf in leaves if leaf.requires_grad]
    found, wanted = (torch.autograd.grad(out, needed, cotangent, allow_unused=True) for out in (actual, expected))
    assert [one is None for one in found] == [two is None for two in wanted]
    errors = [relative_error(one, two) for one, two in zip(found, wanted, strict=True) if one is not None]
    assert errors and max(errors) < tolerance


def reference_gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], cotangent: Tensor) -> list[Tensor]:
    """Gradients of ``function(*inputs)`` by autograd, in the dtype of the inputs."""
    leaves = [value.detach().requires_grad_() for value in inputs]
    return list(torch.autograd.grad(function(*leaves), leaves, cotangent))


@contextmanager
def noting_saved() -> Iterator[list[Tensor]]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        yield saved


@contextmanager
def counting_launches() -> Iterator[Counter[str]]:
    """Kernels that run, by name."""
    counts: Counter[str] = Counter()
    run = Launch.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launch, "run", lambda self: (counts.update([self.name]), run(self))[1])
        yield counts
