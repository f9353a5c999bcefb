"""A gate and a predictor: the Gated Residual of the ``qwen4_exp`` models of Hugging Face transformers.

Together with the manifold ``identity`` and the gate ``double_sigmoid`` for the write they are that residual:

    HyperConnectionConfig(
        streams=4, manifold="identity", predictor="low_rank", predictor_options={"rank": 320},
        pre_gate="channel_gate", pre_gate_options={"channels": C}, post_gate="double_sigmoid",
    )
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from hyperconn.gates import Gate
from hyperconn.kernels.passes.normalisation import inverse_rms
from hyperconn.manifolds.core.options import require_int
from hyperconn.predictors import Layout, Predictor, Start


@dataclass(frozen=True)
class ChannelGate(Gate):
    """A read weight for each channel of each stream: ``u = mean over i of Vᵢ ∘ xᵢ``, ``V = σ(l) ∘ f``.

    Two numbers a channel: n·C logits ``l``, then n·C factors ``f``, which take a norm of the streams into the weights.

    Options:
        channels: C, the channels of a stream.
    """

    channels: int = 1

    name = "channel_gate"
    source = "qwen4_exp in Hugging Face transformers"
    api_version = 1
    writes = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int(self, "channels", 1)

    @property
    def value_shape(self) -> tuple[int, ...]:
        return (self.n, self.channels)

    @property
    def num_coordinates(self) -> int:
        return 2 * self.n * self.channels

    def forward(self, theta: Tensor) -> Tensor:
        logits, factors = theta.unflatten(-1, (2, self.n, self.channels)).unbind(-3)
        return torch.sigmoid(logits) * factors

    def inverse(self, weights: Tensor) -> Tensor:
        """All channels of a stream alike. The read is a mean, so the factors are n."""
        logits = torch.logit(weights.clamp(max=1 - 2.0**-23))[:, None].expand(self.n, self.channels)
        return torch.cat([logits.flatten(), torch.full_like(logits, self.n).flatten()])

    def read(self, x: Tensor, weights: Tensor) -> Tensor:
        return (x.to(weights.dtype) * weights).mean(-2).to(x.dtype)

    @classmethod
    def examples(cls) -> tuple[ChannelGate, ...]:
        return cls(n=1), cls(n=3), cls(n=4, channels=5)


@dataclass(frozen=True)
class LowRank(Predictor):
    """Read logits by a product of low rank, write logits by one matrix, both from normalised streams ``R``.

    ``R`` is the RMS norm of each stream times ``1 + norm.weight``. The read logits are ``up · silu(down · R / n)``,
    followed by the factors ``R / x``; the write logits are ``inject · R / n``. There is no bias. ``up`` and ``inject``
    start with standard deviation ``fn_std``, so with 0 every token starts with equal weights.

    Options:
        rank: r, the rows of ``down``.

    Raises:
        ValueError: for other gates than ``channel_gate`` and one of n logits, or a manifold with coordinates.
    """

    rank: int = 320

    name = "low_rank"
    source = "qwen4_exp in Hugging Face transformers"
    api_version = 1

    def __post_init__(self) -> None:
        require_int(self, "rank", 1)

    def parameters(self, layout: Layout) -> dict[str, tuple[int, ...]]:
        # The groups say how many channels: a config asks before it knows those of its layers.
        n, width = layout.n, layout.sizes[0] // 2
        if layout.sizes != (2 * width, n) or width % n:
            raise ValueError(
                f"{self!r} predicts 2·{n}·C numbers for pre and {n} for post, the groups are {layout.sizes}; use it "
                "with pre_gate='channel_gate', a post gate of n logits such as 'double_sigmoid' and manifold='identity'"
            )
        return {"norm.weight": (width,), "down": (self.rank, width), "up": (width, self.rank), "inject": (n, width)}

    def reset(self, parameters: Mapping[str, Tensor], layout: Layout, start: Start) -> None:
        parameters["norm.weight"].zero_()
        parameters["down"].normal_(std=parameters["down"].shape[1] ** -0.5)
        for name in ("up", "inject"):
            parameters[name].normal_(std=start.fn_std)

    def logits(
        self, x: Tensor, raw: Tensor | None, parameters: Mapping[str, Tensor], layout: Layout
    ) -> Tensor:  # x [T, n, C]
        squares, outside = x.square().sum(-1, keepdim=True), layout.norm_eps_mode == "outside"
        scale = inverse_rms(squares, layout.channels, layout.norm_eps, outside)
        factors = scale * (1 + parameters["norm.weight"]).unflatten(-1, x.shape[-2:])
        mean = (x * factors).flatten(-2) / layout.n
        read = linear(silu(linear(mean, parameters["down"])), parameters["up"])
        return torch.cat([read, factors.flatten(-2), linear(mean, parameters["inject"])], -1)

    @classmethod
    def examples(cls) -> tuple[LowRank, ...]:
        return cls(rank=1), cls(rank=6)
