"""``hyperconn list`` and ``hyperconn show``."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from hyperconn import HyperConnectionConfig, manifolds
from hyperconn.cli.console import BAD_INPUT, bad_input, fail, output, say
from hyperconn.cli.plugins import blaming_plugins, plugin_problems, plugin_states, shown_instance
from hyperconn.manifolds import Manifold, PluginError, UnknownNameError
from hyperconn.manifolds.core.errors import NotAllowedError, unknown_name

_SIZES = (4, 8)


def run_list() -> None:
    """Print a table of all manifolds."""
    table = Table()
    counts = (f"P at n={n}" for n in _SIZES)
    for column in ("manifold", "aliases", *counts, "invariants", "exact", "fused", "source"):
        table.add_column(column, overflow="fold", no_wrap=column == "manifold")
    notes: list[str] = []
    for name in manifolds.available():
        try:
            with blaming_plugins(name):
                cells, refusals = _row(name)
        except PluginError as error:
            cells, refusals = ["", "", "", "", "broken", "", ""], [f"{name} is broken: {error}"]
        table.add_row(name, *cells)
        notes += refusals
    for plugin, state, reason in plugin_states():
        if state != "broken":  # those have a row above
            notes.append(f"{plugin.name}, a plugin of {plugin.provider}, is {state}" + (reason and f": {reason}"))
    output.print(table)
    for note in [*notes, *plugin_problems()]:
        say(f"– {note}")
    say("P: coordinates, what a token needs for its matrix")
    say(f"presets: {', '.join(HyperConnectionConfig.presets())}")
    say("More on one of them: hyperconn show NAME")


def _row(name: str) -> tuple[list[str], list[str]]:
    """The cells of a manifold beside its name, and the sizes that it refuses."""
    sized: list[Manifold | None] = []
    refusals = []
    for n in _SIZES:
        try:
            sized.append(manifolds.make(name, n=n))
        except (ValueError, TypeError) as error:
            sized.append(None)
            refusals.append(f"{name} at n={n}: {error}")
    example = next((m for m in sized if m is not None), None) or manifolds.get(name).examples()[0]
    cells = [
        ", ".join(manifolds.aliases(name)),
        *("–" if m is None else str(m.num_coordinates) for m in sized),
        ", ".join(i.name for i in example.invariants) or "none",
        _exactness(example),
        "yes" if "triton" in backends(example) else "no",
        example.source,
    ]
    return cells, refusals


def backends(manifold: Manifold) -> tuple[str, ...]:
    """Implementations of a manifold's map that this version has."""
    return ("torch",) if manifold.kernel is None else ("torch", "triton")


def run_show(name: str, *, n: int | None, seed: int) -> None:
    """Print what a manifold or a preset is."""
    with bad_input():
        preset = name in HyperConnectionConfig.presets()
        config = HyperConnectionConfig.preset(name, streams=n or 4) if preset else None
        # A name can be both: the preset is the whole system, and its manifold follows.
        try:
            manifold = config.make_manifold() if config else _manifold(name, n)
        except NotAllowedError:
            raise
        except UnknownNameError as error:
            raise unknown_name("manifold or preset", name, {*error.known, *HyperConnectionConfig.presets()}) from None
    try:
        with blaming_plugins(manifold.name):
            facts, sample = _facts(manifold), _sample(manifold, seed)
    except PluginError as error:  # what a built-in raises is a bug of ours, and keeps its traceback
        fail(str(error), BAD_INPUT)
    if config is not None:
        _show_preset(name, config)
    _show_manifold(manifold, facts, sample)


def _manifold(name: str, n: int | None) -> Manifold:
    with blaming_plugins(name):
        return shown_instance(name) if n is None else manifolds.make(name, n=n)


def _show_preset(name: str, config: HyperConnectionConfig) -> None:
    defaults = HyperConnectionConfig(streams=config.streams)
    table = Table(title=f"preset {name}", title_justify="left")
    for column in ("key", "value", "default"):
        table.add_column(column)
    for field in dataclasses.fields(config):
        value, default = getattr(config, field.name), getattr(defaults, field.name)
        style = "bold" if value != default else "dim"
        table.add_row(field.name, Text(repr(value)), Text("" if value == default else repr(default)), style=style)
    output.print(table)


def _show_manifold(manifold: Manifold, facts: list[tuple[str, str]], sample: list[str]) -> None:
    say(f"manifold {manifold.name}: {manifold!r}")
    say(f"{inspect.getdoc(type(manifold)) or '(no docstring)'}\n")
    table = Table(show_header=False)
    for key, value in facts:
        table.add_row(key, Text(value))
    output.print(table)
    for line in sample:
        say(line)


def _facts(manifold: Manifold) -> list[tuple[str, str]]:
    cls = type(manifold)
    options = [f for f in dataclasses.fields(cls) if f.init and f.name != "n"]
    groups = ", ".join(f"{group} {size}" for group, size in manifold.coordinate_groups) or "none"
    return [
        ("aliases", ", ".join(manifolds.aliases(manifold.name)) or "none"),
        ("options", "\n".join(f"{f.name} = {_default(f)}" for f in options) or "none"),
        ("coordinates", f"{manifold.num_coordinates} at n={manifold.n}; groups: {groups}"),
        ("invariants", "\n".join(f"{i.name}: {i.statement}" for i in manifold.invariants) or "none"),
        ("exact", _exactness(manifold)),
        ("contains I", "yes" if manifold.contains_identity else "no"),
        ("norm bound", "none" if manifold.norm_bound is None else f"{manifold.norm_bound:g}"),
        ("tolerance", ", ".join(f"{manifold.tolerance(d):.1e} {str(d)[6:]}" for d in (torch.float32, torch.float64))),
        ("backends", ", ".join(backends(manifold))),
        ("source", manifold.source),
        ("provided by", str(manifolds.provider(cls) or "a class registered in this process")),
    ]


def _sample(manifold: Manifold, seed: int) -> list[str]:
    """A matrix of the manifold, with what was measured on it above."""
    generator = torch.Generator().manual_seed(seed)
    H = manifold(torch.randn(manifold.num_coordinates, generator=generator))
    head = f"H at standard normal coordinates (seed {seed}), violation {float(manifold.violation(H)):.1e}:"
    return [head, *("  " + " ".join(f"{value:8.4f}" for value in row) for row in H.tolist())]


def _exactness(manifold: Manifold) -> str:
    if manifold.exact:
        return "exact"
    held = ", ".join(i.name for i in manifold.exact_invariants)
    return f"iterative (exact: {held})" if held else "iterative"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "(required)"
