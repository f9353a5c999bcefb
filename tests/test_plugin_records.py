"""Configs and checkpoints know the installed parts that they were made with."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig, UnknownNameError, manifolds
from hyperconn.manifolds import PluginVersionWarning, Provider, constrain
from hyperconn.manifolds.registry import Registry
from plugin_cases import Install, shape_class

BUILT_IN = manifolds.available()
EXTRA = Provider("extra", "1.0")
TILT = {"tilt": "extra_tilt:Tilt"}


@pytest.fixture
def extra(install: Install) -> Path:
    return install(entries=TILT, extra_tilt=shape_class())


# ------------------------------------------------------------------------------------------------- on record

FACTORS = [{"manifold": "tilt", "n": 2}, 2]


def config_with_plugin(nested: bool) -> HyperConnectionConfig:
    if nested:
        return HyperConnectionConfig(manifold="kronecker", manifold_options={"factors": FACTORS})
    return HyperConnectionConfig(manifold="tilt")


def forget() -> None:
    """As if the process had started after the change."""
    manifolds.unregister("tilt")
    for registry in Registry.all:
        registry._providers.clear()


def reinstall(info: Path, name: str, version: str) -> None:
    """Another distribution with the same module."""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    info.rename(info.with_name(f"{name.replace('-', '_')}-{version}.dist-info"))
    forget()


def saved_and_read(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())
    return state


def layers(nested: bool = False) -> nn.Module:
    return nn.ModuleList(HyperConnection(None, dim=8, config=config_with_plugin(nested)) for _ in range(3))


MODULES = {
    "layers": layers,
    "a factor": lambda: layers(True),
    "a parameter": lambda: constrain(nn.Linear(4, 4), "weight", "tilt"),
}
every_module = pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
changes = pytest.mark.parametrize(("name", "version"), [("extra", "2.0"), ("fork-of-extra", "1.0")])


@pytest.mark.parametrize("nested", [False, True], ids=["itself", "a factor"])
@changes
def test_a_config_knows_its_plugins(extra: Path, nested: bool, name: str, version: str) -> None:
    config = config_with_plugin(nested)
    table = config.to_dict()
    assert table["plugins"] == {"tilt": {"distribution": "extra", "version": "1.0"}}
    assert HyperConnectionConfig.from_dict(table) == config
    reinstall(extra, name, version)
    message = rf"'tilt' of extra 1.0; here it is that of {name} {version}, .*pip install 'extra==1.0'"
    with pytest.warns(PluginVersionWarning, match=message) as caught:
        assert HyperConnectionConfig.from_dict(table) == config
    assert len(caught) == 1
    other = {**table, "manifold": "stiefel", "manifold_options": {}}  # which needs the record no longer
    assert "plugins" not in HyperConnectionConfig.from_dict(other).to_dict()


@pytest.mark.parametrize("nested", [False, True])
def test_a_missing_plugin_comes_with_the_command_that_installs_it(
    extra: Path, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = config_with_plugin(nested).to_dict()
    forget()
    monkeypatch.setenv("HYPERCONN_PLUGINS", "")
    with pytest.raises(UnknownNameError, match="HYPERCONN_PLUGINS does not allow"):
        HyperConnectionConfig.from_dict(table)
    (extra / "entry_points.txt").unlink()
    with pytest.raises(UnknownNameError, match=r"'tilt' of extra 1.0, .*pip install 'extra==1.0'$"):
        HyperConnectionConfig.from_dict(table)


@pytest.mark.parametrize("config", [HyperConnectionConfig(), HyperConnectionConfig.preset("kromhc")], ids=repr)
def test_nothing_is_recorded_of_built_ins(extra: Path, config: HyperConnectionConfig) -> None:
    assert "plugins" not in config.to_dict()
    for module in (HyperConnection(None, 8, config), constrain(nn.Linear(4, 4), "weight", "stiefel")):
        assert not any("hyperconn_plugins" in note for note in saved_and_read(module)._metadata.values())


@pytest.mark.parametrize("line", ["Version: 1.0; touch owned\n", "Version: 1.0 (beta)\n"])
def test_a_version_that_cannot_be_asked_for_is_not_recorded(extra: Path, line: str) -> None:
    (extra / "METADATA").write_text(f"Metadata-Version: 2.1\nName: extra\n{line}", encoding="utf-8")
    config = config_with_plugin(False)
    assert HyperConnectionConfig.from_dict(config.to_dict()) == config and "plugins" not in config.to_dict()


GOOD = {"distribution": "extra", "version": "1.0"}
MALFORMED: list[Any] = [
    3,
    [],
    {"tilt": "extra==1.0"},
    {"tilt": {}},
    {"tilt": {**GOOD, "more": 1}},
    {"tilt": {**GOOD, "version": "1.0'; rm -rf '"}},
    {"tilt": {**GOOD, "distribution": "https://example.org/x"}},
    {"part:tilt": GOOD},
    {3: GOOD},
]


@pytest.mark.parametrize("records", MALFORMED, ids=repr)
def test_malformed_records(records: Any) -> None:
    with pytest.raises(ValueError, match=r"^the hyper-connection config: .*plugin.* must be a table of"):
        HyperConnectionConfig.from_dict({"plugins": records})
    block = HyperConnection(None, dim=8, config=HyperConnectionConfig(4))
    state = block.state_dict()
    state._metadata[""]["hyperconn_plugins"] = records  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"the checkpoint: .*plugin.* must be a table of"):
        block.load_state_dict(state)


@every_module
@changes
def test_checkpoints_know_their_plugins(extra: Path, build: Any, name: str, version: str) -> None:
    module = build()
    state = saved_and_read(module)
    assert [note["hyperconn_plugins"] for note in state._metadata.values() if "hyperconn_plugins" in note]
    build().load_state_dict(state)
    reinstall(extra, name, version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        module.load_state_dict(state)
    (warning,) = caught  # one for all layers
    assert warning.category is PluginVersionWarning and f"{name} {version}" in str(warning.message)


@every_module
def test_checkpoints_of_a_missing_plugin(extra: Path, build: Any) -> None:
    module = build()
    state = saved_and_read(module)
    (extra / "entry_points.txt").unlink()
    forget()
    with pytest.raises(RuntimeError, match=r"pip install 'extra==1.0'"):
        module.load_state_dict(state)
