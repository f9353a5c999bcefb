"""Installed distributions made up on the spot, and a registry that forgets them afterwards."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperconn.manifolds.registry import registry

# A manifold in few lines: everything else is inherited from one that keeps the laws.
CLASS = """
from dataclasses import dataclass
from hyperconn.manifolds import Stiefel

@dataclass(frozen=True)
class {cls}(Stiefel):
    name = "{name}"
"""

Install = Callable[..., Path]


def shape_class(name: str = "tilt", cls: str = "Tilt") -> str:
    """The source of a module with one manifold."""
    return CLASS.format(name=name, cls=cls)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """``install("extra", entries={"tilt": "extra_tilt:Tilt"}, extra_tilt=source)``: a distribution on sys.path.

    Modules that it brings, and manifolds that were registered meanwhile, are gone after the test.
    """
    monkeypatch.delenv("HYPERCONN_PLUGINS", raising=False)
    entries_before, modules_before = dict(registry._ENTRIES), set(sys.modules)

    def add(
        name: str = "extra",
        version: str = "1.0",
        *,
        entries: dict[str, str] | str | None = None,
        folder: str | None = None,
        info: str = "dist-info",
        **modules: str,
    ) -> Path:
        place = tmp_path / (folder or name)
        stem = name.replace("-", "_")
        metadata = place / (f"{stem}-{version}.dist-info" if info == "dist-info" else f"{stem}.egg-info")
        metadata.mkdir(parents=True)
        file = "METADATA" if info == "dist-info" else "PKG-INFO"
        (metadata / file).write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
        lines = [f"{key} = {value}" for key, value in entries.items()] if isinstance(entries, dict) else [entries or ""]
        (metadata / "entry_points.txt").write_text("\n".join(["[hyperconn.manifolds]", *lines]), encoding="utf-8")
        for module, source in modules.items():
            (place / f"{module}.py").write_text(source, encoding="utf-8")
        if str(place) not in sys.path:
            monkeypatch.syspath_prepend(place)
        return metadata

    yield add
    registry._ENTRIES.clear()
    registry._ENTRIES.update(entries_before)
    for module in set(sys.modules) - modules_before:
        if str(getattr(sys.modules[module], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[module]


EVEN = """
    def __post_init__(self):
        super().__post_init__()
        if self.n % 6:
            raise ValueError("n must be a multiple of 6")

    @classmethod
    def examples(cls):
        return (cls(n=6),)
"""
PICKY = """
    angle: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        if not self.angle:
            raise ValueError("an angle is needed")

    @classmethod
    def examples(cls):
        return (cls(n=4, angle=0.5),)
"""
STUMBLES = """
    def forward(self, theta):
        raise IndexError("list index out of range")
"""


@pytest.fixture
def choosy(install: Install) -> None:
    """Good plugins that refuse n=4, or need an option, beside one that cannot be imported and one that stumbles."""
    install(
        entries={name: f"extra_{name}:Odd" for name in ("even", "picky", "lost", "stumbles")},
        extra_even=shape_class("even", "Odd") + EVEN,
        extra_picky=shape_class("picky", "Odd") + PICKY,
        extra_lost="raise SystemExit('I am off')",
        extra_stumbles=shape_class("stumbles", "Odd") + STUMBLES,
    )
