"""A vision transformer on four residual streams learns the handwritten digits of scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from hyperconn import HyperConnection, HyperConnectionConfig, collapse_streams, expand_streams

DIM = 48
CONFIG = HyperConnectionConfig(streams=4, manifold="stiefel")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(DIM), nn.MultiheadAttention(DIM, 4, batch_first=True)

    def forward(self, h):
        return self.mix(*[self.norm(h)] * 3, need_weights=False)[0]


def mlp():
    return nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 96), nn.GELU(), nn.Linear(96, DIM))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.places = nn.Linear(4, DIM), nn.Parameter(torch.randn(16, DIM))
        branches = [Attention(), mlp(), Attention(), mlp()]
        layers = [HyperConnection(f, dim=DIM, config=CONFIG, layer_index=i) for i, f in enumerate(branches)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 10))

    def forward(self, images):  # [B, 1, 8, 8]
        patches = F.unfold(images, 2, stride=2).mT  # [B, 16, 4]
        x = expand_streams(self.embed(patches) + self.places, streams=CONFIG.streams)  # [B, 16, n, C]
        for layer in self.layers:
            x = layer(x)
        return self.head(collapse_streams(x, CONFIG.collapse).mean(1))


torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
images, labels = torch.tensor(digits.images / 16).float()[order, None], torch.tensor(digits.target)[order]
model = ViT()
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
for step in range(100):
    batch = torch.randint(1500, (64,))  # the other 297 are for the test
    loss = F.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, 99):
        print(f"step {step}: loss = {loss.item():.3f}")
with torch.no_grad():
    print(f"right in the test = {(model(images[1500:]).argmax(-1) == labels[1500:]).float().mean():.3f}")
