"""What installs, what imports what, and what every source file must have."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import hyperconn
from source_tree import ALL_SOURCES, PACKAGES, ROOT, build_wheel, module_name, pyproject, source_files

MAX_LINES = 400
PYPROJECT = pyproject(ROOT)
IMPORT_NAMES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}  # distributions that import under another name


def named(entries: Iterable[str]) -> set[str]:
    """What the requirements of a list are imported as."""
    names = {Requirement(entry).name.lower() for entry in entries} - {"hyperconn"}
    return {IMPORT_NAMES.get(name, name) for name in names}


CORE = named(PYPROJECT["project"]["dependencies"])
OPTIONAL = {extra: named(entries) - CORE for extra, entries in PYPROJECT["project"]["optional-dependencies"].items()}

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
    "numpy": ("hyperconn.testing",),
    "pytest": ("hyperconn.testing",),
    "rich": ("hyperconn.cli", "hyperconn.lab", "hyperconn.testing"),
    "triton": ("hyperconn.kernels.fused", "hyperconn.testing.kernel_checks"),
    "typer": ("hyperconn.cli", "hyperconn.testing"),
    "yaml": ("hyperconn.files",),
}
# The standard library of the newest Python that we import from, whichever runs the tests.
STANDARD_LIBRARY = sys.stdlib_module_names | {"tomllib"}
DECLARED = CORE | OPTIONAL["cli"] | OPTIONAL["yaml"] | {"pytest", "triton"}


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
        ("kernels", "import math, torch, triton.language", ["triton.language"]),  # but in fused/
        ("kernels", "from hyperconn.kernels.maps.sinkhorn import sinkhorn", []),
        ("kernels", "from hyperconn.manifolds import Manifold", ["hyperconn.manifolds.Manifold"]),
        ("kernels", "def f():\n    import geotorch", ["geotorch"]),
        ("manifolds", "from hyperconn.kernels import sinkhorn\nfrom geotorch.so import cayley_map", []),
        ("manifolds", "import hyperconn", ["hyperconn"]),
        ("manifolds", "import numpy", ["numpy"]),
        ("manifolds", "from .base import Manifold", [".base.Manifold"]),
        ("hyperconn", "from hyperconn.manifolds import make\nimport tomli, torch", []),
        ("hyperconn", "import pandas", ["pandas"]),
        ("hyperconn", "import hypothesis, numpy, yaml", ["hypothesis", "numpy", "yaml"]),
        ("hyperconn", "import triton", ["triton"]),
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


def without(blocked: Iterable[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that cannot import some packages."""
    block = f"import sys\nsys.modules.update(dict.fromkeys({sorted(blocked)!r}))\n"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0"}
    return subprocess.run([sys.executable, "-c", block + code], capture_output=True, text=True, env=environment)


def test_the_core_needs_no_extra() -> None:
    """With the core dependencies alone README's example runs, and what is missing is named with its extra."""
    (example,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    code = """
for name in hyperconn.manifolds.available():
    config = HyperConnectionConfig(streams=4, manifold=name)
    HyperConnection(nn.Linear(8, 8), 8, config)(torch.randn(2, 4, 8)).sum().backward()
import importlib, pathlib, tempfile
file = pathlib.Path(tempfile.mkdtemp()) / "config.yaml"
file.write_text("streams: 2")
for call in (
    lambda: HyperConnection(None, 8, HyperConnectionConfig(backend="triton")),
    lambda: HyperConnectionConfig.from_file(file),
    lambda: importlib.import_module("hyperconn.testing"),
):
    try:
        call()
    except (ModuleNotFoundError, hyperconn.BackendUnavailableError) as error:
        print(error)
del sys.modules["yaml"]
print(HyperConnectionConfig.from_file(file))
importlib.import_module("hyperconn.cli").main()
"""
    optional = set[str]().union(*OPTIONAL.values())
    assert {"numpy", "triton", "yaml", "matplotlib", "geotorch", "typer", "hypothesis"} <= optional
    done = without(optional - {"setuptools"}, f"{example}\nimport hyperconn\n{code}")  # torch needs setuptools
    said = [re.findall(r"pip install '(.*?)'", line) for line in (done.stdout + done.stderr).splitlines()]
    assert [names for names in said if names] == [[f"hyperconn[{extra}]"] for extra in ("triton", "yaml", "cli", "cli")]
    assert done.returncode == 2 and "streams=2" in done.stdout, done.stderr


def test_verify_needs_nothing_beyond_its_extra() -> None:
    other = set[str]().union(*OPTIONAL.values()) - {"setuptools"}
    verify = "sys.argv[1:] = ['verify', 'static', '--examples', '1']\nfrom hyperconn.cli import main\nmain()"
    done = without(other - OPTIONAL["cli"] - OPTIONAL["yaml"], verify)
    assert done.returncode == 0 and "checks hold" in done.stdout, done.stderr


def test_triton_is_bounded_and_no_dependency() -> None:
    """A torch for GPUs brings its own, and every release of triton may break what the last one ran."""
    assert sorted(CORE) == ["tomli", "torch"]
    everything = [entry for entries in PYPROJECT["project"]["optional-dependencies"].values() for entry in entries]
    (found,) = [entry.specifier for entry in map(Requirement, everything) if entry.name == "triton"]
    assert [found.contains(version) for version in ("3.6.0", "3.7.1", "3.8.0", "3.9.0")] == [False, True, True, False]


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


def test_the_sdist_can_be_tested(tmp_path: Path) -> None:
    """It holds every file that the tests read: without MANIFEST.in setuptools takes the tests without their helpers."""
    generated = shutil.ignore_patterns("__pycache__", "build", "*.egg-info", ".*")
    for folder in (*PACKAGES, "tests", "docs", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=generated)
    for file in ROOT.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copy(file, tmp_path)
    expected = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    backend = "from setuptools import build_meta; print(build_meta.build_sdist('dist'))"
    subprocess.run([sys.executable, "-c", backend], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        shipped = {name.partition("/")[2] for name in archive.getnames()}
    assert {"tests/conftest.py", "Makefile", "docs/images/gain.png", "docs/plugin-example/pyproject.toml"} <= expected
    assert sorted(expected - shipped) == [], "name what is missing in MANIFEST.in"


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
    entries = (*project["dependencies"], *extras, *PYPROJECT["build-system"]["requires"])
    requirements = [Requirement(entry) for entry in entries]
    assert len(requirements) > 10
    for requirement in requirements:
        if requirement.name != "hyperconn":
            pinned = [pin for pin in pins if pin.name == requirement.name.lower()]
            assert pinned, f"constraints.txt has no pin for {requirement}"
            for pin in pinned:
                (version,) = (clause.version for clause in pin.specifier)
                assert requirement.specifier.contains(version), f"{pin} does not satisfy {requirement}"
