"""What a predictor is: a formula for the logits, with parameters that it names and a layer owns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor

from hyperconn.manifolds.core.errors import PartError
from hyperconn.manifolds.core.instance_check import ask, called, require, require_tensor, require_value, sample_numbers
from hyperconn.manifolds.core.map import ClassName, attribute
from hyperconn.manifolds.core.plain_data import chosen_options

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """What a predictor predicts, and from what.

    Attributes:
        n: number of streams.
        channels: channels C of a stream.
        sizes: number of logits of each group, in the order pre | post | residual groups of the manifold.
        norm_eps: added to the mean square (or variance) of what predicts.
        norm_eps_mode: ``"inside"`` of the root or ``"outside"``, added to the root itself.
    """

    n: int
    channels: int
    sizes: tuple[int, ...]
    norm_eps: float = 1e-6
    norm_eps_mode: Literal["inside", "outside"] = "inside"

    @property
    def total(self) -> int:
        """P_total, the number of all logits."""
        return sum(self.sizes)

    @property
    def width(self) -> int:
        """n·C, the numbers of a token."""
        return self.n * self.channels


class Start(NamedTuple):
    """Where the parameters of a predictor start.

    Attributes:
        logits: ``[P_total]`` float64, what every token's logits are at zero prediction.
        scale: of the predicted part of every group.
        fn_std: standard deviation of the prediction weights; 0 for zeros.
    """

    logits: Tensor
    scale: float = 0.01
    fn_std: float = 0.0


@dataclass(frozen=True)
class Predictor(ABC):
    """A formula for the logits, with parameters of its own.

    Subclass as a frozen dataclass; options are fields. ``parameters``, ``reset`` and ``logits`` have to be said. The
    tensors that come in have one dtype, float32 or float64, whatever the streams are.
    """

    name: ClassVar[str] = cast(str, ClassName())
    source: ClassVar[str] = ""
    api_version: ClassVar[int] = 1

    @abstractmethod
    def parameters(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parameters. ``"norm.weight"`` is the parameter ``weight`` of a submodule ``norm``.

        Raises:
            ValueError: the predictor cannot predict groups of these sizes.
        """

    @abstractmethod
    def reset(self, parameters: Parameters, layout: Layout, start: Start) -> None:
        """Write the start into the parameters, in place; runs without autograd."""

    @abstractmethod
    def logits(self, x: Tensor, raw: Tensor | None, parameters: Parameters, layout: Layout) -> Tensor:
        """``[T, P_total]``, or ``[P_total]`` where they do not depend on the token.

        Args:
            x: the streams, ``[T, n, C]``.
            raw: ``[T, K + 1]`` with what ``projection`` returned: ``vec x · Wᵀ`` and, last, ``vec x · vec x``.
            parameters: by name.
            layout: sizes and eps.
        """

    def projection(self, parameters: Parameters, layout: Layout) -> Tensor | None:
        """``W [K, n·C]``, which the streams are multiplied with in the pass over them; None for no such product."""
        return None

    def learning_rates(self, layout: Layout, start: Start) -> dict[str, float]:
        """Factors of the learning rates, by name, with which Adam moves logits as in ``WidthScaled``; 1 if absent.

        ``hyperconn.parameter_groups`` asks for them.
        """
        return {}

    @attribute
    def fuses(self) -> bool:
        """Whether the logits are ``scale · z + base``, z the normalised projection: what the fused kernels compute."""
        return False

    def affine(self, raw: Tensor, parameters: Parameters, layout: Layout) -> tuple[Tensor, Tensor]:
        """``base [P_total]`` and ``scale [groups]`` of a predictor that ``fuses``, in the dtype of ``raw``."""
        raise NotImplementedError(f"{self!r} gives logits that no kernel computes")

    def chosen_options(self) -> dict[str, Any]:
        """The options that differ from their defaults, as plain data."""
        return chosen_options(self)

    @classmethod
    def examples(cls) -> tuple[Any, ...]:
        """Instances that the laws run on; cover the options here."""
        return (cls(),)


def require_predictor(predictor: Predictor) -> None:
    """Refuse a predictor that gives no parameters or no logits in a small layout; PartError says why."""
    require_value(predictor)
    layout = Layout(2, 3, (2, 2, 4))
    try:
        shapes = ask(predictor, "parameters", lambda: predictor.parameters(layout), may=(ValueError,))
    except ValueError as error:
        if isinstance(error, PartError):
            raise
        return  # another layout, as the message of the layer will say
    named = isinstance(shapes, Mapping) and all(isinstance(name, str) for name in shapes)
    require(predictor, "parameters", named, "a dict of names and shapes", shapes)
    for name, shape in shapes.items():
        sizes = isinstance(shape, tuple) and all(type(size) is int for size in shape)
        require(predictor, f"parameters[{name!r}]", sizes, "a shape, a tuple of ints as (4, 8) or (4,)", shape)
    with sample_numbers():
        parameters = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name, shape in shapes.items()}
        start = Start(torch.linspace(-1, 1, layout.total, dtype=torch.float64))
        with torch.no_grad():
            ask(predictor, "reset", lambda: predictor.reset(dict(parameters), layout, start))
        for name, value in parameters.items():
            if not bool(value.isfinite().all()):
                raise PartError(
                    f"{called(predictor, 'reset')} leaves {name!r} as it was, uninitialised memory: write into every "
                    "parameter in place, with copy_, zero_, fill_ or normal_"
                )
        x = torch.sin(torch.arange(30, dtype=torch.float64)).reshape(5, 2, 3)
        W = ask(predictor, "projection", lambda: predictor.projection(parameters, layout))
        raw = None
        if W is not None:
            require_tensor(predictor, "projection", W, (W.shape[0], layout.width), dtype=x.dtype)
            raw = torch.cat([x.flatten(1) @ W.mT, x.flatten(1).square().sum(-1, keepdim=True)], -1)
        logits = ask(predictor, "logits", lambda: predictor.logits(x, raw, parameters, layout))
        require_tensor(predictor, "logits", logits, (5, layout.total), (layout.total,), dtype=x.dtype)
