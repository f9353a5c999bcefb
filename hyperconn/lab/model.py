"""A small GPT whose residual connections are whatever the config says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hyperconn.config import HyperConnectionConfig
from hyperconn.connection import HyperConnection
from hyperconn.lab.settings import ModelConfig

VOCABULARY = 256  # bytes


class Attention(nn.Module):
    """Pre-normed causal self-attention: ``[B, T, C] -> [B, T, C]``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.channels)
        self.qkv = nn.Linear(config.channels, 3 * config.channels)
        self.out = nn.Linear(config.channels, config.channels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, T, C / heads] each
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(-2)))


class MLP(nn.Module):
    """Pre-normed two-layer perceptron: ``[B, T, C] -> [B, T, C]``."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.channels)
        self.up = nn.Linear(config.channels, 4 * config.channels)
        self.out = nn.Linear(4 * config.channels, config.channels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Tensor) -> Tensor:
        return self.dropout(self.out(functional.gelu(self.up(self.norm(h)))))


class PlainResidual(nn.Module):
    """``h + F(h)``, the connection that hyper-connections generalise."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, h: Tensor) -> Tensor:
        return h + self.branch(h)


class GPT(nn.Module):
    """Byte-level pre-norm GPT: token and position embeddings, 2·blocks sublayers, final norm, tied output weights.

    Every sublayer is wrapped in a ``HyperConnection`` with its own ``layer_index``, or in the plain residual.

    Args:
        config: sizes.
        hyper_connection: kind of connection; None for the plain residual.
        seed: of all weights. Weights that do not belong to the connections depend on nothing else, so two models
            of the same sizes and seed start with equal ones.

    Shapes: ``tokens [B, T]`` int64 below 256, T ≤ context, to logits ``[B, T, 256]``.
    """

    def __init__(self, config: ModelConfig, hyper_connection: HyperConnectionConfig | None, *, seed: int) -> None:
        super().__init__()
        self.config = config
        self.hyper_connection = hyper_connection
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.token = nn.Embedding(VOCABULARY, config.channels)
            self.position = nn.Embedding(config.context, config.channels)
            branches: list[Attention | MLP] = []
            for _ in range(config.blocks):
                branches += [Attention(config), MLP(config)]
            self.norm = nn.LayerNorm(config.channels)
            self._start(branches)
            plain = (self.token, self.position, self.norm, *branches)
            self._plain_parameters = sum(p.numel() for module in plain for p in module.parameters())
            # Last, so that the draws above are the same for every kind of connection.
            self.sublayers = nn.Sequential(*(self._connect(branch, index) for index, branch in enumerate(branches)))
            self.collapse = self._make_collapse()

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[-1], device=tokens.device)
        x = self.token(tokens) + self.position(positions)  # [B, T, C]
        kind = self.hyper_connection
        x = self.sublayers(x if kind is None else kind.make_expand()(x, kind.streams))  # streams: [B, T, n, C]
        return functional.linear(self.norm(self.collapse(x)), self.token.weight)

    def loss(self, tokens: Tensor, following: Tensor) -> Tensor:
        """Mean cross-entropy of the next byte, in nats."""
        return functional.cross_entropy(self(tokens).flatten(0, 1), following.flatten())

    def num_parameters(self) -> int:
        """Learned numbers, tied ones counted once."""
        return sum(p.numel() for p in self.parameters())

    def num_connection_parameters(self) -> int:
        """Learned numbers that a plain residual would not have."""
        return self.num_parameters() - self._plain_parameters

    def _connect(self, branch: nn.Module, index: int) -> nn.Module:
        if self.hyper_connection is None:
            return PlainResidual(branch)
        return HyperConnection(branch, self.config.channels, self.hyper_connection, layer_index=index)

    def _make_collapse(self) -> Callable[[Any], Tensor]:
        kind = self.hyper_connection
        if kind is None:
            return nn.Identity()
        dim = kind.make_expand().stream_dim(self.config.channels, kind.streams)
        return kind.make_collapse().make(dim, kind.streams, norm_eps=kind.norm_eps)

    @torch.no_grad()
    def _start(self, branches: list[Attention | MLP]) -> None:
        """Unit variance through every matrix at any width; what is added to the residual smaller the more there is.

        GPT-2's fixed 0.02 is this for a width of 2,500; at the widths of a laptop it wastes hundreds of steps.
        """
        for module in (self.token, self.position, *(m for branch in branches for m in branch.modules())):
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(std=1 / math.sqrt(module.weight.shape[1]))
            if isinstance(module, nn.Linear):
                module.bias.zero_()
        for branch in branches:
            branch.out.weight.div_(math.sqrt(len(branches)))
