"""Where the sources lie, and under which names they are imported."""

from __future__ import annotations

from pathlib import Path

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
