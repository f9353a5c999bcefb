"""Every launch of every Triton kernel of the library at a realistic size.

The tensors are on the meta device: launches are recorded, not run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


def cases(n: int, dtypes: Sequence[str] = tuple(DTYPES)) -> Iterator[tuple[str, str, list[Launch]]]:
    """For n streams: what a table calls a launcher, the name of the dtype of the streams, and what it would run.

    First the streaming kernels, then the coefficient step of every constraint, which never sees the streams: it appears
    once, as fp32.
    """
    for dtype in dtypes:
        for name, call in _streaming(n, DTYPES[dtype]).items():
            yield name, dtype, _recorded(call)
    for fields, largest_n in CONSTRAINTS:
        values = (value.values() if isinstance(value, dict) else [value] for value in fields.values())
        part = " ".join(word for words in values for word in words)
        for step, call in _steps(fields, n).items() if n <= largest_n else ():
            yield f"{step} {part}", "fp32", _recorded(call)


def _recorded(call: Callable[[], object]) -> list[Launch]:
    with recording() as launches:
        call()
    return launches


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _steps(fields: dict[str, Any], n: int) -> dict[str, Callable[[], object]]:
    layer = LayerSpec.of(HyperConnectionConfig(streams=n, **fields), CHANNELS)
    spec, pair = fused_spec(layer), layer.manifold.kernel
    if spec is None:
        raise ValueError(f"{layer.manifold!r}: no device pair; leave it out of CONSTRAINTS, or lower its largest n")
    theta, raw = _empty(TOKENS, layer.manifold.num_coordinates), _empty(TOKENS, sum(spec.sizes) + 1)
    dH, inputs = _empty(TOKENS, n, n), (raw, _empty(sum(spec.sizes)), _empty(len(spec.sizes)))
    gradients = _empty(TOKENS, n), _empty(TOKENS, n), dH
    return {
        "constrain": lambda: constrain_forward(theta, pair, n),
        "constrain backward": lambda: constrain_backward(theta, dH, pair, n),
        "coefficients": lambda: coefficients_forward(*inputs, spec),
        "coefficients backward": lambda: coefficients_backward(*inputs, *gradients, spec),
    }


def _streaming(n: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    x, y = _empty(TOKENS, n, CHANNELS, dtype=dtype), _empty(TOKENS, CHANNELS, dtype=dtype)
    H, w = _empty(TOKENS, n, n), _empty(TOKENS, n)
    fn = _empty(2 * n + n * n, n * CHANNELS)  # rows pre | post | an n×n residual
    draw = _empty(TOKENS, fn.shape[0] + 1)
    return {
        "project": lambda: project(x, fn),
        "read": lambda: read(x, w),
        "write": lambda: write(x, H, w, y),
        "write_project": lambda: write_project(x, H, w, y, fn),
        "write_backward": lambda: write_backward(x, w, y),
        "mixing_backward": lambda: mixing_backward(x, x, y),
        # H without a gradient, as of the manifold "identity".
        "mixing_backward, pre alone": lambda: mixing_backward(x, None, y),
        "project_backward": lambda: project_backward(x, H, x, w, y, fn, draw, True, True),
        # Frozen prediction weights.
        "project_backward, streams alone": lambda: project_backward(x, H, x, w, y, fn, draw, True, False),
        # Streams that no parameter came before.
        "project_backward, weights alone": lambda: project_backward(x, H, x, w, y, fn, draw, False, True),
        # Coefficients that are no prediction from the streams.
        "project_backward, no projection": lambda: project_backward(x, H, x, w, y, None, None, True, False),
    }
