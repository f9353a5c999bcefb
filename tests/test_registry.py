"""Manifolds by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from healthy_manifold import Circulant
from hyperconn import manifolds
from hyperconn.manifolds import UnknownNameError

ALIASES = {
    "birkhoff": ("mhc", "sinkhorn"),
    "permutation": ("bvn", "mhc-lite"),
    "kronecker": ("kromhc",),
    "stiefel": ("cayley", "jpmhc"),
    "spectral_sphere": ("shc",),
    "grassmann": (),
    "identity": ("ihc",),
    "unconstrained": ("hc",),
}


def test_the_built_in_names_and_aliases() -> None:
    known = manifolds.available()
    assert list(known) == sorted(known) and set(ALIASES) <= set(known)  # whoever adds one changes nothing here
    for name, others in ALIASES.items():
        assert manifolds.aliases(name) == others
        for alias in (name, *others):
            assert manifolds.resolve(alias) == name and manifolds.get(alias) is manifolds.get(name)
            assert manifolds.make(alias, n=2) == manifolds.make(name, n=2)


def test_case_and_dashes_do_not_matter() -> None:
    for spelling in ("mhc-lite", "mhc_lite", "MHC-Lite", " permutation ", "BVN"):
        assert manifolds.resolve(spelling) == "permutation"


def test_unknown_names_suggest_the_nearest() -> None:
    for wrong, near in (("birkoff", "birkhoff"), ("stifel", "stiefel"), ("mhc-lit", "mhc-lite")):
        with pytest.raises(
            UnknownNameError, match=rf"unknown manifold '{wrong}'. Did you mean .*'{near}'.* Known: .*birkhoff,"
        ):
            manifolds.make(wrong, n=4)
    for kind in (UnknownNameError, KeyError, ValueError):
        with pytest.raises(kind, match=r"^unknown manifold 'xyzzy'. Known: .*birkhoff, .*bvn, .*cayley"):
            manifolds.resolve("xyzzy")
    with pytest.raises(TypeError, match="chosen by name, a string; got 3"):
        manifolds.resolve(3)  # type: ignore[arg-type]


def test_registering_and_forgetting() -> None:
    for _ in range(2):  # the second time the same class gets an alias more
        manifolds.register("healthy", "healthy-shifts")(Circulant)
    assert manifolds.make("healthy_shifts", n=5) == Circulant(n=5)
    assert "healthy" in manifolds.available() and manifolds.aliases("healthy") == ("healthy-shifts",)
    kronecker = manifolds.make("kronecker", n=6, factors=({"manifold": "healthy", "n": 3}, 2))
    assert kronecker.num_coordinates == 5 and kronecker.exact
    manifolds.unregister("healthy-shifts")
    assert "healthy" not in manifolds.available()
    with pytest.raises(UnknownNameError):
        manifolds.get("healthy-shifts")


@pytest.mark.parametrize("taken", ["birkhoff", "Birkhoff", "MHC_lite"])
def test_a_name_means_one_class(taken: str) -> None:
    owner = manifolds.get(taken)
    for names in ((taken,), ("quite-new", taken)):
        with pytest.raises(ValueError, match=rf"'{taken}' is already taken by hyperconn.manifolds.*{owner.__name__}"):
            manifolds.register(*names)(Circulant)
    assert manifolds.get(taken) is owner and "quite-new" not in manifolds.available()


def test_what_is_not_registered() -> None:
    for stranger in (Path, Circulant(n=2)):
        with pytest.raises(TypeError, match=r"register\('none'\) takes a subclass of Manifold, got"):
            manifolds.register("none")(stranger)  # type: ignore[type-var]
    with pytest.raises(ValueError, match=r"register\('mine'\): .*Stiefel calls itself name = 'stiefel'"):
        manifolds.register("mine")(manifolds.Stiefel)
    assert not {"mine", "none"} & set(manifolds.available())


@pytest.mark.usefixtures("own_names")
def test_fields_that_would_be_lost_are_refused() -> None:
    class Harmless(manifolds.Stiefel):
        name: ClassVar[str] = "harmless"

    class Middle(manifolds.Stiefel):
        angle: float = 1.0

    @dataclass(frozen=True)
    class Lower(Middle):
        name = "lower"

    @dataclass(frozen=True)
    class Whole(manifolds.Stiefel):
        angle: float = 1.0

    for cls in (Middle, Lower):
        with pytest.raises(TypeError, match=r"Middle annotates angle, .* put @dataclass\(frozen=True\) on .*Middle"):
            manifolds.register("lower")(cls)
    manifolds.register("harmless")(Harmless)
    manifolds.register("whole")(Whole)
    assert manifolds.make("whole", n=2, angle=3.0) == Whole(n=2, angle=3.0)
