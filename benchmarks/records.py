"""What a GPU measurement is written down as: one JSON object a line, see results/README.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import hyperconn
from harness import Shape

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str | None:
    """The commit of this checkout, with ``+`` if files differ from it; ``HYPERCONN_COMMIT`` where there is no git."""
    named = os.environ.get("HYPERCONN_COMMIT")
    if named:
        return named
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:  # no git
        return None
    if found.returncode or changed.returncode:  # no repository
        return None
    return found.stdout.strip()[:12] + ("+" if changed.stdout.strip() else "")


def version(distribution: str) -> str | None:
    """The installed version, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def sizes(shape: Shape) -> dict[str, Any]:
    """What a line says of a shape."""
    dtype = str(shape.dtype).removeprefix("torch.")
    return {"tokens": shape.tokens, "streams": shape.streams, "channels": shape.channels, "dtype": dtype}


class Log:
    """Appends lines to ``<folder>/<device>.jsonl``, each with the environment; they are on disk as soon as written."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._common = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "device": device_name(device),
            "torch": torch.__version__,
            "triton": version("triton"),
            "hyperconn": hyperconn.__version__,
            "liger_kernel": version("liger-kernel"),
            "commit": commit(),
        }
        name = re.sub(r"[^A-Za-z0-9]+", "-", device_name(device)).strip("-").lower()
        self.path = folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, shape: Shape, contender: str, op: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """One line, which it returns."""
        written = {**self._common, "op": op, "contender": contender, **sizes(shape), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(written, ensure_ascii=False) + "\n")
        return written
