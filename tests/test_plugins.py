"""Parts from installed distributions: found by name, imported when asked for, failing alone, and on record."""

from __future__ import annotations

import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hyperconn import HyperConnection, HyperConnectionConfig, UnknownNameError, gates, manifolds, predictors
from hyperconn.manifolds import PluginError, PluginVersionWarning, Provider, constrain
from hyperconn.manifolds.registry import MANIFOLDS
from hyperconn.manifolds.registry.plugins import installed
from plugin_cases import Install, forget, reinstall, saved_and_read, shape_class

BUILT_IN = manifolds.available()
EXTRA = Provider("extra", "1.0")
TILT = {"tilt": "extra_tilt:Tilt"}


@pytest.fixture
def extra(install: Install) -> Path:
    return install(entries=TILT, extra_tilt=shape_class())


def test_a_plugin_is_used_by_its_name_and_imported_then(extra: Path) -> None:
    assert manifolds.available() == tuple(sorted([*BUILT_IN, "tilt"]))
    with pytest.raises(UnknownNameError, match=r"unknown manifold 'tild'\. Did you mean 'tilt' .* Known: .*tilt"):
        manifolds.get("tild")
    assert "extra_tilt" not in sys.modules
    m = manifolds.make("tilt", n=3)
    assert (m.name, m.num_coordinates, type(m).__module__) == ("tilt", 3, "extra_tilt")
    assert manifolds.get("TILT") is manifolds.get(" tilt ") is type(m) and manifolds.resolve("Tilt") == "tilt"
    assert HyperConnectionConfig(streams=3, manifold="tilt").make_manifold() == m
    product = manifolds.make("kronecker", n=6, factors=({"manifold": "tilt", "n": 3}, 2))
    assert product.num_coordinates == 5


@pytest.mark.parametrize(
    ("module", "base", "field"),
    [(gates, "gates:Softmax", "pre_gate"), (predictors, "predictors:Flat", "predictor")],
    ids=["gate", "predictor"],
)
def test_gates_and_predictors_are_plugins_too(install: Install, module: Any, base: str, field: str) -> None:
    kind = module.__name__.rpartition(".")[2][:-1]
    install(entries=TILT, kind=kind, extra_tilt=shape_class(base=base))
    assert "tilt" in module.available() and "tilt" not in manifolds.available()
    with pytest.raises(UnknownNameError, match=f"unknown {kind} 'tild'. Did you mean 'tilt'"):
        module.get("tild")
    config = HyperConnectionConfig(**{field: "tilt"})
    table = config.to_dict()
    assert table["plugins"] == {f"{kind}:tilt": {"distribution": "extra", "version": "1.0"}}
    assert HyperConnectionConfig.from_dict(table) == config and module.provider("tilt") == EXTRA
    block = HyperConnection(nn.Tanh(), 8, config)
    assert block(torch.randn(2, 4, 8)).shape == (2, 4, 8)
    with pytest.raises(RuntimeError, match="tilt"):
        HyperConnection(nn.Tanh(), 8).load_state_dict(block.state_dict())
    module.unregister("tilt")
    lost = {field: "lost", "plugins": {f"{kind}:lost": {"distribution": "gone", "version": "2.0"}}}
    with pytest.raises(UnknownNameError, match=rf"needs the {kind} 'lost' of gone 2.0, .*: pip install 'gone==2.0'"):
        HyperConnectionConfig.from_dict(lost)


@pytest.mark.parametrize("target", ["extra_tilt:Tilt", "extra_tilt:Box.inner", "extra_tilt:Tilt [fast]"])
@pytest.mark.parametrize("itself", [False, True], ids=["entry point alone", "registers itself too"])
def test_what_an_entry_point_may_point_to(install: Install, target: str, itself: bool) -> None:
    source = shape_class() + "\nclass Box:\n    inner = Tilt\n"
    if itself:
        source += "from hyperconn.manifolds import make, register\nregister('tilt', 'slope')(Tilt)\n"
        source += "assert make('tilt', n=2) == make('slope', n=2) == Tilt(n=2)\n"
    install(entries={"tilt": target}, extra_tilt=source)
    assert manifolds.get("tilt").__qualname__ == "Tilt" and manifolds.provider("tilt") == EXTRA
    assert manifolds.aliases("tilt") == (("slope",) if itself else ())


def test_spellings(install: Install) -> None:
    nameless = shape_class().replace('name = "tilt"', "pass")
    install(entries={"Two_Words": "extra_two:Tilt", **TILT}, extra_two=shape_class("two-words"), extra_tilt=nameless)
    assert manifolds.resolve("two-words") == "Two_Words" and manifolds.make("TWO_WORDS", n=2).name == "two-words"
    assert manifolds.available() == tuple(sorted([*BUILT_IN, "Two_Words", "tilt"]))
    assert manifolds.make("tilt", n=2).name == "tilt" and manifolds.Stiefel.name == "stiefel"


def test_installed_uninstalled_and_mended_without_restarting(install: Install, tmp_path: Path) -> None:
    register = "from hyperconn.manifolds import register\nregister('tilt')(Tilt)\n"
    info = install(entries=TILT, extra_tilt=shape_class() + register + "1 / 0")
    for _ in range(2):  # what it had registered by then is forgotten
        with pytest.raises(PluginError, match="ZeroDivisionError"):
            manifolds.get("tilt")
    (tmp_path / "extra" / "extra_tilt.py").write_text(shape_class() + register + "# mended\n", encoding="utf-8")
    assert manifolds.get("tilt").__module__ == "extra_tilt"
    manifolds.unregister("tilt")
    (info / "entry_points.txt").unlink()
    with pytest.raises(UnknownNameError):
        manifolds.get("tilt")


def test_a_hit_reads_no_metadata(extra: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**params: str) -> None:
        raise AssertionError("the registry read the installed distributions")

    cls = manifolds.get("tilt")
    monkeypatch.setattr(metadata, "entry_points", refuse)
    assert manifolds.get("tilt") is cls and manifolds.make("mhc", n=2) and manifolds.provider("tilt") == EXTRA
    with pytest.raises(AssertionError, match="read the installed"):
        manifolds.get("tild")


def test_many_threads_look_up_at_once(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "imported", 0, raising=False)
    slow = "import sys, time\nsys.imported += 1\ntime.sleep(0.1)\n"
    install(entries=TILT, extra_tilt=slow + shape_class())
    barrier = threading.Barrier(8)

    def look_up(_: int) -> type[Any]:
        barrier.wait(10)
        return manifolds.get("tilt")

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(look_up, range(8), timeout=30)) == [manifolds.get("tilt")] * 8
    assert sys.imported == 1  # type: ignore[attr-defined]


def test_built_in_names_and_aliases_win(install: Install) -> None:
    install(entries={"stiefel": "extra_tilt:Tilt", "MHC_lite": "extra_tilt:Tilt"}, extra_tilt="raise SystemExit")
    assert manifolds.get("stiefel") is manifolds.Stiefel and manifolds.get("mhc-lite") is manifolds.Permutation
    assert manifolds.available() == BUILT_IN
    shadows = {MANIFOLDS.shadow(plugin) for plugin in installed("manifold")}
    assert shadows == {manifolds.Stiefel, manifolds.Permutation}


def test_names_registered_in_the_process_win(extra: Path) -> None:
    class Mine(manifolds.Stiefel):
        name = "tilt"

    manifolds.register("tilt")(Mine)
    (plugin,) = installed("manifold")
    assert manifolds.get("tilt") is Mine and MANIFOLDS.shadow(plugin) is Mine
    assert manifolds.provider("tilt") is None and "extra_tilt" not in sys.modules
    manifolds.unregister("tilt")
    assert manifolds.get("tilt").__module__ == "extra_tilt" and MANIFOLDS.shadow(plugin) is None


def test_conflicts_name_everyone(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    two = {"lean": "extra_lean:Lean", "twice": "extra_lean:Lean", "Twice": "extra_lean:Other"}
    install(entries={**TILT, **two}, extra_lean=shape_class("lean", "Lean"))
    install("Other.Extra", "2.5", entries={"Tilt": "other_tilt:Tilt"}, other_tilt=shape_class())
    message = r"'Tilt' is provided by Other.Extra 2.5 and extra 1.0 .*: uninstall .* HYPERCONN_PLUGINS"
    for look_up in (manifolds.get, manifolds.resolve, manifolds.provider, manifolds.aliases):
        with pytest.raises(PluginError, match=message):
            look_up("tilt")
    with pytest.raises(PluginError, match=r"by extra 1.0 and extra 1.0 \(extra_lean:Lean and extra_lean:Other\)"):
        manifolds.get("twice")
    assert manifolds.get("lean").name == "lean" and manifolds.get("mhc") is manifolds.Birkhoff
    monkeypatch.setenv("HYPERCONN_PLUGINS", "other-extra")
    assert manifolds.provider("tilt") == Provider("Other.Extra", "2.5")


BROKEN = {
    "import": (
        "import a_module_that_is_not_there",
        "ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
    ),
    "syntax": ("def f(:", "SyntaxError"),
    "exit": ("raise SystemExit(0)", "SystemExit: 0"),
    "nothing there": ("", "AttributeError: module 'extra_tilt' has no attribute 'Tilt'"),
    "other kind": (shape_class(base="gates:Softmax"), "takes a subclass of Manifold, got <class"),
    "abstract": ("from hyperconn.manifolds import Manifold as Tilt", "is incomplete, it has to define: .*forward"),
    "no property": (
        shape_class() + "    def coordinate_groups(self): return ()",
        "coordinate_groups of Tilt is a method, not a value: put @property above it",
    ),
    "other name": (shape_class("slope"), r"register\('tilt'\): extra_tilt.Tilt calls itself name = 'slope'"),
    "no name": (shape_class().replace('"tilt"', "3"), r"calls itself name = 3"),
    "later version": (
        shape_class() + "    api_version = 2",
        "written for version 2 of the API of parts, this library speaks version 1: upgrade this library",
    ),
    "earlier version": (
        shape_class() + "    api_version = 0",
        "written for version 0 .* speaks version 1: upgrade the package that provides the class",
    ),
    "no version": (shape_class() + "    api_version = '1'", "api_version of Tilt must be an int, got '1'"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_fails_alone(install: Install, source: str, reason: str) -> None:
    install(entries={**TILT, "lean": "extra_lean:Lean"}, extra_tilt=source, extra_lean=shape_class("lean", "Lean"))
    for _ in range(2):  # and the second time the same
        with pytest.raises(PluginError, match=reason) as caught:
            manifolds.make("tilt", n=2)
        assert "manifold plugin 'tilt' (entry point tilt = extra_tilt:Tilt of extra 1.0)" in str(caught.value)
        assert caught.value.__cause__ is not None and isinstance(caught.value, ValueError)
        assert not isinstance(caught.value, KeyError)  # whoever catches an unknown name does not catch this
    assert manifolds.get("lean").name == "lean" and "tilt" in manifolds.available()


def test_control_c_is_not_a_broken_plugin(install: Install) -> None:
    install(entries=TILT, extra_tilt="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        manifolds.get("tilt")


@pytest.mark.parametrize("target", ["extra_tilt", "extra tilt:", "extra_tilt:Tilt:more", "../x.py:Tilt", "x:Tilt()"])
def test_entry_points_that_point_nowhere(install: Install, target: str) -> None:
    install(entries={"tilt": target}, extra_tilt=shape_class())
    with pytest.raises(PluginError, match=r"extra 1.0\): an entry point reads name = package.module:Class, got"):
        manifolds.get("tilt")


@pytest.mark.parametrize("value", ["extra-manifolds", " EXTRA.manifolds ,", "TILT", "nothing,tilt"])
def test_allowed_by_distribution_or_name(install: Install, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install("Extra.Manifolds", entries=TILT, extra_tilt=shape_class())
    monkeypatch.setenv("HYPERCONN_PLUGINS", value)
    assert "tilt" in manifolds.available() and manifolds.provider("tilt") == Provider("Extra.Manifolds", "1.0")


@pytest.mark.parametrize("value", ["", ",", "tilts", "extr", "lean"])
def test_not_allowed(extra: Path, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCONN_PLUGINS", value)
    assert manifolds.available() == BUILT_IN
    with pytest.raises(UnknownNameError, match=r"'tilt': extra 1.0 provides it, but .* add 'extra'"):
        manifolds.get("tilt")
    assert "extra_tilt" not in sys.modules
    monkeypatch.delenv("HYPERCONN_PLUGINS")  # read at every look-up
    assert manifolds.get("tilt").name == "tilt"


def test_providers(install: Install) -> None:
    for given in ("stiefel", manifolds.Stiefel, manifolds.Stiefel(n=2)):
        assert manifolds.provider(given) == Provider("hyperconn", metadata.version("hyperconn"))

    class Mine(manifolds.Stiefel):
        name = "mine"

    assert manifolds.provider(Mine) is None and str(EXTRA) == "extra 1.0"
    with pytest.raises(UnknownNameError):
        manifolds.provider("stifel")
    # Whoever imports a plugin's module by hand gets the plugin's class.
    install(entries=TILT, extra_tilt=shape_class())
    by_hand = __import__("extra_tilt").Tilt
    assert manifolds.provider(by_hand) == manifolds.provider("tilt") == EXTRA and manifolds.get("tilt") is by_hand


FACTORS = {"factors": [{"manifold": "tilt", "n": 2}, 2]}
CONFIGS = {"itself": {"manifold": "tilt"}, "a factor": {"manifold": "kronecker", "manifold_options": FACTORS}}
every_config = pytest.mark.parametrize("fields", CONFIGS.values(), ids=CONFIGS)


@every_config
@pytest.mark.parametrize(("name", "version"), [("extra", "2.0"), ("fork-of-extra", "1.0")])
def test_a_config_knows_its_plugins(extra: Path, fields: Any, name: str, version: str) -> None:
    config = HyperConnectionConfig(**fields)
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


@every_config
def test_a_missing_plugin_comes_with_the_command_that_installs_it(
    extra: Path, fields: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = HyperConnectionConfig(**fields).to_dict()
    forget()
    monkeypatch.setenv("HYPERCONN_PLUGINS", "")
    with pytest.raises(UnknownNameError, match="HYPERCONN_PLUGINS does not allow"):
        HyperConnectionConfig.from_dict(table)
    (extra / "entry_points.txt").unlink()
    with pytest.raises(UnknownNameError, match=r"'tilt' of extra 1.0, .*pip install 'extra==1.0'$"):
        HyperConnectionConfig.from_dict(table)


def test_nothing_is_recorded_of_built_ins(extra: Path) -> None:
    config = HyperConnectionConfig.preset("kromhc")
    assert "plugins" not in config.to_dict()
    for module in (HyperConnection(None, 8, config), constrain(nn.Linear(4, 4), "weight", "stiefel")):
        assert not any("hyperconn_plugins" in note for note in saved_and_read(module)._metadata.values())


@pytest.mark.parametrize("line", ["Version: 1.0; touch owned\n", "Version: 1.0 (beta)\n"])
def test_a_version_that_cannot_be_asked_for_is_not_recorded(extra: Path, line: str) -> None:
    (extra / "METADATA").write_text(f"Metadata-Version: 2.1\nName: extra\n{line}", encoding="utf-8")
    config = HyperConnectionConfig(manifold="tilt")
    assert HyperConnectionConfig.from_dict(config.to_dict()) == config and "plugins" not in config.to_dict()


GOOD = {"distribution": "extra", "version": "1.0"}
MALFORMED: list[Any] = [
    3, [], {"tilt": "extra==1.0"}, {"tilt": {}}, {"tilt": {**GOOD, "more": 1}}, {"part:tilt": GOOD}, {3: GOOD},
    {"tilt": {**GOOD, "version": "1.0'; rm -rf '"}}, {"tilt": {**GOOD, "distribution": "https://example.org/x"}},
]  # fmt: skip


@pytest.mark.parametrize("records", MALFORMED, ids=repr)
def test_malformed_records(records: Any) -> None:
    with pytest.raises(ValueError, match=r"^the hyper-connection config: .*plugin.* must be a table of"):
        HyperConnectionConfig.from_dict({"plugins": records})
    block = HyperConnection(None, dim=8, config=HyperConnectionConfig(4))
    state = block.state_dict()
    state._metadata[""]["hyperconn_plugins"] = records  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"the checkpoint: .*plugin.* must be a table of"):
        block.load_state_dict(state)


def layers(fields: dict[str, Any]) -> nn.Module:
    return nn.ModuleList(HyperConnection(None, dim=8, config=HyperConnectionConfig(**fields)) for _ in range(3))


MODULES = {
    **{name: partial(layers, fields) for name, fields in CONFIGS.items()},
    "a parameter": lambda: constrain(nn.Linear(4, 4), "weight", "tilt"),
}


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES)
def test_checkpoints_know_their_plugins(extra: Path, build: Any) -> None:
    module = build()
    state = saved_and_read(module)
    assert [note["hyperconn_plugins"] for note in state._metadata.values() if "hyperconn_plugins" in note]
    build().load_state_dict(state)
    renamed = reinstall(extra, "fork-of-extra", "1.0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        module.load_state_dict(state)
    (warning,) = caught  # one for all layers
    assert warning.category is PluginVersionWarning and "fork-of-extra 1.0" in str(warning.message)
    (renamed / "entry_points.txt").unlink()
    forget()
    with pytest.raises(RuntimeError, match=r"pip install 'extra==1.0'"):
        module.load_state_dict(state)
