"""A GPT block, attention and MLP, on four residual streams. It learns to predict the characters of this file."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from hyperconn import HyperConnection, HyperConnectionConfig, collapse_streams, expand_streams

DIM, HEADS, CONTEXT = 64, 4, 64
CONFIG = HyperConnectionConfig(streams=4, manifold="kronecker")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.RMSNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, h):
        q, k, v = self.qkv(self.norm(h)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


def mlp():
    return nn.Sequential(nn.RMSNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))


class GPT(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, DIM), nn.Embedding(CONTEXT, DIM)
        branches = [Attention(), mlp(), Attention(), mlp()]
        layers = [HyperConnection(f, dim=DIM, config=CONFIG, layer_index=i) for i, f in enumerate(branches)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Sequential(nn.RMSNorm(DIM), nn.Linear(DIM, vocabulary))

    def forward(self, tokens):  # [B, T]
        h = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        x = expand_streams(h, streams=CONFIG.streams)  # [B, T, n, C]
        for layer in self.layers:
            x = layer(x)  # was: h = h + branch(h)
        return self.head(collapse_streams(x, CONFIG.collapse))


torch.manual_seed(0)
text = Path(__file__).read_text("utf-8")
characters = sorted(set(text))
data = torch.tensor([characters.index(c) for c in text])
model = GPT(len(characters))
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
for step in range(80):
    starts = torch.randint(len(data) - CONTEXT, (12, 1)) + torch.arange(CONTEXT + 1)
    loss = F.cross_entropy(model(data[starts[:, :-1]]).mT, data[starts[:, 1:]])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, 79):
        print(f"step {step}: loss = {loss.item():.3f}")
