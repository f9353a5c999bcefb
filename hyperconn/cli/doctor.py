"""``hyperconn doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys

import torch
from rich.table import Table
from rich.text import Text

from hyperconn import HyperConnectionConfig, manifolds
from hyperconn.backends import layer_obstacle, tensor_obstacle
from hyperconn.cli.console import output, say
from hyperconn.cli.plugins import blaming_plugins, plugin_problems, plugin_states, shown_instance
from hyperconn.coefficients import unfused_part
from hyperconn.manifolds import PluginError
from hyperconn.manifolds.registry.plugins import VARIABLE
from hyperconn.spec import LayerSpec

_PACKAGES = ("hyperconn", "torch", "triton", "numpy", "geotorch", "typer", "rich", "matplotlib", "PyYAML", "hypothesis")


def run_doctor() -> None:
    """Print versions, devices, and what can run here."""
    versions = Table(title="versions", title_justify="left", show_header=False)
    versions.add_row("python", f"{platform.python_version()} ({sys.executable})")
    versions.add_row("platform", platform.platform())
    for package in _PACKAGES:
        versions.add_row(package, installed_version(package))
    output.print(versions)

    devices = Table(title="devices", title_justify="left", show_header=False)
    devices.add_row("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        devices.add_row(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
    if not torch.cuda.is_available():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "no usable GPU"
        devices.add_row("cuda", f"none ({reason})")
    output.print(devices)

    output.print(f"backend='auto' runs on {'triton' if torch.cuda.is_available() else 'torch'} here")
    paths = Table(title="the triton backend", title_justify="left")
    for column in ("manifold", "runs here", "fused"):
        paths.add_column(column)
    obstacle = tensor_obstacle(_device(), torch.float32, torch.float32)
    for name in manifolds.available():
        paths.add_row(name, *map(Text, _triton_cells(name, obstacle)))
    output.print(paths)
    _print_plugins()


def _triton_cells(name: str, obstacle: str | None) -> tuple[str, str]:
    try:
        manifolds.get(name)
    except PluginError:
        return "no: a broken plugin, see below", "–"
    try:
        with blaming_plugins(name):
            shown = shown_instance(name)
            spec = LayerSpec.of(HyperConnectionConfig(streams=shown.n, manifold=shown), dim=64)
            blocked = layer_obstacle(spec) or obstacle
            part = "–" if blocked else unfused_part(spec) or "everything"
    except PluginError as error:
        return f"no: {error}", "–"
    return f"no: {blocked}" if blocked else "yes", part


def _print_plugins() -> None:
    allowed = os.environ.get(VARIABLE)
    say(f"{VARIABLE} is " + ("not set: every plugin may be used" if allowed is None else repr(allowed)))
    found = Table(title="plugins", title_justify="left")
    for column in ("manifold", "distribution", "entry point", "state"):
        found.add_column(column, overflow="fold")
    for plugin, state, reason in plugin_states():
        cells = plugin.name, str(plugin.provider), plugin.target, state + (reason and f": {reason}")
        found.add_row(*map(Text, cells))
    if found.rows:
        output.print(found)
    else:
        say("no plugins are installed")
    for problem in plugin_problems():
        say(f"– {problem}")


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def installed_version(package: str) -> str:
    """Version of an installed package, or that there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
