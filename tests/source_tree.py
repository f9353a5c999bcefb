"""Where the sources lie, under which names they are imported, a wheel of them, and environments to try it in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]

# folder at the top of the repository -> the package that it installs as (pyproject.toml, package-dir)
PACKAGES = {"kernels": "hyperconn.kernels", "manifolds": "hyperconn.manifolds", "hyperconn": "hyperconn"}


def source_files(folder: str) -> list[Path]:
    """Every Python file below a top folder."""
    return sorted(p for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts)


def module_name(path: Path) -> str:
    """The import name of a file below one of the top folders.

    >>> module_name(ROOT / "kernels" / "maps" / "sinkhorn.py"), module_name(ROOT / "manifolds" / "__init__.py")
    ('hyperconn.kernels.maps.sinkhorn', 'hyperconn.manifolds')
    """
    folder, *inside = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES[folder], *(part for part in inside if part != "__init__")])


ALL_SOURCES = [path for folder in PACKAGES for path in source_files(folder)]


def pyproject(project: Path) -> dict[str, Any]:
    """What the pyproject.toml of a folder says."""
    return tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))


def build_wheel(project: Path, copy: Path) -> Path:
    """The wheel of a project, built from a copy: building in place would leave files in the working tree."""
    generated = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    copy.mkdir()
    for source in [project / name for name in (*PACKAGES, "src", "tests", "pyproject.toml", "README.md", "LICENSE")]:
        if source.is_dir():
            shutil.copytree(source, copy / source.name, ignore=generated)
        elif source.is_file():
            shutil.copy(source, copy)
    backend = "from setuptools import build_meta; build_meta.build_wheel('wheel')"
    subprocess.run([sys.executable, "-c", backend], cwd=copy, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (copy / "wheel").glob("*.whl")
    return wheel


def make_environment(folder: Path, *what: str | Path) -> Path:
    """A virtual environment with what pip is told to install; returns its folder of commands.

    What that depends on is the running environment's, whose folders of packages come last on the path. Paths that are
    named in files there are not followed, so an editable hyperconn does not leak in.
    """
    call(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=folder)
    commands = folder / "venv" / "bin"
    (installed,) = (folder / "venv").glob("lib/python*/site-packages")
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (installed / "others.pth").write_text("\n".join(others), encoding="utf-8")
    # Among the other packages pip would find a hyperconn.
    pip(commands, "install", "--ignore-installed", "--no-deps", "--no-index", "--no-build-isolation", *what)
    return commands


def pip(commands: Path, command: str, *arguments: str | Path) -> None:
    """The running environment's pip at work on another one."""
    call(sys.executable, "-m", "pip", "--quiet", "--python", commands / "python", command, *arguments)


def call(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that has to end well; returns what it printed, as words."""
    ours = ("PYTHON", "HYPERCONN", "TRITON")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=clean, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return " ".join(f"{done.stdout}\n{done.stderr}".split())
