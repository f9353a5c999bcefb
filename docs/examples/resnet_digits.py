"""A residual network of convolutions on four streams learns the handwritten digits of scikit-learn."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from hyperconn import HyperConnection, HyperConnectionConfig

CONFIG = HyperConnectionConfig(streams=4, channel_dim=1)


def convolutions(dim):
    half = [nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1, bias=False)]
    return nn.Sequential(*half, nn.BatchNorm2d(dim), nn.ReLU(), nn.Conv2d(dim, dim, 3, padding=1, bias=False))


class Stage(nn.Module):
    """Blocks of one width and resolution: [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, dim, blocks, first):
        super().__init__()
        self.expand, self.collapse = CONFIG.make_ends(dim)
        self.blocks = nn.ModuleList(
            HyperConnection(convolutions(dim), dim, CONFIG, layer_index=first + k) for k in range(blocks)
        )

    def forward(self, h):
        x = self.expand(h)  # [B, H, W, n, C]
        for block in self.blocks:
            x = block(x)  # was: h = h + block(h)
        return self.collapse(x)


torch.manual_seed(0)
digits = load_digits()
order = torch.randperm(len(digits.target))
images, labels = torch.tensor(digits.images / 16).float()[order, None], torch.tensor(digits.target)[order]
down = nn.Conv2d(16, 32, 2, stride=2)  # streams end where the width changes
stages = [nn.Conv2d(1, 16, 3, padding=1), Stage(16, 2, 0), down, Stage(32, 2, 2)]
model = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
for step in range(60):
    batch = torch.randint(1500, (64,))  # the other 297 are for the test
    loss = F.cross_entropy(model(images[batch]), labels[batch])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, 59):
        print(f"step {step}: loss = {loss.item():.3f}")
model.eval()
with torch.no_grad():
    print(f"right in the test = {(model(images[1500:]).argmax(-1) == labels[1500:]).float().mean():.3f}")
