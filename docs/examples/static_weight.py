"""A weight that stays orthogonal while it learns: a linear layer finds the rotation between two clouds of points."""

import torch
from torch import nn

from hyperconn import manifolds

torch.manual_seed(0)
n = 6
rotation = manifolds.make("stiefel", n=n)
truth = rotation(0.5 * torch.randn(rotation.num_coordinates))
points = torch.randn(200, n)
moved = points @ truth.mT

layer = nn.Linear(n, n, bias=False)
manifolds.constrain(layer, "weight", "stiefel")  # the weight is now computed from n(n - 1)/2 free coordinates
optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
for _ in range(200):
    loss = (layer(points) - moved).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

weight = layer.weight.detach()
print(f"largest difference from the rotation = {(weight - truth).abs().max():.2e}")
print(f"violation of the constraint = {rotation.violation(weight):.2e}")
