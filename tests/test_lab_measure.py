"""What is measured of the residual matrices."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from hyperconn import HyperConnection, HyperConnectionConfig
from hyperconn.lab import GPT, ModelConfig
from hyperconn.lab.measure import learning_layers, measure_matrices
from hyperconn.manifolds import Unconstrained, invariants

SIZES = ModelConfig(blocks=2, channels=8, heads=2, context=16)


def test_measurements_of_known_matrices() -> None:
    """Static layers whose H is known: the composed gains are powers of it."""
    growing = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    kind = HyperConnectionConfig(streams=2, manifold="unconstrained", predictor="static", orientation="direct")
    model = GPT(SIZES, kind, seed=0)
    for layer in model.sublayers:
        assert isinstance(layer, HyperConnection)
        with torch.no_grad():
            layer.base[-4:] = growing.flatten()
    report = measure_matrices(model, torch.randint(256, (3, 16)), chunk=2)
    assert report is not None and report.violation is None
    assert report.forward == [1.5, 2.0, 2.5, 3.0] == report.backward
    assert torch.equal(torch.tensor(report.mean), growing.expand(4, 2, 2)) and report.learns == [True] * 4
    power = torch.linalg.matrix_power(growing.double(), 4)
    assert report.spectral[-1] == pytest.approx(float(torch.linalg.matrix_norm(power, 2)))


@dataclasses.dataclass(frozen=True)
class Stochastic(Unconstrained):
    """Rows sum to 1 and columns need not: its transpose is no member."""

    name = "only-rows"
    invariants = (invariants.row_sums,)

    def forward(self, theta: Tensor) -> Tensor:
        return super().forward(theta).softmax(-1)


@pytest.mark.parametrize("orientation", ["direct", "transposed"])
def test_transposed_manifolds_are_measured_as_they_are_made(orientation: str) -> None:
    """What a layer applies is the transpose of what the manifold promises something about."""
    options = {"manifold": Stochastic(n=4), "fn_std": 3.0, "scale_init": 1.0, "init": "published"}
    kind = HyperConnectionConfig(orientation=orientation, **options)
    report = measure_matrices(GPT(SIZES, kind, seed=0), torch.randint(256, (2, 8)))
    assert report is not None and report.violation is not None and report.violation < report.tolerance
    # Of the direct one the rows sum to 1 at any depth, of its transpose the columns.
    exact, free = report.forward, report.backward
    if orientation == "transposed":
        exact, free = free, exact
    assert exact == pytest.approx([1.0] * 4, abs=1e-5) and min(free) > 1.1


LEARNING: dict[str, tuple[HyperConnectionConfig, list[bool]]] = {
    "free": (HyperConnectionConfig.preset("hc", fn_std=0.5), [True, True, True, True]),
    "doubly stochastic": (HyperConnectionConfig.preset("kromhc", fn_std=0.5), [False, True, True, False]),
    "seen by a head": (HyperConnectionConfig.preset("kromhc", fn_std=0.5, collapse="head"), [False, True, True, True]),
    "orthogonal": (HyperConnectionConfig.preset("jpmhc", fn_std=0.5), [True, True, True, True]),
    "rows": (HyperConnectionConfig(manifold=Stochastic(n=4), fn_std=0.5), [False, True, True, True]),
    "columns": (
        HyperConnectionConfig(manifold=Stochastic(n=4), orientation="transposed", fn_std=0.5),
        [True, True, True, False],
    ),
}


@pytest.mark.parametrize("kind", LEARNING)
def test_layers_that_cannot_learn(kind: str) -> None:
    """Another H in a layer changes what the model says, or it does not: that is what is claimed."""
    config, expected = LEARNING[kind]
    model, tokens = GPT(SIZES, config, seed=0).double().eval(), torch.randint(256, (2, 8))
    own = [p for name, p in model.named_parameters() if name.startswith(("sub", "coll")) and ".branch." not in name]
    with torch.no_grad():
        for p in own:  # far from H = I
            p.add_(torch.randn_like(p) * 0.5)
        said, changes = model(tokens), []
        for layer in model.sublayers:
            assert isinstance(layer, HyperConnection)
            spec, other = layer.spec, copy.copy(layer.spec.manifold)
            forward = spec.manifold.forward
            object.__setattr__(other, "forward", lambda theta, forward=forward: forward(theta.flip(-1) * 2 + 0.3))
            layer.spec = dataclasses.replace(spec, manifold=other)
            changes.append(bool((model(tokens) - said).abs().max() > 1e-6))
            layer.spec = spec
    assert changes == expected == learning_layers(config, 4)
    assert not any(learning_layers(HyperConnectionConfig.preset("ihc"), 4))
