"""What installs, what imports what, and what every source file must have."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hyperconn
from source_tree import ALL_SOURCES, PACKAGES, ROOT, build_wheel, module_name, pyproject, source_files

MAX_LINES = 400
PYPROJECT = pyproject(ROOT)
OPTIONAL = ("hypothesis", "typer", "rich", "matplotlib", "yaml", "pytest")

# folder -> (our packages that it may import, other packages that it may import; None: whatever pyproject declares)
ALLOWED = {
    "kernels": ({"hyperconn.kernels"}, {"torch", "triton"}),
    "manifolds": ({"hyperconn.kernels", "hyperconn.manifolds"}, {"torch", "geotorch"}),
    "hyperconn": (set(PACKAGES.values()), None),
}
# The parts of the package that the dependencies of an extra stay in.
HOMES = {
    "hypothesis": ("hyperconn.testing",),
    "matplotlib": ("hyperconn.cli", "hyperconn.lab"),
    "pytest": ("hyperconn.testing",),
    "rich": ("hyperconn.cli", "hyperconn.lab", "hyperconn.testing"),
    "typer": ("hyperconn.cli", "hyperconn.testing"),
}
# The standard library of the newest Python that we import from, whichever runs the tests.
STANDARD_LIBRARY = sys.stdlib_module_names | {"tomllib"}
IMPORT_NAMES = {"pyyaml": "yaml"}  # distributions that import under another name
DECLARED = {
    IMPORT_NAMES.get(name, name)
    for entry in (*PYPROJECT["project"]["dependencies"], *PYPROJECT["project"]["optional-dependencies"]["cli"])
    for name in [Requirement(entry).name.lower()]
} | {"hypothesis", "pytest"}


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything that a module imports, at the top or inside a function, for types or at run time."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def forbidden_imports(source: str, folder: str, module: str) -> list[str]:
    """The imports of a module that point up, sideways or outside of what its folder may use."""
    ours, others = ALLOWED[folder]
    bad = []
    for name in imported(ast.parse(source)):
        top = name.split(".")[0]
        if top == "hyperconn":
            # `from hyperconn import manifolds` names hyperconn.manifolds, but runs hyperconn/__init__.py for it.
            lower = [package for package in PACKAGES.values() if f"{name}.".startswith(f"{package}.")]
            allowed = max(lower, key=len) in ours
        elif top in STANDARD_LIBRARY:
            allowed = True
        else:  # a relative import has an empty top and is refused with the rest
            allowed = top in (DECLARED if others is None else others)
            homes = HOMES.get(top, PACKAGES.values())
            allowed = allowed and any(f"{module}.".startswith(f"{home}.") for home in homes)
        if not allowed:
            bad.append(name)
    return bad


def test_imports_point_down() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in ALL_SOURCES} == set(PACKAGES) and len(ALL_SOURCES) > 20
    for path in ALL_SOURCES:
        folder = path.relative_to(ROOT).parts[0]
        bad = forbidden_imports(path.read_text(encoding="utf-8"), folder, module_name(path))
        assert not bad, f"{path.relative_to(ROOT)} may not import {', '.join(bad)}"


@pytest.mark.parametrize(
    ("folder", "source", "bad"),
    [
        ("kernels", "import math, torch, triton.language", []),
        ("kernels", "from hyperconn.kernels.maps.sinkhorn import sinkhorn", []),
        ("kernels", "from hyperconn.manifolds import Manifold", ["hyperconn.manifolds.Manifold"]),
        ("kernels", "def f():\n    import geotorch", ["geotorch"]),
        ("manifolds", "from hyperconn.kernels import sinkhorn\nfrom geotorch.so import cayley_map", []),
        ("manifolds", "import hyperconn", ["hyperconn"]),
        ("manifolds", "import numpy", ["numpy"]),
        ("manifolds", "from .base import Manifold", [".base.Manifold"]),
        ("hyperconn", "from hyperconn.manifolds import make\nimport numpy, yaml", []),
        ("hyperconn", "import pandas", ["pandas"]),
        ("hyperconn", "import hypothesis", ["hypothesis"]),
    ],
)
def test_the_import_rule_can_fail(folder: str, source: str, bad: list[str]) -> None:
    assert forbidden_imports(source, folder, f"{PACKAGES[folder]}.example") == bad


def arrows(sources: dict[str, str]) -> dict[str, set[str]]:
    """What each module imports of the others, at the top or inside a function, for types or at run time."""
    found: dict[str, set[str]] = {}
    for module, source in sources.items():
        targets = (name if name in sources else name.rpartition(".")[0] for name in imported(ast.parse(source)))
        found[module] = {target for target in targets if target in sources and target != module}
    return found


def test_no_import_circle() -> None:
    """Drawn as a picture of files and arrows, or of folders and arrows, every arrow points down."""
    sources = {module_name(path): path.read_text(encoding="utf-8") for path in ALL_SOURCES}
    files = arrows(sources)
    assert sum(map(len, files.values())) > 300
    list(TopologicalSorter(files).static_order())  # raises CycleError, with the circle

    def folder(module: str) -> str:
        return module if any(other.startswith(f"{module}.") for other in sources) else module.rpartition(".")[0]

    folders: dict[str, set[str]] = {}
    for module, targets in files.items():
        own = folder(module)
        if module.endswith(".__main__"):  # the way in from a shell, which nobody imports
            continue
        # The __init__ of a folder only says what is public in it: it is no part of what stands above.
        above = {folder(target) for target in targets} if own != module else set()
        folders.setdefault(own, set()).update(above - {own})
    list(TopologicalSorter(folders).static_order())


def test_the_circle_test_can_fail() -> None:
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from a.one import One"
    with pytest.raises(CycleError, match=r"a\.one"):
        list(TopologicalSorter(arrows({"a.one": "def f():\n    from a.two import x", "a.two": typed})).static_order())


def test_files_have_names_of_their_own() -> None:
    """No two share one, unless one is the fused twin of the other, or a test double of a set."""
    found: Counter[tuple[str, str]] = Counter()
    for path in ALL_SOURCES:
        folder, *inside = path.relative_to(ROOT).parts
        place = "above" if folder != "kernels" else "fused" if inside[0] == "fused" else "in torch"
        found[path.name, place] += 1
    assert len(found) > 60
    assert [name for (name, _), count in found.items() if count > 1 and not name.startswith("__")] == []


def test_import_needs_no_extra() -> None:
    """`import hyperconn` loads nothing of the extras, so the core dependencies are enough."""
    listing = f"import sys, hyperconn; print(*[name for name in {OPTIONAL} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_files_are_short() -> None:
    for path in (*ALL_SOURCES, *source_files("tests"), *source_files("benchmarks")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines < MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines: one idea a file"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel."""
    unpacked = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build_wheel(ROOT, tmp_path_factory.mktemp("source") / "copy")) as archive:
        archive.extractall(unpacked)
    return unpacked


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


def test_wheel_holds_every_source_file_under_one_package(wheel: Path) -> None:
    shipped = {path.relative_to(wheel).as_posix() for path in files_below(wheel)}
    shipped = {name for name in shipped if ".dist-info/" not in name}
    expected = {
        "/".join([*package.split("."), *path.relative_to(ROOT / folder).parts])
        for folder, package in PACKAGES.items()
        for path in files_below(ROOT / folder)
    }
    assert {"hyperconn/py.typed", "hyperconn/manifolds/birkhoff.py", "hyperconn/kernels/maps/sinkhorn.py"} <= shipped
    advice = "list new folders in [tool.setuptools] packages, new data files in package-data"
    assert sorted(expected - shipped) == [], advice
    assert sorted(shipped - expected) == []
    assert {path.name for path in wheel.iterdir()} == {"hyperconn", f"hyperconn-{hyperconn.__version__}.dist-info"}


def test_wheel_metadata(wheel: Path) -> None:
    info = wheel / f"hyperconn-{hyperconn.__version__}.dist-info"
    stated = (info / "METADATA").read_text(encoding="utf-8")
    assert "\nLicense-Expression: Apache-2.0\n" in stated
    assert "\nRequires-Python: >=3.10\n" in stated
    assert "hyperconn = hyperconn.cli:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text(encoding="utf-8")


def test_version_is_stated_once() -> None:
    assert hyperconn.__version__ == PYPROJECT["project"]["version"] == metadata.version("hyperconn")
    assert f"## [{hyperconn.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_dependency_is_pinned() -> None:
    """The constraints are exact, and cover all that the project and its extras name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for pin in pins:
        assert re.fullmatch(r"==[\d.]+(b\d+)?", str(pin.specifier)), f"{pin} is no exact version"
    versions = {(pin.name, str(pin.specifier)) for pin in pins}
    assert {("torch", "==2.13.0"), ("triton", "==3.7.1")} <= versions

    project = PYPROJECT["project"]
    extras = [entry for entries in project["optional-dependencies"].values() for entry in entries]
    named = [
        Requirement(entry) for entry in (*project["dependencies"], *extras, *PYPROJECT["build-system"]["requires"])
    ]
    assert len(named) > 10
    for requirement in named:
        if requirement.name != "hyperconn":
            pinned = [pin for pin in pins if pin.name == requirement.name.lower()]
            assert pinned, f"constraints.txt has no pin for {requirement}"
            for pin in pinned:
                (version,) = (clause.version for clause in pin.specifier)
                assert requirement.specifier.contains(version), f"{pin} does not satisfy {requirement}"
