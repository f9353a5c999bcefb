"""Which implementation runs a layer, and why."""

from __future__ import annotations

import importlib.util
import os

import torch

from hyperconn.manifolds.core.map import MAX_FUSED_STREAMS
from hyperconn.spec import LayerSpec

_AMD = "gfx942"
_STREAM_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for by name cannot run here."""


def interpreting() -> bool:
    """Whether Triton kernels run in their interpreter, on the CPU: what ``TRITON_INTERPRET=1`` asks for."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def triton_missing() -> str | None:
    """That triton is not installed, and how it gets here; None where it is."""
    if importlib.util.find_spec("triton") is not None:
        return None
    return "triton is not installed (on Linux: pip install 'hyperconn[triton]')"


def layer_obstacle(spec: LayerSpec) -> str | None:
    """Why such a layer cannot run on the Triton kernels, on any machine like this one; None if it can."""
    missing = triton_missing()
    if missing is not None:
        return missing
    n = spec.layout.n
    if n > MAX_FUSED_STREAMS:
        return f"the kernels hold up to {MAX_FUSED_STREAMS} streams, the config says {n}"
    if not spec.one_weight_a_stream:
        shape = list(spec.pre_gate.value_shape)
        return f"{spec.pre_gate!r} reads with {shape} weights a token, for which there are no kernels"
    return None


def tensor_obstacle(device: torch.device, streams: torch.dtype, parameters: torch.dtype) -> str | None:
    """Why streams on that device and of that dtype cannot run on the Triton kernels; None if they can."""
    if interpreting():
        return None if device.type == "cpu" else f"TRITON_INTERPRET=1 runs kernels on the CPU, x is on {device}"
    if device.type != "cuda":
        return f"the kernels need a GPU, x is on {device}; TRITON_INTERPRET=1 runs them on the CPU, for tests"
    for what, dtype in (("the streams", streams), ("the parameters", parameters)):
        if dtype not in _STREAM_DTYPES:
            return f"the kernels take bfloat16, float16 and float32, {what} are {dtype}"
    if torch.version.hip is None:
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"the kernels need compute capability 8.0, {torch.cuda.get_device_name(device)} has less"
    elif not torch.cuda.get_device_properties(device).gcnArchName.startswith(_AMD):
        return f"of AMD's GPUs the kernels compile for {_AMD} alone, {torch.cuda.get_device_name(device)} is another"
    return None


def choose_backend(spec: LayerSpec, device: torch.device, streams: torch.dtype, parameters: torch.dtype) -> str:
    """``"torch"`` or ``"triton"``; ``"auto"`` means Triton on a GPU wherever it can run, nothing else is replaced.

    Raises:
        BackendUnavailableError: ``"triton"`` was asked for and cannot run.
    """
    asked = spec.config.backend
    if asked == "torch" or (asked == "auto" and device.type != "cuda"):
        return "torch"
    obstacle = layer_obstacle(spec) or tensor_obstacle(device, streams, parameters)
    if obstacle is None:
        return "triton"
    if asked == "auto":
        return "torch"
    raise BackendUnavailableError(f"backend='triton' cannot run: {obstacle}; use backend='auto' or 'torch'")


def require_backend(spec: LayerSpec) -> None:
    """Raise what can be known before any tensor is there.

    Raises:
        BackendUnavailableError: ``"triton"`` was asked for and can never run.
    """
    obstacle = layer_obstacle(spec) if spec.config.backend == "triton" else None
    if obstacle:
        raise BackendUnavailableError(f"backend='triton' cannot run: {obstacle}; use backend='auto' or 'torch'")
