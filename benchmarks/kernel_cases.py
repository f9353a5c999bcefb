"""Every Triton kernel of the library, with a call that launches it at a realistic size.

The tensors are on the meta device, so a call is good for recording its launches, not for running them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hyperconn import HyperConnectionConfig
from hyperconn.coefficients import fused_spec
from hyperconn.kernels.fused.coefficients import coefficients_backward, coefficients_forward
from hyperconn.kernels.fused.constrain import constrain_backward, constrain_forward
from hyperconn.kernels.fused.launch import Launch, recording
from hyperconn.kernels.fused.passes.mixing_backward import mixing_backward
from hyperconn.kernels.fused.passes.project import project
from hyperconn.kernels.fused.passes.project_backward import project_backward
from hyperconn.kernels.fused.passes.read import read
from hyperconn.kernels.fused.passes.write import write, write_project
from hyperconn.kernels.fused.passes.write_backward import write_backward
from hyperconn.spec import LayerSpec

TOKENS, CHANNELS = 4096, 1024
STREAM_COUNTS = (2, 3, 4, 8, 16)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

# What differs from the default config, and the largest n that has device pairs.
CONSTRAINTS: tuple[tuple[dict[str, Any], int], ...] = (
    ({"manifold": "birkhoff"}, 16),
    ({"manifold": "birkhoff", "manifold_options": {"finish": "round"}}, 16),
    ({"manifold": "birkhoff", "manifold_options": {"gradient": "implicit"}}, 16),
    ({"manifold": "birkhoff", "manifold_options": {"gradient": "implicit", "finish": "round"}}, 16),
    ({"manifold": "permutation"}, 6),
    ({"manifold": "kronecker"}, 16),
    ({"manifold": "stiefel"}, 16),
    ({"manifold": "stiefel", "manifold_options": {"method": "iterative", "generator": "full"}}, 16),
    ({"manifold": "spectral_sphere"}, 16),
    ({"manifold": "grassmann"}, 16),
    ({"manifold": "identity"}, 16),
    ({"manifold": "unconstrained"}, 16),
    ({"manifold": "identity", "pre_gate": "softmax", "post_gate": "linear"}, 16),
    ({"manifold": "identity", "pre_gate": "row_softmax", "post_gate": "column_softmax"}, 16),
)


@dataclass(frozen=True)
class KernelCase:
    """One launcher.

    Attributes:
        name: what tables call it.
        launch: calls it for n streams of a dtype.
        dtypes: names of the stream dtypes that make a difference to it.
        largest_n: up to which n it exists.
    """

    name: str
    launch: Callable[[int, torch.dtype], object]
    dtypes: tuple[str, ...] = tuple(DTYPES)
    largest_n: int = 16

    def launches(self, n: int, dtype: str) -> list[Launch]:
        """What the launcher would run."""
        with recording() as launches:
            self.launch(n, DTYPES[dtype])
        return launches


def kernel_cases() -> list[KernelCase]:
    """All of them: the coefficient step of every constraint, and the streaming kernels."""
    found = [KernelCase(name, partial(_streaming, call)) for name, call in _STREAMING.items()]
    for fields, largest_n in CONSTRAINTS:
        words = (
            str(word) for value in fields.values() for word in (value.values() if isinstance(value, dict) else [value])
        )
        name = " ".join(words)
        for step, call in _STEPS.items():
            # Coefficients are float32 whatever the streams are.
            found.append(KernelCase(f"{step} {name}", partial(_step, call, fields), ("fp32",), largest_n))
    return found


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _step(call: Callable[..., object], fields: dict[str, Any], n: int, dtype: torch.dtype) -> object:
    layer = LayerSpec.of(HyperConnectionConfig(streams=n, **fields), CHANNELS)
    spec = fused_spec(layer)
    if spec is None:
        raise ValueError(f"{layer.manifold!r}: no device pair; leave it out of CONSTRAINTS, or lower its largest n")
    theta, raw = _empty(TOKENS, layer.manifold.num_coordinates), _empty(TOKENS, sum(spec.sizes) + 1)
    dH, inputs = _empty(TOKENS, n, n), (raw, _empty(sum(spec.sizes)), _empty(len(spec.sizes)))
    gradients = _empty(TOKENS, n), _empty(TOKENS, n), dH
    return call(theta, dH, layer.manifold.kernel, inputs, gradients, spec)


_STEPS: dict[str, Callable[..., object]] = {
    "constrain": lambda theta, dH, pair, inputs, gradients, spec: constrain_forward(theta, pair, spec.n),
    "constrain backward": lambda theta, dH, pair, inputs, gradients, spec: constrain_backward(theta, dH, pair, spec.n),
    "coefficients": lambda theta, dH, pair, inputs, gradients, spec: coefficients_forward(*inputs, spec),
    "coefficients backward": lambda theta, dH, pair, inputs, gradients, spec: coefficients_backward(
        *inputs, *gradients, spec
    ),
}


def _streaming(call: Callable[..., object], n: int, dtype: torch.dtype) -> object:
    x, y = _empty(TOKENS, n, CHANNELS, dtype=dtype), _empty(TOKENS, CHANNELS, dtype=dtype)
    fn = _empty(2 * n + n * n, n * CHANNELS)  # rows pre | post | an n×n residual
    return call(x, y, _empty(TOKENS, n, n), _empty(TOKENS, n), fn, _empty(TOKENS, fn.shape[0] + 1))


# Streams, vectors, matrices and weights of the tokens, prediction weights, and a gradient of what they predict.
_STREAMING: dict[str, Callable[..., object]] = {
    "project": lambda x, y, H, w, fn, draw: project(x, fn),
    "read": lambda x, y, H, w, fn, draw: read(x, w),
    "write": lambda x, y, H, w, fn, draw: write(x, H, w, y),
    "write_project": lambda x, y, H, w, fn, draw: write_project(x, H, w, y, fn),
    "write_backward": lambda x, y, H, w, fn, draw: write_backward(x, w, y),
    "mixing_backward": lambda x, y, H, w, fn, draw: mixing_backward(x, x, y),
    # H without a gradient, as of the manifold "identity".
    "mixing_backward, pre alone": lambda x, y, H, w, fn, draw: mixing_backward(x, None, y),
    "project_backward": lambda x, y, H, w, fn, draw: project_backward(x, H, x, w, y, fn, draw, True, True),
    # Frozen prediction weights.
    "project_backward, streams alone": lambda x, y, H, w, fn, draw: project_backward(
        x, H, x, w, y, fn, draw, True, False
    ),
    # Streams that no parameter came before.
    "project_backward, weights alone": lambda x, y, H, w, fn, draw: project_backward(
        x, H, x, w, y, fn, draw, False, True
    ),
    # Coefficients that are no prediction from the streams.
    "project_backward, no projection": lambda x, y, H, w, fn, draw: project_backward(
        x, H, x, w, y, None, None, True, False
    ),
}
