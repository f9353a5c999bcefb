"""The documentation as a site: complete, built strictly, and nothing in it comes from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import ModuleType

import pytest
import typer

import hyperconn
import hyperconn.kernels
import hyperconn.testing
from hyperconn import manifolds
from hyperconn.cli.app import app
from source_tree import ROOT

pytestmark = [
    pytest.mark.exhaustive,  # building the site takes half a minute
    pytest.mark.skipif(sys.version_info < (3, 11), reason="the extra docs needs Python 3.11"),
]

DOCS = ROOT / "docs"
STRICT = ["--fail-on-warning", "--keep-going", "--fresh-env", "--quiet"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", *STRICT, str(DOCS), str(out)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return out


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]*>", "", page.read_text(encoding="utf-8")))


def test_make_docs_builds_what_is_tested() -> None:
    recipes = (ROOT / "Makefile").read_text(encoding="utf-8").splitlines()
    assert f"\t$(BIN)/python -m sphinx {' '.join(STRICT)} docs site" in recipes


@pytest.mark.parametrize("module", [hyperconn, manifolds, hyperconn.testing, hyperconn.kernels])
def test_every_public_name_is_in_the_reference(site: Path, module: ModuleType) -> None:
    pages = (site / "reference").glob("*.html")
    documented = {name for page in pages for name in re.findall(r'\bid="([^"]+)"', page.read_text(encoding="utf-8"))}
    assert {f"hyperconn.{name}" for name in ("gates.Gate", "gates.Softmax", "predictors.Flat")} <= documented
    assert "hyperconn.manifolds.Manifold.coordinate_groups" in documented
    missing = []
    for name in module.__all__:
        value = getattr(module, name)
        homes = (module.__name__, "hyperconn.manifolds")  # an object that two modules export is described once
        ids = [f"module-{value.__name__}"] if isinstance(value, ModuleType) else [f"{home}.{name}" for home in homes]
        missing += [name] if documented.isdisjoint(ids) else []
    assert missing == []


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    page = text_of(site / "reference" / "cli.html")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert len(commands) >= 6
    for name, command in commands.items():
        _, _, rest = page.partition(f"hyperconn {name}\N{PILCROW SIGN}")
        section = rest.split("\N{PILCROW SIGN}")[0]
        options = [o for p in command.params if p.param_type_name == "option" for o in p.opts]
        assert section and [option for option in options if option not in section] == [], name


def test_invariants_are_listed(site: Path) -> None:
    page = text_of(site / "reference" / "manifolds.html")
    for name in ("row_sums", "orthogonal", "idempotent"):
        assert f"{name}\n" in page and getattr(manifolds.invariants, name).statement in page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=\"([^\"]+)\"", html)
        assert [address for address in loaded if re.match(r"(https?:)?//", address)] == [], page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name
