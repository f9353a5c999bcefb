"""The pictures on the pages of the built-in manifolds show what the code does."""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from types import ModuleType

import pytest
import torch

from hyperconn import manifolds
from source_tree import ROOT

DOCS = ROOT / "docs"
PICTURES = sorted((DOCS / "images" / "manifolds").glob("*.svg"))

# What has a picture; a manifold that joins later may come without.
each = pytest.mark.parametrize("name", [path.stem for path in PICTURES])


def page_of(name: str) -> str:
    return (DOCS / "manifolds" / f"{name}.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_pictures", DOCS / "pictures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_built_in_manifolds_have_pictures() -> None:
    ours = {"birkhoff", "grassmann", "identity", "kronecker"}
    ours |= {"permutation", "spectral_sphere", "stiefel", "unconstrained"}
    assert {path.stem for path in PICTURES} >= ours
    assert {path.stem for path in PICTURES} <= set(manifolds.available())


# ---------------------------------------------------------------------------------------------------- pictures


def numbers(text: str) -> tuple[str, list[float]]:
    """The text without its numbers, and the numbers."""
    pattern = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
    return re.sub(pattern, "#", text), [float(number) for number in re.findall(pattern, text)]


def stale(stored: str, drawn: str) -> bool:
    """Whether a picture shows other matrices; machines may differ in the last digit that is shown."""
    (old, then), (new, now) = numbers(stored), numbers(drawn)
    return old != new or any(abs(a - b) > max(0.02, 0.11 * abs(b)) for a, b in zip(then, now, strict=True))


@each
def test_pictures_are_up_to_date(name: str, pictures: ModuleType) -> None:
    stored = (pictures.FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    assert not stale(stored, pictures.draw(name)), "run `make pictures`"
    assert len(stored.encode()) < 60_000
    assert len(ElementTree.fromstring(stored).findall(".//{*}text")) == 5 * 17 + 1


def test_a_stale_picture_is_noticed(pictures: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = (pictures.FOLDER / "stiefel.svg").read_text(encoding="utf-8")
    assert not stale(stored, pictures.draw("stiefel"))
    forward = manifolds.Stiefel.forward
    monkeypatch.setattr(manifolds.Stiefel, "forward", lambda self, theta: forward(self, theta).mT)
    assert stale(stored, pictures.draw("stiefel"))


def test_pictures_show_the_applied_matrices(pictures: ModuleType) -> None:
    drawn, eigenvalues = pictures.panels("stiefel")
    for _, H in drawn:
        assert manifolds.make("stiefel", n=4).violation(H) < 1e-13
    assert eigenvalues.shape == (600,) and torch.allclose(eigenvalues.abs(), torch.ones(600, dtype=torch.float64))
    assert [pictures.written(value) for value in (0.5, -0.001, 12.3, -5e6)] == ["0.50", "0.00", "12", "-5e6"]


@each
def test_pages_show_their_picture(name: str) -> None:
    ((alternative, file),) = re.findall(r"!\[(.*?)\]\((.*?)\)", page_of(name))
    assert file == f"../images/manifolds/{name}.svg"
    assert len(alternative.split()) >= 5
