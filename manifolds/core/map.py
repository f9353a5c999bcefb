"""STUB"""
from __future__ import annotations
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar
import torch
from torch import Tensor
from hyperconn.kernels.autocast import without_autocast
MAX_FUSED_STREAMS = 16
def working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
@dataclass(frozen=True)
class Map(ABC):
    n: int
    name: ClassVar[str]
    source: ClassVar[str] = ""
    api_version: ClassVar[int] = 1
    @property
    def kernel(self) -> Any | None:
        return None
    def chosen_options(self):
        from hyperconn.manifolds.core.plain_data import chosen_options
        return chosen_options(self)
    def __call__(self, theta):
        with without_autocast(theta.device):
            return self.forward(theta.to(working_dtype(theta.dtype))).to(theta.dtype)
