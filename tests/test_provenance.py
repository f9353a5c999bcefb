"""Configs and checkpoints remember which distribution provided their manifold."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from hyperconn import HyperConnection, HyperConnectionConfig, UnknownNameError, manifolds
from hyperconn.lab.checkpoint import identity
from hyperconn.lab.config import LabConfig
from hyperconn.manifolds import PluginVersionWarning, constrain
from hyperconn.manifolds.registry import registry
from plugin_cases import Install, shape_class

RECORD = {"tilt": {"distribution": "Extra.Shapes", "version": "1.0"}}
FACTORS = [{"manifold": "tilt", "n": 2}, 2]
CONFIGS = [
    HyperConnectionConfig(streams=4),
    HyperConnectionConfig(streams=4, manifold="kronecker"),
    HyperConnectionConfig.preset("jpmhc"),
]


@pytest.fixture
def extra(install: Install) -> Path:
    return install("Extra.Shapes", entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=shape_class())


def config_with_plugin(nested: bool = False) -> HyperConnectionConfig:
    if nested:
        return HyperConnectionConfig(streams=4, manifold="kronecker", manifold_options={"factors": FACTORS})
    return HyperConnectionConfig(streams=4, manifold="tilt")


def reinstall(info: Path, name: str, version: str) -> None:
    """Another distribution with the same module, as if the process had started after the change."""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    info.rename(info.with_name(f"{name.replace('-', '_')}-{version}.dist-info"))
    manifolds.unregister("tilt")
    registry._PROVIDERS.clear()


def uninstall(info: Path) -> None:
    (info / "entry_points.txt").unlink()
    manifolds.unregister("tilt")
    registry._PROVIDERS.clear()


# ------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize("nested", [False, True], ids=["itself", "a factor"])
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_a_config_records_its_plugins(extra: Path, nested: bool, suffix: str, tmp_path: Path) -> None:
    config = config_with_plugin(nested)
    table = config.to_dict()
    assert table["plugins"] == RECORD
    assert HyperConnectionConfig.from_dict(table) == config
    path = tmp_path / f"config{suffix}"
    path.write_text(json.dumps(table) if suffix == ".json" else yaml.safe_dump(table), encoding="utf-8")
    assert HyperConnectionConfig.from_file(path) == config
    assert LabConfig(hyper_connection=config).to_dict()["hyper_connection"]["plugins"] == RECORD


def test_toml(extra: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    text = 'manifold = "tilt"\n[plugins.tilt]\ndistribution = "extra-shapes"\nversion = "1.0"\n'
    path.write_text(text, encoding="utf-8")
    assert HyperConnectionConfig.from_file(path).manifold == "tilt"


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_nothing_is_recorded_of_built_ins(extra: Path, config: HyperConnectionConfig) -> None:
    assert "plugins" not in config.to_dict()


def test_nothing_is_recorded_of_classes_of_the_process() -> None:
    class Mine(manifolds.Stiefel):
        name = "mine"

    manifolds.register("mine")(Mine)
    try:
        assert "plugins" not in HyperConnectionConfig(manifold="mine").to_dict()
    finally:
        manifolds.unregister("mine")


@pytest.mark.parametrize(("name", "version"), [("Extra.Shapes", "2.0"), ("fork-of-shapes", "1.0")])
@pytest.mark.parametrize("nested", [False, True])
def test_another_version_or_distribution_warns(extra: Path, name: str, version: str, nested: bool) -> None:
    config = config_with_plugin(nested)
    table = config.to_dict()
    reinstall(extra, name, version)
    message = rf"'tilt' of Extra.Shapes 1.0; here it is that of {name} {version}, .*pip install 'Extra.Shapes==1.0'"
    with pytest.warns(PluginVersionWarning, match=message) as caught:
        assert HyperConnectionConfig.from_dict(table) == config
    assert len(caught) == 1 and issubclass(PluginVersionWarning, UserWarning)


def test_another_spelling_of_the_distribution_is_the_same(extra: Path) -> None:
    table = config_with_plugin().to_dict()
    reinstall(extra, "extra_shapes", "1.0")
    HyperConnectionConfig.from_dict(table)


def test_a_class_of_the_process_in_its_place_warns(extra: Path) -> None:
    class Mine(manifolds.Stiefel):
        name = "tilt"

    table = config_with_plugin().to_dict()
    uninstall(extra)
    manifolds.register("tilt")(Mine)
    with pytest.warns(PluginVersionWarning, match="here it is that of a class registered in this process"):
        HyperConnectionConfig.from_dict(table)


@pytest.mark.parametrize("nested", [False, True])
def test_a_missing_plugin_comes_with_the_command_that_installs_it(extra: Path, nested: bool) -> None:
    table = config_with_plugin(nested).to_dict()
    uninstall(extra)
    with pytest.raises(UnknownNameError, match=r"'tilt' of Extra.Shapes 1.0, .*pip install 'Extra.Shapes==1.0'$"):
        HyperConnectionConfig.from_dict(table)


def test_a_plugin_that_is_not_allowed_is_not_to_be_installed(extra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = config_with_plugin().to_dict()
    manifolds.unregister("tilt")
    monkeypatch.setenv("HYPERCONN_PLUGINS", "")
    with pytest.raises(UnknownNameError, match="HYPERCONN_PLUGINS does not allow"):
        HyperConnectionConfig.from_dict(table)


@pytest.mark.parametrize("line", ["", "Version: \n", "Version: 1.0; touch owned\n", "Version: 1.0 (beta)\n"])
def test_a_version_that_cannot_be_asked_for_is_not_recorded(extra: Path, line: str) -> None:
    (extra / "METADATA").write_text(f"Metadata-Version: 2.1\nName: Extra.Shapes\n{line}", encoding="utf-8")
    config = config_with_plugin()
    assert HyperConnectionConfig.from_dict(config.to_dict()) == config and "plugins" not in config.to_dict()
    assert str(manifolds.provider("tilt")).startswith("Extra.Shapes ")


@pytest.mark.parametrize("nested", [False, True])
def test_a_record_that_the_config_no_longer_needs(extra: Path, nested: bool) -> None:
    table = config_with_plugin(nested).to_dict()
    uninstall(extra)
    table |= {"manifold": "stiefel", "manifold_options": {}}
    assert "plugins" not in HyperConnectionConfig.from_dict(table).to_dict()
    with pytest.raises(UnknownNameError, match="unknown manifold 'stifel'"):
        HyperConnectionConfig.from_dict({**table, "manifold": "stifel"})
    with pytest.raises(UnknownNameError, match="unknown pre_gate"):
        HyperConnectionConfig.from_dict({**table, "manifold": "TILT", "pre_gate": "tilt"})
    with pytest.raises(UnknownNameError, match="pip install"):
        HyperConnectionConfig.from_dict({**table, "manifold": "TILT"})


GOOD = RECORD["tilt"]
MALFORMED: list[Any] = [
    None,
    3,
    "extra",
    [],
    {"tilt": None},
    {"tilt": "extra==1.0"},
    {"tilt": {}},
    {"tilt": {**GOOD, "more": 1}},
    {"tilt": {**GOOD, "version": 1.0}},
    {"tilt": {**GOOD, "version": "1.0'; rm -rf '"}},
    {"tilt": {**GOOD, "distribution": "extra shapes"}},
    {"tilt": {**GOOD, "distribution": "https://example.org/x"}},
    {3: GOOD},
]


@pytest.mark.parametrize("records", MALFORMED, ids=repr)
def test_malformed_records(records: Any) -> None:
    with pytest.raises(ValueError, match=r"^the hyper-connection config: .*plugin.* must be a table of"):
        HyperConnectionConfig.from_dict({"plugins": records})
    if records is not None:
        block = HyperConnection(None, dim=8, config=HyperConnectionConfig(4))
        state = block.state_dict()
        state._metadata[""]["hyperconn_plugins"] = records  # type: ignore[attr-defined]
        with pytest.raises(RuntimeError, match=r"the checkpoint: .*plugin.* must be a table of"):
            block.load_state_dict(state)


# ------------------------------------------------------------------------------------------------- checkpoints


def saved_and_read(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())
    return state


def layers(nested: bool = False) -> nn.Module:
    return nn.ModuleList(HyperConnection(None, dim=8, config=config_with_plugin(nested)) for _ in range(3))


def static() -> nn.Module:
    return constrain(nn.Linear(4, 4), "weight", "tilt")


MODULES = {"layers": layers, "a factor": lambda: layers(True), "a parameter": static}


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_checkpoints_of_the_same_version_load(extra: Path, build: Any) -> None:
    module = build()
    state = saved_and_read(module)
    assert [note["hyperconn_plugins"] for note in state._metadata.values() if "hyperconn_plugins" in note]
    build().load_state_dict(state)


@pytest.mark.parametrize(("name", "version"), [("Extra.Shapes", "2.0"), ("fork-of-shapes", "1.0")])
@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_checkpoints_of_another_version_warn_once(extra: Path, build: Any, name: str, version: str) -> None:
    module = build()
    state = saved_and_read(module)
    reinstall(extra, name, version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        module.load_state_dict(state)
    (warning,) = caught
    assert warning.category is PluginVersionWarning
    assert "'tilt' of Extra.Shapes 1.0" in str(warning.message) and f"{name} {version}" in str(warning.message)


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_checkpoints_of_a_missing_plugin(extra: Path, build: Any) -> None:
    module = build()
    state = saved_and_read(module)
    uninstall(extra)
    for model in (module, nn.ModuleList(HyperConnection(None, dim=8) for _ in range(3))):
        if set(model.state_dict()) == set(state):
            with pytest.raises(RuntimeError, match=r"pip install 'Extra.Shapes==1.0'"):
                model.load_state_dict(state)


def test_nothing_is_noted_of_built_ins(extra: Path) -> None:
    for module in (HyperConnection(None, dim=8), constrain(nn.Linear(4, 4), "weight", "stiefel")):
        assert not any("hyperconn_plugins" in note for note in saved_and_read(module)._metadata.values())


def test_a_note_of_something_else(extra: Path) -> None:
    block = HyperConnection(None, dim=8)
    state = block.state_dict()
    state._metadata[""]["hyperconn"] = "stiefel(n=4)"  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"something else than a hyper-connection here: 'stiefel\(n=4\)'"):
        block.load_state_dict(state)


def test_a_run_goes_on_under_another_version(extra: Path) -> None:
    """Resuming compares what decides the course of a run; of plugins, the layers warn."""
    assert not any("plugins" in key for key in identity(LabConfig(hyper_connection=config_with_plugin())))
