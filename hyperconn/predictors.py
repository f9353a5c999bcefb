"""Predictors: where the logits of a hyper-connection come from.

A predictor has parameters, but owns none: it says their names and shapes, the layer registers them under these names,
and every formula here gets them as an argument.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from hyperconn.kernels.passes.normalisation import inverse_rms
from hyperconn.manifolds.core.options import require_bool, require_choice, require_number
from hyperconn.manifolds.registry import Registry
from hyperconn.predictor import Layout as Layout
from hyperconn.predictor import Parameters as Parameters
from hyperconn.predictor import Predictor as Predictor
from hyperconn.predictor import Start as Start
from hyperconn.predictor import require_predictor

Affine = Literal["none", "weight", "affine"]

# How many times its learning rate Adam may move a logit in a step, but for the mean of the normed numbers, 0.8.
_RATE = 10.0
_LARGEST_RATE = 1e6  # leaves float32 room to multiply

PREDICTORS: Registry[Predictor] = Registry("predictor", Predictor, require_predictor)
register, unregister, get, make = PREDICTORS.register, PREDICTORS.unregister, PREDICTORS.get, PREDICTORS.make
available, aliases, provider = PREDICTORS.available, PREDICTORS.aliases, PREDICTORS.provider


def normalised(x: Tensor, kind: str, parameters: Parameters, layout: Layout) -> Tensor:
    """``x [..., K]`` over its RMS (``kind="rms"``) or standard deviation, times ``norm.weight`` plus ``norm.bias``."""
    weight, bias = parameters.get("norm.weight"), parameters.get("norm.bias")
    if layout.norm_eps_mode == "inside" and layout.norm_eps > 0:  # torch's own keep less for the backward
        if kind == "rms":
            return functional.rms_norm(x, x.shape[-1:], weight, layout.norm_eps)
        return functional.layer_norm(x, x.shape[-1:], weight, bias, layout.norm_eps)
    x = x - x.mean(-1, keepdim=True) if kind == "layer" else x
    square_sum = torch.linalg.vecdot(x, x).unsqueeze(-1)
    x = x * inverse_rms(square_sum, x.shape[-1], layout.norm_eps, layout.norm_eps_mode == "outside")
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _norm_parameters(norm_weight: Affine, size: int) -> dict[str, tuple[int, ...]]:
    names = {"none": (), "weight": ("norm.weight",), "affine": ("norm.weight", "norm.bias")}[norm_weight]
    return dict.fromkeys(names, (size,))


def _scaled(parts: Iterable[Tensor], scales: Iterable[Tensor], bases: Iterable[Tensor]) -> Tensor:
    """``scale · part + base`` of every group, side by side."""
    return torch.cat([torch.addcmul(b, s, p) for b, s, p in zip(bases, scales, parts, strict=True)], -1)


def _require_norm(predictor: Any) -> None:
    require_choice(predictor, "norm", ("rms", "layer"))
    require_choice(predictor, "norm_weight", ("none", "weight", "affine"))
    if predictor.norm == "rms" and predictor.norm_weight == "affine":
        raise ValueError(f"{type(predictor).__name__}: norm_weight='affine' goes with norm='layer'; use 'weight'")


def slowed(width: float, scale: float) -> dict[str, float]:
    """``Predictor.learning_rates`` of ``scale · (fn · x)``, x of that many normed numbers.

    A step that is small next to ``scale`` leaves it what it is, so that ``fn`` alone decides how fast the logits move.
    """
    scale = scale or 0.01  # from a scale of zero nothing else could be learned
    return {"fn": _RATE / (width * scale), "scale": scale}


@dataclass(frozen=True)
class _BuiltIn(Predictor):
    def reset(self, parameters: Parameters, layout: Layout, start: Start) -> None:
        values = {"fn": 0.0, "scale": start.scale, "norm.weight": 1.0, "norm.bias": 0.0}
        for name, parameter in parameters.items():
            if name == "base":
                parameter.copy_(start.logits)
            elif name == "fn" and start.fn_std > 0:
                parameter.normal_(std=start.fn_std)
            else:
                parameter.fill_(values[name])


@register("flat")
@dataclass(frozen=True)
class Flat(_BuiltIn):
    """Every logit from all streams at once: ``scale · (N(vec x) · fnᵀ) + base``, N a norm of a token's numbers.

    Parameters: ``fn [P_total, n·C]``; ``base [P_total]``, not divided by the norm; ``scale [groups]``, one factor a
    group; ``norm.weight`` and ``norm.bias`` ``[n·C]``.

    Options:
        norm: ``"rms"`` (mHC and all that follow it) or ``"layer"`` (JPmHC).
        norm_weight: what the norm learns: ``"none"``; a ``"weight"`` (released code of mHC-lite and KromHC), or an
            ``"affine"`` map, for ``norm="layer"``.
        bias: whether there is a ``base``.
        scale: whether there is a ``scale``.

    Source: mHC, arXiv 2512.24880, Eq. 7–9 and 14–19.
    """

    norm: Literal["rms", "layer"] = "rms"
    norm_weight: Affine = "none"
    bias: bool = True
    scale: bool = True

    name = "flat"
    source = "arXiv 2512.24880"

    def __post_init__(self) -> None:
        _require_norm(self)
        require_bool(self, "bias")
        require_bool(self, "scale")

    def parameters(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"fn": (layout.total, layout.width)}
        if self.bias:
            shapes["base"] = (layout.total,)
        if self.scale:
            shapes["scale"] = (len(layout.sizes),)
        return shapes | _norm_parameters(self.norm_weight, layout.width)

    def projection(self, parameters: Parameters, layout: Layout) -> Tensor | None:
        if self.norm == "layer":  # a mean to subtract is no part of the pass
            return None
        fn = parameters["fn"]
        return fn * parameters["norm.weight"] if self.norm_weight == "weight" else fn

    def logits(self, x: Tensor, raw: Tensor | None, parameters: Parameters, layout: Layout) -> Tensor:
        if raw is None:
            z = functional.linear(normalised(x.flatten(1), self.norm, parameters, layout), parameters["fn"])
        else:
            z, square_sum = raw.split([layout.total, 1], -1)
            outside = layout.norm_eps_mode == "outside"
            z = z * inverse_rms(square_sum, layout.width, layout.norm_eps, outside)
        base, scale = self.affine(z, parameters, layout)
        return _scaled(z.split(layout.sizes, -1), scale.unbind(), base.split(layout.sizes))

    def learning_rates(self, layout: Layout, start: Start) -> dict[str, float]:
        rates = slowed(layout.width, start.scale if self.scale else 1.0)
        if start.fn_std > 0:  # then all entries of the norm move a logit from the first step on
            rates |= dict.fromkeys(("norm.weight", "norm.bias"), rates["fn"] / start.fn_std)
        return rates

    @property
    def fuses(self) -> bool:
        return self.norm == "rms"

    def affine(self, raw: Tensor, parameters: Parameters, layout: Layout) -> tuple[Tensor, Tensor]:
        base = parameters["base"] if self.bias else raw.new_zeros(layout.total)
        return base, parameters["scale"] if self.scale else raw.new_ones(len(layout.sizes))

    @classmethod
    def examples(cls) -> tuple[Flat, ...]:
        return (
            cls(),
            cls(norm_weight="weight"),
            cls(norm="layer"),
            cls(norm="layer", norm_weight="weight", scale=False),
            cls(norm="layer", norm_weight="affine", bias=False, scale=False),
            cls(bias=False),
            cls(scale=False),
        )


@register("width_scaled")
@dataclass(frozen=True)
class WidthScaled(Flat):
    """``Flat``, over the number of what predicts: ``rate / (n·C) · (N(vec x) · fnᵀ) + base``.

    A step of Adam moves every entry of ``fn`` by about the learning rate. Here that moves a logit by about
    ``0.8 · rate`` learning rates, at any width. In ``Flat`` it grows with the width, and with ``scale``, which Adam
    multiplies within a few steps. There is no ``scale`` here: how strong the prediction is, ``fn`` says.

    Parameters: ``fn [P_total, n·C]`` and ``base [P_total]``; with the options of ``Flat`` also ``scale``,
    ``norm.weight`` and ``norm.bias``.

    Options: those of ``Flat``, and
        rate: the factor, above 0. Which one trains best is measured by ``benchmarks/recipe.py``.

    Source: the idea that learning rates of matrices go with 1 / width is µP's, arXiv 2203.03466.
    """

    scale: bool = False
    rate: float = _RATE

    name = "width_scaled"
    source = "arXiv 2203.03466"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_number(self, "rate", positive=True)
        if self.rate > _LARGEST_RATE:
            raise ValueError(f"WidthScaled: rate must be at most {_LARGEST_RATE:g}, got {self.rate!r}")

    def affine(self, raw: Tensor, parameters: Parameters, layout: Layout) -> tuple[Tensor, Tensor]:
        base, scale = super().affine(raw, parameters, layout)
        return base, scale * (self.rate / layout.width)

    def learning_rates(self, layout: Layout, start: Start) -> dict[str, float]:
        return slowed(_RATE, start.scale) if self.scale else {}

    @classmethod
    def examples(cls) -> tuple[WidthScaled, ...]:
        return cls(), cls(rate=300.0, scale=True), cls(norm="layer", norm_weight="affine", bias=False, rate=0.5)


@register("per_stream")
@dataclass(frozen=True)
class PerStream(_BuiltIn):
    """Stream i gives its own row of every group: ``scale · f(N(xᵢ) · fnᵀ) + base``, N a norm of its C channels.

    Parameters: ``fn [P_total / n, C]``; ``base [P_total]``; ``scale [2]``, one factor for pre and residual, one for
    post; ``norm.weight`` and ``norm.bias`` ``[C]``.

    Options:
        norm: ``"layer"`` (HC) or ``"rms"``.
        activation: f, ``"tanh"`` (HC) or ``"none"``.
        norm_weight: what the norm learns, ``"none"``, a ``"weight"`` or an ``"affine"`` map, the last for LayerNorm.

    Source: HC, arXiv 2409.19606; the paper's parameter counts have no norm weight, those of Frac-Connections
    (arXiv 2503.14125) have one.
    """

    norm: Literal["rms", "layer"] = "layer"
    activation: Literal["tanh", "none"] = "tanh"
    norm_weight: Affine = "none"

    name = "per_stream"
    source = "arXiv 2409.19606"

    def __post_init__(self) -> None:
        _require_norm(self)
        require_choice(self, "activation", ("tanh", "none"))

    def parameters(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        if any(size % layout.n for size in layout.sizes):
            raise ValueError(
                f"predictor='per_stream' gives every stream an equal share of each group of coordinates, but groups "
                f"of sizes {list(layout.sizes)} (pre, post, residual) do not divide by {layout.n} streams; use "
                "predictor='flat' or 'static'"
            )
        shapes = {"fn": (layout.total // layout.n, layout.channels), "base": (layout.total,), "scale": (2,)}
        return shapes | _norm_parameters(self.norm_weight, layout.channels)

    def learning_rates(self, layout: Layout, start: Start) -> dict[str, float]:
        return slowed(layout.channels, start.scale)

    def logits(self, x: Tensor, raw: Tensor | None, parameters: Parameters, layout: Layout) -> Tensor:
        rows = normalised(x, self.norm, parameters, layout) @ parameters["fn"].mT  # [T, n, P_total / n]
        rows = torch.tanh(rows) if self.activation == "tanh" else rows
        parts = rows.split([size // layout.n for size in layout.sizes], -1)
        alpha, beta = parameters["scale"].unbind()
        scales = [alpha, beta, *[alpha] * (len(parts) - 2)]
        return _scaled((part.flatten(-2) for part in parts), scales, parameters["base"].split(layout.sizes))

    @classmethod
    def examples(cls) -> tuple[PerStream, ...]:
        return (
            cls(),
            cls(norm="rms", activation="none"),
            cls(norm="rms", norm_weight="weight"),
            cls(norm_weight="affine", activation="none"),
        )


@register("static")
@dataclass(frozen=True)
class Static(_BuiltIn):
    """The same logits for every token: ``base``. Parameters: ``base [P_total]``. Source: HC, arXiv 2409.19606."""

    name = "static"
    source = "arXiv 2409.19606"

    def parameters(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        return {"base": (layout.total,)} if layout.total else {}

    def logits(self, x: Tensor, raw: Tensor | None, parameters: Parameters, layout: Layout) -> Tensor:
        return parameters["base"] if layout.total else x.new_zeros(0)
