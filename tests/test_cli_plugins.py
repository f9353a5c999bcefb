"""What the command line says about plugins: good, broken, hidden and forbidden ones."""

from __future__ import annotations

import pytest

from cli_cases import refused, run, words
from hyperconn import HyperConnectionConfig, manifolds
from plugin_cases import Install, shape_class

BUILT_IN = manifolds.available()
RAISES = shape_class("rough", "Rough") + "    def __post_init__(self):\n        raise RuntimeError('rough day')\n"


@pytest.fixture
def zoo(install: Install) -> None:
    """One of every kind."""
    install(
        entries={
            "tilt": "extra_tilt:Tilt",
            "lost": "extra_lost:Lost",
            "rough": "extra_rough:Rough",
            "stiefel": "extra_tilt:Tilt",
            "twice": "extra_tilt:Twice",
        },
        extra_tilt=shape_class(),
        extra_lost="raise SystemExit('I am off')",
        extra_rough=RAISES,
    )
    install("other", "2.0", entries={"twice": "other_twice:Twice"})
    (install("nameless", entries={"lean": "x:Y"}) / "METADATA").unlink()


def test_list_and_doctor(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("list")
    assert result.exit_code == 0, result.exception
    shown = words(result)
    for name in (*BUILT_IN, "tilt", "lost", "rough", "twice"):
        assert name in manifolds.available() and f" {name} " in f" {shown}"
    assert all(f"{name} broken" in shown for name in ("lost", "rough", "twice")) and "tilt broken" not in shown
    assert "lost is broken: manifold plugin 'lost' (entry point lost = extra_lost:Lost of extra 1.0) cannot be" in shown
    assert "SystemExit: I am off" in shown
    assert "rough is broken: rough of extra 1.0: RuntimeError: rough day" in shown
    assert "twice is broken: the manifold 'twice' is provided by extra 1.0 and other 2.0" in shown

    result = run("doctor")
    assert result.exit_code == 0, result.exception
    shown = words(result)
    assert "HYPERCONN_PLUGINS is not set" in shown and "SystemExit: I am off" in shown
    for line in ("tilt extra 1.0 extra_tilt:Tilt used", "twice other 2.0 other_twice:Twice broken: the manifold"):
        assert line in shown
    assert "stiefel extra 1.0 extra_tilt:Tilt not used: the name is taken by" in shown
    monkeypatch.setenv("HYPERCONN_PLUGINS", "other, tild")
    result = run("doctor")
    assert result.exit_code == 0, result.exception
    shown = words(result)
    assert "HYPERCONN_PLUGINS is 'other, tild'" in shown
    assert "HYPERCONN_PLUGINS allows 'tild', which is neither" in shown and "allows 'other'" not in shown
    assert "lost extra 1.0 extra_lost:Lost not used: HYPERCONN_PLUGINS does not" in shown


def test_show(zoo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "provided by extra 1.0" in words(run("show", "tilt"))
    assert "provided by hyperconn" in words(run("show", "mhc"))
    assert "cannot be imported: SystemExit: I am off" in refused("show", "lost")
    unknown = refused("show", "kromch")
    assert "'kromhc'" in unknown and all(name in unknown for name in ("tilt", *HyperConnectionConfig.presets()))
    monkeypatch.setenv("HYPERCONN_PLUGINS", "")
    assert "extra 1.0 provides it, but the environment variable HYPERCONN_PLUGINS" in refused("show", "lost")


def test_show_takes_the_example_of_a_plugin_that_refuses_n_4(choosy: None) -> None:
    assert "15 at n=6" in words(run("show", "even")) and "angle=0.5)" in words(run("show", "picky"))
    assert "6 at n=4" in words(run("show", "stiefel"))
    assert "even of extra 1.0: ValueError: n must be a multiple of 6" in refused("show", "even", "--n", "4")


def test_show_names_the_distribution_of_what_raises(choosy: None) -> None:
    assert refused("show", "stumbles").endswith("stumbles of extra 1.0: IndexError: list index out of range")


def test_a_bug_of_a_built_in_is_no_broken_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(manifolds.Identity, "__post_init__", fail)
    assert isinstance(run("list").exception, RuntimeError)
