"""Installed distributions made up on the spot, and a registry that forgets them afterwards."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hyperconn import manifolds
from hyperconn.manifolds.registry import Registry

# A part in few lines: everything else is inherited from one that keeps the laws.
CLASS = """
from dataclasses import dataclass
from hyperconn.{module} import {base}

@dataclass(frozen=True)
class {cls}({base}):
    name = "{name}"
"""
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"

Install = Callable[..., Path]


def shape_class(name: str = "tilt", cls: str = "Tilt", base: str = "manifolds:Stiefel") -> str:
    """The source of a module with one part."""
    module, _, base = base.partition(":")
    return CLASS.format(name=name, cls=cls, module=module, base=base)


@pytest.fixture
def own_names() -> Iterator[None]:
    """Parts that are registered meanwhile are forgotten afterwards, and forgotten ones are back."""
    before = [dict(registry._entries) for registry in Registry.all]
    for registry in Registry.all:  # the warning is a test of its own, in test_mistakes
        registry._shadows_told = True
    yield
    for registry, entries in zip(Registry.all, before, strict=True):
        registry._entries.clear()
        registry._entries.update(entries)


@pytest.fixture
def install(own_names: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("extra", entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=source)``: a distribution on sys.path.

    Modules that it brings are gone after the test.
    """
    monkeypatch.delenv("HYPERCONN_PLUGINS", raising=False)
    modules_before = set(sys.modules)

    def add(
        name: str = "extra", version: str = "1.0", *, entries: dict[str, str], kind: str = "manifold", **modules: str
    ) -> Path:
        place = tmp_path / name
        metadata = place / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(METADATA.format(name=name, version=version), encoding="utf-8")
        lines = [f"[hyperconn.{kind}s]", *(f"{key} = {value}" for key, value in entries.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
        for module, source in modules.items():
            (place / f"{module}.py").write_text(source, encoding="utf-8")
        if str(place) not in sys.path:
            monkeypatch.syspath_prepend(place)
        return metadata

    yield add
    for module in set(sys.modules) - modules_before:
        if str(getattr(sys.modules[module], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[module]


def forget() -> None:
    """As if the process had started after the change."""
    manifolds.unregister("tilt")
    for registry in Registry.all:
        registry._providers.clear()


def reinstall(info: Path, name: str, version: str) -> Path:
    """Another distribution with the same module."""
    (info / "METADATA").write_text(METADATA.format(name=name, version=version), encoding="utf-8")
    forget()
    return info.rename(info.with_name(f"{name.replace('-', '_')}-{version}.dist-info"))


def saved_and_read(module: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert all(isinstance(value, Tensor) for value in state.values())
    return state


REFUSES_4 = """
    def __post_init__(self):
        super().__post_init__()
        if self.n % 6:
            raise ValueError("n must be a multiple of 6")

    @classmethod
    def examples(cls):
        return (cls(n=6),)
"""
NEEDS_AN_ANGLE = """
    angle: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not self.angle:
            raise ValueError("an angle is needed")

    @classmethod
    def examples(cls):
        return (cls(n=4, angle=0.5),)
"""
FAILS = """
    def {method}(self, *_):
        raise IndexError("list index out of range")
"""


@pytest.fixture
def zoo(install: Install) -> None:
    """One plugin of every kind: good, choosy, broken at import, when made or when called, shadowed, and ambiguous."""
    broken = {"rough": "__post_init__", "stumbles": "forward"}
    install(
        entries={
            **{name: f"extra_{name}:Odd" for name in ("tilt", "even", "picky", "lost", *broken)},
            "stiefel": "extra_tilt:Odd",
            "twice": "extra_tilt:Twice",
        },
        extra_tilt=shape_class("tilt", "Odd"),
        extra_even=shape_class("even", "Odd") + REFUSES_4,
        extra_picky=shape_class("picky", "Odd") + NEEDS_AN_ANGLE,
        extra_lost="raise SystemExit('I am off')",
        **{f"extra_{name}": shape_class(name, "Odd") + FAILS.format(method=broken[name]) for name in broken},
    )
    install("other", "2.0", entries={"twice": "other_twice:Twice"})
    (install("nameless", entries={"lean": "x:Y"}) / "METADATA").unlink()
