"""The contract of a map: a frozen, stateless function of free coordinates, for manifolds and gates alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from hyperconn.kernels.autocast import without_autocast
from hyperconn.manifolds.core.errors import PartError
from hyperconn.manifolds.core.options import require_int
from hyperconn.manifolds.core.plain_data import chosen_options

# Far beyond any use (papers: 2 to 16); it turns a slip in a config into a message instead of an exhausted machine.
MAX_STREAMS = 1024

# Device pairs hold whole matrices in registers, which larger ones do not fit into.
MAX_FUSED_STREAMS = 16

M = TypeVar("M", bound="Map")
T = TypeVar("T")


def attribute(read: Callable[[Any], T]) -> T | Any:
    """A property that a subclass may replace by a class attribute, ``exact = True``, or by a property of its own.

    Static checkers let it do either only where the type leaves room for both: hence ``Any``.
    """
    return property(read)


class ClassName:
    """The name of a part whose class says none: that of the class."""

    def __get__(self, part: object, cls: type) -> str:
        return cls.__name__


@dataclass(frozen=True)
class Map(ABC):
    """A map from unconstrained coordinates to something that belongs to n streams.

    Calling it validates the coordinates and maps them, ``theta [..., P] -> [..., *value_shape]`` of the same dtype and
    device. bfloat16 and float16 coordinates are mapped in float32 and rounded once at the end; autocast is off inside.
    """

    n: int  # streams

    name: ClassVar[str] = cast(str, ClassName())  # what a config says
    source: ClassVar[str] = ""  # where it is from
    # Of the contract that the class was written for. It stays 1 here when API_VERSION rises: a class that says nothing
    # was written for the first.
    api_version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        require_int(self, "n", minimum=1, maximum=MAX_STREAMS)

    @attribute
    @abstractmethod
    def num_coordinates(self) -> int:
        """P, the length of ``theta``."""

    @attribute
    @abstractmethod
    def value_shape(self) -> tuple[int, ...]:
        """Shape of what one token's coordinates are mapped to."""

    @abstractmethod
    def forward(self, theta: Tensor, /) -> Tensor:
        """The map itself: ``[..., P]`` float32 or float64 to ``[..., *value_shape]``."""

    @property
    def kernel(self) -> Any | None:
        """The Triton device pair of the map, or None where the torch map is all there is."""
        return self.device_pair() if self.n <= MAX_FUSED_STREAMS else None

    def device_pair(self) -> Any | None:
        """What ``kernel`` is for up to 16 streams; import it in here, for nothing else may need triton."""
        return None

    def reference(self, theta: Tensor) -> Tensor:
        """The map as its paper writes it, for the laws to hold ``forward`` to: slow, plain, for moderate float64 theta.

        Raises:
            NotImplementedError: ``forward`` is as plain as can be.
        """
        raise NotImplementedError(f"{self!r} has no second formula of its map")

    @classmethod
    def examples(cls: type[M]) -> tuple[M, ...]:
        """Instances that the laws run on; cover sizes and options here. By default six sizes, as far as they exist."""
        made, refused = [], []
        for n in (1, 2, 3, 4, 5, 8):
            try:
                made.append(cls(n=n))
            except ValueError as error:
                refused.append(error)
        if not made:
            raise refused[0]
        return tuple(made)

    def chosen_options(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain data, however they were spelled.

        >>> from hyperconn import manifolds
        >>> manifolds.make("birkhoff", n=4, iterations=20, finish="round").chosen_options()
        {'finish': 'round'}
        """
        return chosen_options(self)

    def _hint(self) -> str:
        """What a message about wrong coordinates goes on with."""
        return ""

    def __call__(self, theta: Tensor) -> Tensor:
        """Map ``theta [..., P]`` to ``[..., *value_shape]``.

        Raises:
            TypeError: theta is not a floating point tensor.
            ValueError: its last dimension is not ``num_coordinates``.
            PartError: ``forward`` returned something else (a TypeError and a ValueError).
        """
        if not isinstance(theta, Tensor):
            raise TypeError(f"{self!r} maps a tensor of coordinates, got {type(theta).__name__}")
        if not theta.is_floating_point():
            raise TypeError(
                f"{self!r} takes floating point coordinates, got {theta.dtype}; convert with .float() first"
            )
        if theta.dim() == 0 or theta.shape[-1] != self.num_coordinates:
            raise ValueError(
                f"{self!r} takes coordinates of shape [..., {self.num_coordinates}], got {list(theta.shape)}"
                f"{self._hint()}"
            )
        with without_autocast(theta.device):
            value = self.forward(theta.to(working_dtype(theta.dtype)))
        # Classes may be anybody's, and what has another shape may broadcast.
        if not isinstance(value, Tensor) or value.shape != (*theta.shape[:-1], *self.value_shape):
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            expected = [*theta.shape[:-1], *self.value_shape]
            raise PartError(f"forward of {self!r} has to return a tensor of shape {expected}, it returned {got}")
        return value.to(theta.dtype)


@contextmanager
def real_numbers() -> Iterator[None]:
    """Tensors made here are real and on the CPU, whatever mode is on, also where there are no numbers (meta, fake)."""
    with _disable_current_modes(), torch.device("cpu"):
        yield


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.promote_types(dtype, torch.float32)
