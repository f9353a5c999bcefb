"""The command ``hyperconn``. Importing this module needs nothing beyond the core dependencies."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Run the command line, or say how to install what it needs."""
    missing = [package for package in ("typer", "rich") if importlib.util.find_spec(package) is None]
    if missing:
        needs = " and ".join(missing)
        print(f"hyperconn: the command line needs {needs}: pip install 'hyperconn[cli]'", file=sys.stderr)
        raise SystemExit(2)
    from hyperconn.cli.app import app

    app()
