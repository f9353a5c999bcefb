"""Layers and configs with a plugin's manifold, sent to processes that start from nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hyperconn import HyperConnection, HyperConnectionConfig, manifolds
from hyperconn.manifolds import Provider
from plugin_cases import Install, shape_class

DIM = 8


@pytest.fixture
def extra(install: Install) -> Path:
    """A plugin, beside this module's own folder: worker processes look there for both."""
    return install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=shape_class()).parent


def layer() -> HyperConnection:
    block = HyperConnection(nn.Identity(), dim=DIM, config=HyperConnectionConfig(streams=4, manifold="tilt"))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter))
    return block


class Examples(Dataset[Tensor]):
    """Runs a layer wherever it is asked, and looks the plugin up by name there too."""

    def __init__(self, block: HyperConnection) -> None:
        self.block = block

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Tensor:
        assert manifolds.get("tilt") is type(self.block.manifold)
        assert manifolds.provider("tilt") == Provider("extra", "1.0")
        table = self.block.config.to_dict()
        config = HyperConnectionConfig.from_dict(table)
        assert table["plugins"] == config.to_dict()["plugins"] and table["plugins"]["tilt"]["distribution"] == "extra"
        assert config == self.block.config and "tilt" in manifolds.available()
        state = self.block.state_dict()
        self.block.load_state_dict(state)
        with torch.no_grad():
            return self.block(torch.full((4, DIM), float(index)))


def test_a_worker_that_starts_from_nothing(extra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spawned, not forked: nothing is inherited, so the layer is rebuilt from its pickle and the plugin found again."""
    # The workers import this module by its plain name, and the helpers beside it.
    monkeypatch.setitem(sys.modules, "test_processes", sys.modules[__name__])
    monkeypatch.setattr(Examples, "__module__", "test_processes")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}:{extra}")
    block = layer()
    loader = DataLoader(Examples(block), batch_size=None, num_workers=1, multiprocessing_context="spawn")
    found = list(loader)
    assert len(found) == 3
    for index, x in enumerate(found):
        assert torch.equal(x, block(torch.full((4, DIM), float(index))))
