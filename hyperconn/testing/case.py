"""The situation in which a law is checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from hyperconn.manifolds.core.map import Map

# Numbers of the independent random streams that one seed gives rise to; laws use 2 and more.
_COORDINATES, _PATTERN = 0, 1
_STREAMS = 64
# Longer literals are no help to a reader.
_SHORT = 32


@dataclass(frozen=True, eq=False)
class Case:
    """The coordinates of a case, and the seed of everything else that a law draws.

    Attributes:
        theta: ``[*batch, P]`` coordinates, in the dtype and on the device of the case.
        seed: of cotangents, directions and whatever else is random.
        scale: that the coordinates were drawn at; none is larger than a few of it.
    """

    theta: Tensor
    seed: int = 0
    scale: float = 1.0

    @classmethod
    def of(
        cls,
        subject: Map,
        seed: int = 0,
        scale: float = 1.0,
        batch: tuple[int, ...] = (3,),
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        *,
        smooth: bool = False,
    ) -> Case:
        """The case of a seed. Half of the tokens are normal, the others awkward; smooth ones are all normal.

        The awkward ones have coordinates ±scale, zeros, one that is not zero, all alike, or sizes down to 1e-9. Numbers
        are drawn in float64 on the CPU and then rounded and moved: a case means the same wherever it is checked.
        """
        shape = (*batch, subject.num_coordinates)
        normal = torch.randn(shape, dtype=torch.float64, generator=_generator(seed, _COORDINATES))
        theta = normal if smooth else _awkward(normal, _generator(seed, _PATTERN))
        return cls((scale * theta).to(dtype=dtype, device=device), seed, scale)

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch shape of the coordinates."""
        return tuple(self.theta.shape[:-1])

    @property
    def dtype(self) -> torch.dtype:
        """Of the coordinates."""
        return self.theta.dtype

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.theta.device

    @property
    def count(self) -> int:
        """Number of tokens in the batch."""
        return math.prod(self.batch)

    def coordinates(self) -> Tensor:
        """``[*batch, P]`` a copy of the coordinates, which nobody spoils for the next."""
        return self.theta.clone()

    def normal(self, *shape: int, stream: int) -> Tensor:
        """Standard normal numbers in the dtype of the case; streams, 2 to 63, are independent of each other."""
        numbers = torch.randn(shape, dtype=torch.float64, generator=_generator(self.seed, stream))
        return numbers.to(dtype=self.dtype, device=self.device)

    def __repr__(self) -> str:
        shape, device = tuple(self.theta.shape), f", device={str(self.device)!r}" if self.device.type != "cpu" else ""
        kind = f"dtype={self.dtype}{device}"
        if self.theta.numel() > _SHORT:
            numbers = f"<numbers of shape {shape}, {kind}>"
        elif self.theta.numel():
            numbers = f"torch.tensor({self.theta.tolist()}, {kind})"
        else:
            numbers = f"torch.zeros({shape}, {kind})"
        return f"Case({numbers}, seed={self.seed}, scale={self.scale})"


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed(_STREAMS * seed + stream)


def _awkward(normal: Tensor, generator: torch.Generator) -> Tensor:
    """Normal tokens ``[..., P]``, half of them made awkward in one of five ways."""
    P = normal.shape[-1]
    pattern = torch.randint(10, (*normal.shape[:-1], 1), generator=generator)
    uniform = torch.rand(normal.shape, dtype=torch.float64, generator=generator)
    hot = torch.arange(P) == torch.randint(max(P, 1), pattern.shape, generator=generator)
    ways = (normal.sign(), normal * (uniform < 0.5), normal * hot, normal[..., :1], normal * 10 ** (-9 * uniform))
    for k, way in enumerate(ways):
        normal = torch.where(pattern == k, way, normal)
    return normal
