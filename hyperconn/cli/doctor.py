"""``hyperconn doctor``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from hyperconn.backends import interpreting, tensor_obstacle, triton_missing
from hyperconn.cli.console import output, say
from hyperconn.manifolds import PluginError
from hyperconn.manifolds.registry import Registry, plugins

_PACKAGES = ("hyperconn", "torch", "triton", "numpy", "geotorch", "typer", "rich", "matplotlib", "PyYAML", "hypothesis")


def doctor() -> None:
    """Versions, devices, plugins, and whether the Triton kernels run here."""
    machine = _table("here")
    machine.add_row("python", f"{platform.python_version()} ({sys.executable}) on {platform.platform()}")
    for package in _PACKAGES:
        machine.add_row(package, _installed_version(package))
    machine.add_row("cpu", f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        machine.add_row(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, compute capability {major}.{minor}")
    if not torch.cuda.is_available():
        reason = "this torch was built without CUDA" if torch.version.cuda is None else "no usable GPU"
        machine.add_row("cuda", f"none ({reason})")
    output.print(machine)
    device = torch.device("cpu" if interpreting() or not torch.cuda.is_available() else "cuda")
    obstacle = triton_missing() or tensor_obstacle(device, torch.float32, torch.float32)
    say(f"backend='auto' takes {'triton' if device.type == 'cuda' and obstacle is None else 'torch'} on {device}")
    say(f"the triton backend: {obstacle or _try_kernel(device)}")
    _print_plugins()


# In a process of its own: a compiler that does not fit the machine may raise anything, or end the process.
_PROBE = """
import torch
from hyperconn import HyperConnection, HyperConnectionConfig
x, results = torch.randn(3, 4, 8, device="{device}"), []
for backend in ("torch", "triton"):
    torch.manual_seed(0)
    config = HyperConnectionConfig(4, backend=backend, fn_std=0.1)
    layer = HyperConnection(torch.nn.Linear(8, 8, device="{device}"), 8, config, device="{device}")
    out = layer(x)
    out.square().sum().backward()
    results.append((out, layer.fn.grad))
torch.testing.assert_close(results[1], results[0], rtol=1e-2, atol=1e-2)
"""


def _try_kernel(device: torch.device) -> str:
    """Take a step of a small layer on both backends and compare; returns what came of it."""
    code = _PROBE.format(device=device)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8")
    if done.returncode == 0:
        return f"runs on {device}" + (" in Triton's interpreter" if interpreting() else "")
    said = [line for line in done.stderr.splitlines() if line.strip()]
    reason = said[-1].strip() if said else f"the process ended with status {done.returncode}"
    return f"BROKEN here, a small layer failed: {reason}; use backend='torch'"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=bool(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print_plugins() -> None:
    allowed = os.environ.get(plugins.VARIABLE)
    say(f"{plugins.VARIABLE} is " + ("not set: every plugin may be used" if allowed is None else repr(allowed)))
    found = [(registry, plugin) for registry in Registry.all for plugin in plugins.installed(registry.kind)]
    table = _table("plugins", "name", "distribution", "entry point", "state")
    for registry, plugin in found:
        cells = plugin.name, str(plugin.provider), plugin.target, _state(registry, plugin)
        table.add_row(*map(Text, cells))
    if found:
        output.print(table)
    else:
        say("no plugins are installed")
    for entry in plugins.allowed_entries() or ():
        if not any(plugins.matches(plugin, entry) for _, plugin in found):
            say(
                f"– {plugins.VARIABLE} allows {entry!r}, which is neither a distribution that provides parts nor one "
                "of their names"
            )


def _state(registry: Registry[Any], plugin: plugins.Plugin) -> str:
    """What becomes of an installed plugin here. One that may be used is imported."""
    taken = registry.shadow(plugin)
    if taken is not None:
        return f"not used: the name is taken by {taken.__module__}.{taken.__qualname__}"
    if not plugins.is_allowed(plugin):
        return f"not used: {plugins.VARIABLE} does not allow it"
    try:
        registry.get(plugin.name)
    except PluginError as error:
        return f"broken: {error}"
    return "used"


def _installed_version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
