"""Whether somebody looks at each operator."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode


def watched() -> bool:
    """Whether a compiler, a trace, vmap or a mode (fake tensors, selective checkpoints) sees each operator.

    It may keep what an operator returns: then nothing is changed in place, and nothing is kept for those who come
    later. A mode that keeps nothing itself may say so by an attribute ``only_counts``.
    """
    if torch.compiler.is_compiling():
        return True
    mode = _get_current_dispatch_mode()
    kept = mode is not None and not getattr(mode, "only_counts", False)
    return kept or torch._C._are_functorch_transforms_active() or torch._C._get_tracing_state() is not None
