"""Manifolds from installed distributions: found by name, imported when asked for, and failing alone."""

from __future__ import annotations

import os
import sys
import traceback
from importlib import metadata
from pathlib import Path

import pytest

from hyperconn import HyperConnectionConfig, manifolds
from hyperconn.manifolds import Manifold, PluginError, Provider, UnknownNameError, registry
from hyperconn.manifolds.registry.plugins import installed
from plugin_cases import Install, shape_class

BUILT_IN = manifolds.available()
EXTRA = Provider("extra", "1.0")


@pytest.fixture
def extra(install: Install) -> None:
    install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=shape_class())


# ------------------------------------------------------------------------------------------------- found and used


def test_a_plugin_is_used_by_its_name(extra: None) -> None:
    m = manifolds.make("tilt", n=3)
    assert (m.name, m.num_coordinates, type(m).__module__) == ("tilt", 3, "extra_tilt")
    assert manifolds.get("TILT") is manifolds.get(" tilt ") is type(m) and manifolds.resolve("Tilt") == "tilt"
    assert HyperConnectionConfig(streams=3, manifold="tilt").make_manifold() == m
    product = manifolds.make("kronecker", n=6, factors=({"manifold": "tilt", "n": 3}, 2))
    assert product.num_coordinates == 5


def test_listing_imports_nothing(extra: None) -> None:
    assert manifolds.available() == tuple(sorted([*BUILT_IN, "tilt"]))
    assert manifolds.resolve("mhc") == "birkhoff"
    with pytest.raises(UnknownNameError, match=r"unknown manifold 'tild'\. Did you mean 'tilt' .* Known: .*tilt"):
        manifolds.get("tild")
    assert "extra_tilt" not in sys.modules


def test_only_the_plugin_asked_for_is_imported(install: Install) -> None:
    install(
        entries={"tilt": "extra_tilt:Tilt", "lean": "extra_lean:Lean"},
        extra_tilt=shape_class(),
        extra_lean=shape_class("lean", "Lean"),
    )
    manifolds.get("lean")
    assert "extra_lean" in sys.modules and "extra_tilt" not in sys.modules


@pytest.mark.parametrize("target", ["extra_tilt:Tilt", "extra_tilt", "extra_tilt:Box.inner", "extra_tilt:Tilt [fast]"])
@pytest.mark.parametrize("itself", [False, True], ids=["entry point alone", "registers itself too"])
def test_what_an_entry_point_may_point_to(install: Install, target: str, itself: bool) -> None:
    source = shape_class() + "\nclass Box:\n    inner = Tilt\n"
    if itself:
        source += "from hyperconn.manifolds import make, register\nregister('tilt', 'slope')(Tilt)\n"
        source += "assert make('tilt', n=2) == make('slope', n=2) == Tilt(n=2)\n"
    install(entries={"tilt": target}, extra_tilt=source)
    assert manifolds.get("tilt").__qualname__ == "Tilt"
    assert manifolds.aliases("tilt") == (("slope",) if itself else ())
    assert not itself or manifolds.get("slope") is manifolds.get("tilt")
    assert manifolds.provider("tilt") == EXTRA


def test_spelling_of_the_entry_point(install: Install) -> None:
    install(entries={"Two_Words": "extra_tilt:Tilt"}, extra_tilt=shape_class("two-words"))
    assert "Two_Words" in manifolds.available()
    assert manifolds.resolve("two-words") == "Two_Words" and manifolds.make("TWO_WORDS", n=2).name == "two-words"
    assert manifolds.available() == tuple(sorted([*BUILT_IN, "Two_Words"]))


def test_a_class_without_a_name_of_its_own_takes_the_entry_points(install: Install) -> None:
    install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=shape_class().replace('name = "tilt"', "pass"))
    assert manifolds.make("tilt", n=2).name == "tilt" and manifolds.Stiefel.name == "stiefel"


def test_installed_and_uninstalled_without_restarting(install: Install) -> None:
    with pytest.raises(UnknownNameError):
        manifolds.get("tilt")
    info = install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=shape_class())
    assert "tilt" in manifolds.available()
    for file in info.iterdir():
        file.unlink()
    info.rmdir()
    with pytest.raises(UnknownNameError):
        manifolds.get("tilt")
    assert "tilt" not in manifolds.available()
    install(version="1.1", entries={"tilt": "extra_tilt:Tilt"})
    assert manifolds.provider("tilt") == Provider("extra", "1.1")


def test_installed_within_the_resolution_of_a_time_stamp(install: Install) -> None:
    """Python remembers which modules are in a folder for as long as the folder's time stamp stays."""
    folder = install(entries={"tilt": "extra_tilt:Tilt"}).parent
    with pytest.raises(PluginError, match="No module named 'extra_tilt'"):
        manifolds.get("tilt")
    before = folder.stat()
    (folder / "extra_tilt.py").write_text(shape_class(), encoding="utf-8")
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert manifolds.get("tilt").name == "tilt"


def test_a_hit_reads_no_metadata(extra: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("the registry read the installed distributions")

    cls = manifolds.get("tilt")
    monkeypatch.setattr(metadata, "distributions", refuse)
    assert manifolds.get("tilt") is cls and manifolds.make("mhc", n=2) and manifolds.provider("tilt") == EXTRA
    with pytest.raises(AssertionError, match="read the installed"):
        manifolds.get("tild")


def test_the_old_spelling_of_the_folder_beside_the_new_is_no_duplicate(install: Install) -> None:
    entries = {"tilt": "extra_tilt:Tilt"}
    install(entries=entries, extra_tilt=shape_class())
    install(entries=entries, info="egg-info")
    assert len(list(metadata.distributions(name="extra"))) == 2
    assert manifolds.provider("tilt") == EXTRA


def test_the_same_distribution_further_down_the_path_does_not_count(
    install: Install,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = {"tilt": "extra_tilt:Tilt"}
    old = install(version="0.9", entries={**entries, "gone": "extra_tilt:Gone"}, folder="old")
    install(entries=entries, extra_tilt=shape_class(), folder="new")
    monkeypatch.setattr(sys, "path", [*sys.path, str(old.parent), str(old.parent)])
    assert [plugin.provider for plugin in installed().plugins] == [EXTRA]
    assert manifolds.provider("tilt") == EXTRA and "gone" not in manifolds.available()


# ------------------------------------------------------------------------------------------------- whose name it is


def test_built_in_names_and_aliases_win(install: Install) -> None:
    install(entries={"stiefel": "extra_tilt:Tilt", "MHC_lite": "extra_tilt:Tilt"}, extra_tilt="raise SystemExit")
    assert manifolds.get("stiefel") is manifolds.Stiefel and manifolds.get("mhc-lite") is manifolds.Permutation
    assert manifolds.available() == BUILT_IN
    assert {registry.shadow(plugin) for plugin in installed().plugins} == {manifolds.Stiefel, manifolds.Permutation}


def test_names_registered_in_the_process_win(extra: None) -> None:
    class Mine(manifolds.Stiefel):
        name = "tilt"

    manifolds.register("tilt")(Mine)
    (plugin,) = installed().plugins
    assert manifolds.get("tilt") is Mine and registry.shadow(plugin) is Mine
    assert manifolds.provider("tilt") is None and "extra_tilt" not in sys.modules
    manifolds.unregister("tilt")
    assert manifolds.get("tilt").__module__ == "extra_tilt" and registry.shadow(plugin) is None


def test_two_distributions_with_one_name(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(entries={"tilt": "extra_tilt:Tilt", "lean": "extra_lean:Lean"}, extra_lean=shape_class("lean", "Lean"))
    install("Other.Extra", "2.5", entries={"Tilt": "other_tilt:Tilt"}, other_tilt=shape_class())
    message = r"'Tilt' is provided by Other.Extra 2.5 and extra 1.0: uninstall .* HYPERCONN_PLUGINS"
    for look_up in (manifolds.get, manifolds.resolve, manifolds.provider, manifolds.aliases):
        with pytest.raises(PluginError, match=message):
            look_up("tilt")
    assert manifolds.get("lean").name == "lean" and manifolds.get("mhc") is manifolds.Birkhoff
    assert [*map(str.lower, manifolds.available())].count("tilt") == 1
    monkeypatch.setenv("HYPERCONN_PLUGINS", "other-extra")
    assert manifolds.provider("tilt") == Provider("Other.Extra", "2.5")


def test_one_distribution_with_two_targets_for_a_name(install: Install) -> None:
    install(entries={"tilt": "extra_tilt:Tilt", "Tilt": "extra_tilt:Other"})
    with pytest.raises(PluginError, match=r"extra 1.0 has several .* extra_tilt:\w+ and extra_tilt:\w+"):
        manifolds.get("tilt")


# ------------------------------------------------------------------------------------------------- broken ones

ABSTRACT = """
from hyperconn.manifolds import Manifold
class Tilt(Manifold):
    name = "tilt"
    exact = True
"""
FIELDS = """
from hyperconn.manifolds import Stiefel
class Tilt(Stiefel):
    name = "tilt"
    angle: float = 1.0
"""
BROKEN = {
    "import": (
        "import a_module_that_is_not_there",
        "ModuleNotFoundError: No module named 'a_module_that_is_not_there'",
    ),
    "syntax": ("def f(:", "SyntaxError"),
    "exit": ("raise SystemExit(0)", "SystemExit: 0"),
    "own kind": ("class Mine(BaseException): pass\nraise Mine('whatever')", "Mine: whatever"),
    "nothing there": ("", "AttributeError: module 'extra_tilt' has no attribute 'Tilt'"),
    "lazy": ("def __getattr__(name): raise ImportError('not today')", "ImportError: not today"),
    "function": ("def Tilt(n): pass", "takes a subclass of hyperconn.manifolds.Manifold, got <function Tilt"),
    "other class": ("class Tilt: pass", "takes a subclass of hyperconn.manifolds.Manifold, got <class"),
    "abstract": (ABSTRACT, "Tilt is incomplete, it has to define: forward, identity, invariants, num_coordinates"),
    "other name": (shape_class("slope"), r"register\('tilt'\): extra_tilt.Tilt calls itself name = 'slope'"),
    "no name": (shape_class().replace('"tilt"', "3"), r"calls itself name = 3"),
    "fields": (FIELDS, r"annotates angle, .* put @dataclass\(frozen=True\) on Tilt"),
    "later version": (
        shape_class() + "    api_version = 2",
        "written for version 2 of the manifold API, this library speaks version 1: upgrade this library",
    ),
    "earlier version": (
        shape_class() + "    api_version = 0",
        "written for version 0 .* speaks version 1: upgrade the package that provides the class",
    ),
    "no version": (shape_class() + "    api_version = '1'", "api_version of Tilt must be an int, got '1'"),
}


@pytest.mark.parametrize(("source", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_plugin_fails_alone(install: Install, source: str, reason: str) -> None:
    install(
        entries={"tilt": "extra_tilt:Tilt", "lean": "extra_lean:Lean"},
        extra_tilt=source,
        extra_lean=shape_class("lean", "Lean"),
    )
    for _ in range(2):  # and the second time the same
        with pytest.raises(PluginError, match=reason) as caught:
            manifolds.make("tilt", n=2)
        assert "manifold plugin 'tilt' (entry point tilt = extra_tilt:Tilt of extra 1.0)" in str(caught.value)
        assert caught.value.__cause__ is not None and isinstance(caught.value, ValueError)
        assert not isinstance(caught.value, KeyError)  # whoever catches an unknown name does not catch this
    assert manifolds.get("lean").name == "lean" and "tilt" in manifolds.available()
    with pytest.raises(UnknownNameError, match="lean"):
        manifolds.get("leam")


def test_the_traceback_shows_the_plugins_line(install: Install) -> None:
    install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt="x = 1\ny = 1 / 0\n")
    with pytest.raises(PluginError) as caught:
        manifolds.get("tilt")
    assert 'extra_tilt.py", line 2' in "".join(traceback.format_exception(caught.value))


def test_control_c_is_not_a_broken_plugin(install: Install) -> None:
    install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        manifolds.get("tilt")


@pytest.mark.parametrize("itself", ["", "from hyperconn.manifolds import register\nregister('tilt', 'slope')(Tilt)\n"])
@pytest.mark.parametrize("failure", ["extra_tilt:Gone", "raise ValueError('late')"])
def test_a_mistake_leaves_nothing_registered(install: Install, itself: str, failure: str) -> None:
    late = "" if ":" in failure else failure
    install(
        entries={"tilt": failure if ":" in failure else "extra_tilt:Tilt"}, extra_tilt=shape_class() + itself + late
    )
    for _ in range(2):
        with pytest.raises(PluginError, match="Gone|late"):
            manifolds.get("tilt")


def test_what_a_failed_import_registered_is_forgotten(install: Install, tmp_path: Path) -> None:
    two = (
        shape_class()
        + shape_class("lean", "Lean")
        + "from hyperconn.manifolds import register\nregister('lean')(Lean)\n"
    )
    install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=two + "1 / 0")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        manifolds.get("tilt")
    assert "lean" not in manifolds.available()
    (tmp_path / "extra" / "extra_tilt.py").write_text(two + "# mended\n", encoding="utf-8")
    assert manifolds.get("tilt").name == "tilt" and manifolds.get("lean").name == "lean"


def test_a_mended_plugin_works_without_restarting(install: Install, tmp_path: Path) -> None:
    register = "from hyperconn.manifolds import register\nregister('tilt')(Tilt)\n"
    install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=shape_class() + register + "1 / 0")
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        manifolds.get("tilt")
    (tmp_path / "extra" / "extra_tilt.py").write_text(shape_class() + register + "# mended\n", encoding="utf-8")
    assert manifolds.get("tilt").__module__ == "extra_tilt"


@pytest.mark.parametrize("target", ["", "extra tilt:", "extra_tilt:Tilt:more", "../extra_tilt.py", "extra_tilt:Tilt()"])
def test_entry_points_that_point_nowhere(install: Install, target: str) -> None:
    install(entries={"tilt": target})
    with pytest.raises(PluginError, match=r"extra 1.0\)") as caught:
        manifolds.get("tilt")
    assert "an entry point reads name = package.module:Class" in str(caught.value) or target == ""


def test_a_module_that_holds_no_manifold_of_that_name(install: Install) -> None:
    install(entries={"tilt": "extra_tilt"}, extra_tilt=shape_class("slope"))
    with pytest.raises(PluginError, match=r"holds 0 manifolds with name = 'tilt'.* tilt = extra_tilt:Class"):
        manifolds.get("tilt")


def test_a_damaged_distribution_fails_alone(install: Install) -> None:
    install(entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=shape_class())
    install("garbled", entries="a line that says nothing")
    (install("nameless", entries={"lean": "x:Y"}) / "METADATA").unlink()
    (install("binary", entries={"lean": "x:Y"}) / "entry_points.txt").write_bytes(b"[hyperconn.manifolds]\n\xff = \xfe")
    assert manifolds.available() == tuple(sorted([*BUILT_IN, "tilt"]))
    assert manifolds.get("tilt").name == "tilt"
    unreadable = installed().unreadable
    assert len(unreadable) == 3 and all("cannot be read" in line for line in unreadable)
    for folder in ("garbled", "nameless", "binary"):
        assert sum(folder in line for line in unreadable) == 1


# ------------------------------------------------------------------------------------------------- the allow-list


def test_what_is_installed_beside_the_library_has_no_part_in_the_tests() -> None:
    assert os.environ["HYPERCONN_PLUGINS"] == ""
    assert all(manifolds.get(name).__module__.startswith("hyperconn.") for name in BUILT_IN)


ALLOWED = ["extra-manifolds", "Extra_Manifolds", " EXTRA.manifolds ,", "tilt", "TILT", "lean,tilt", "nothing,tilt"]


@pytest.mark.parametrize("value", ALLOWED)
def test_allowed_by_distribution_or_name(install: Install, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install("Extra.Manifolds", entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=shape_class())
    monkeypatch.setenv("HYPERCONN_PLUGINS", value)
    assert "tilt" in manifolds.available()
    assert manifolds.provider("tilt") == Provider("Extra.Manifolds", "1.0")


@pytest.mark.parametrize("value", ["", " ", ",", "tilts", "extr", "lean"])
def test_not_allowed(extra: None, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYPERCONN_PLUGINS", value)
    assert manifolds.available() == BUILT_IN
    with pytest.raises(UnknownNameError, match=r"'tilt': extra 1.0 provides it, but .* add 'extra'"):
        manifolds.get("tilt")
    assert "extra_tilt" not in sys.modules
    monkeypatch.delenv("HYPERCONN_PLUGINS")  # read at every look-up
    assert manifolds.get("tilt").name == "tilt"
    monkeypatch.setenv("HYPERCONN_PLUGINS", value)
    assert manifolds.get("tilt").name == "tilt", "a name once loaded stays loaded"


# ------------------------------------------------------------------------------------------------- where it is from


def test_providers() -> None:
    for given in ("stiefel", manifolds.Stiefel, manifolds.Stiefel(n=2)):
        assert manifolds.provider(given) == Provider("hyperconn", metadata.version("hyperconn"))

    class Mine(manifolds.Stiefel):
        name = "mine"

    assert manifolds.provider(Mine) is None and str(EXTRA) == "extra 1.0"
    with pytest.raises(UnknownNameError):
        manifolds.provider("stifel")


@pytest.mark.parametrize("target", ["extra_tilt:Tilt", "extra_tilt"])
def test_a_plugin_imported_by_hand_is_still_the_plugin(install: Install, target: str) -> None:
    register = "from hyperconn.manifolds import register\nregister('tilt')(Tilt)\n"
    install(entries={"tilt": target}, extra_tilt=shape_class() + register)
    cls: type[Manifold] = __import__("extra_tilt").Tilt
    assert manifolds.provider(cls) == manifolds.provider("tilt") == EXTRA
    assert manifolds.get("tilt") is cls
