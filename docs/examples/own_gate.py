"""A gate of your own: write weights between 0.1 and 2, so that no stream is ever cut off from the branch."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig, collapse_streams, expand_streams, gates


@gates.register("floored")  # only for configs that are written to files
@dataclass(frozen=True)
class Floored(gates.Gate):
    """least + (2 - least) · sigmoid(logits)."""

    name = "floored"
    least: float = 0.1

    def forward(self, logits: Tensor) -> Tensor:  # [..., n] -> [..., n]
        return self.least + (2 - self.least) * torch.sigmoid(logits)

    def inverse(self, weights: Tensor) -> Tensor:  # [n] float64 -> [n]: the logits of a start
        return torch.logit((weights - self.least) / (2 - self.least))


torch.manual_seed(0)
gate = Floored(n=4)
by_object = HyperConnectionConfig(streams=4, manifold="kronecker", post_gate=gate, scale_init=1.0)
by_name = HyperConnectionConfig.from_dict({**HyperConnectionConfig().to_dict(), "post_gate": "floored"})
assert by_name.to_dict()["post_gate"] == "floored"

layers = nn.ModuleList(
    HyperConnection(
        nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), dim=8, config=by_object, layer_index=i
    )
    for i in range(3)
)
inputs = torch.randn(256, 8)
targets = inputs.roll(1, -1).sin()
optimizer = torch.optim.Adam(layers.parameters(), lr=1e-2)
for step in range(100):
    x = expand_streams(inputs, streams=4)
    for layer in layers:
        x = layer(x)
    loss = (collapse_streams(x, "mean") - targets).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step in (0, 99):
        print(f"step {step}: loss = {loss.item():.3f}")
print(f"least write weight = {min(layer.coefficients(x).post.min().item() for layer in layers):.3f}")
