"""``hyperconn list`` and ``hyperconn show``: manifolds, gates, predictors and presets."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from itertools import takewhile
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from rich.text import Text

from hyperconn import HyperConnectionConfig
from hyperconn.backends import triton_missing
from hyperconn.cli.blame import blaming_plugins, shown_instance
from hyperconn.cli.console import BAD_INPUT, bad_input, fail, output, say
from hyperconn.gates import GATES, Gate
from hyperconn.lab.measure import kind_of
from hyperconn.manifolds import Manifold, PluginError
from hyperconn.manifolds.core.errors import NotAllowedError, UnknownNameError, unknown_name
from hyperconn.manifolds.registry import MANIFOLDS, Registry, plugins
from hyperconn.predictors import PREDICTORS, Layout, Predictor


def list_() -> None:
    """Every manifold, gate, predictor and preset by name."""
    broken = [
        *_print_parts(MANIFOLDS, ("P(4)", "P(8)", "exact", "fused", "H is", "source"), _manifold_cells),
        *_print_parts(GATES, ("P(4)", "weights", "fused", "what it is"), _gate_cells),
        *_print_parts(PREDICTORS, ("options", "what it is"), _predictor_cells),
    ]
    keys = ("manifold", "pre_gate", "post_gate", "predictor")
    presets = _table("preset", *keys)
    for name in HyperConnectionConfig.presets():
        config = HyperConnectionConfig.preset(name)
        presets.add_row(name, *(getattr(config, key) for key in keys))
    output.print(presets)
    shadowed = [
        f"{plugin} is not used: the name belongs to {taken.__module__}.{taken.__qualname__}"
        for registry in Registry.all
        for plugin in plugins.installed(registry.kind)
        if (taken := registry.shadow(plugin)) is not None
    ]
    for reason in (*broken, *shadowed):
        say(f"– {reason}")
    missing = triton_missing()
    if missing:
        say(f"fused: to look at kernels takes triton; {missing}")
    say("P(n): coordinates of a token at n streams. More: hyperconn show NAME")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column == columns[0])
    return table


def _print_parts(
    registry: Registry[Any], columns: tuple[str, ...], cells: Callable[[Any], tuple[str, ...]]
) -> list[str]:
    """Print a line for every part; returns what is to be said of the broken ones."""
    table, broken = _table(registry.kind, *columns), []
    for name in registry.available():
        try:
            with blaming_plugins(name, registry):
                row = cells(shown_instance(name, registry))
        except PluginError as error:
            row = ("broken",)
            broken.append(f"{name} is broken: {error}")
        table.add_row(name, *map(Text, row))
    output.print(table, "", sep="\n")
    return broken


def _manifold_cells(manifold: Manifold) -> tuple[str, ...]:
    exact = "yes" if manifold.exact else "in part" if manifold.exact_invariants else "no"
    sizes = (_size(type(manifold), n) for n in (4, 8))
    return *sizes, exact, _fused(manifold), kind_of(manifold), manifold.source


def _size(cls: type[Manifold], n: int) -> str:
    try:
        return str(cls(n=n).num_coordinates)
    except (ValueError, TypeError):
        return "–"


def _gate_cells(gate: Gate) -> tuple[str, ...]:
    return str(gate.num_coordinates), _roles(gate), _fused(gate), _summary(gate)


def _predictor_cells(predictor: Predictor) -> tuple[str, ...]:
    return ", ".join(field.name for field in dataclasses.fields(predictor)) or "none", _summary(predictor)


def _roles(gate: Gate) -> str:
    return ", ".join(word for word, is_one in (("read", gate.reads), ("write", gate.writes)) if is_one)


def _fused(part: Any) -> str:
    if triton_missing():
        return "?"
    return "no" if part.kernel is None else "yes"


def _doc(part: object) -> str:
    """The docstring as plain text: what it says, without its marks and without the examples for Python."""
    lines = (inspect.getdoc(type(part)) or "(no docstring)").splitlines()
    said = "\n".join(takewhile(lambda line: not line.startswith(">>> "), lines)).strip()
    return re.sub(r"``|\*\*|:\w+:(?=`)|(?<=\w)`_+|`", "", said)


def _summary(part: object) -> str:
    return _doc(part).partition("\n")[0]


def show(
    name: Annotated[str, typer.Argument(help="A manifold, gate, predictor, an alias or a preset.")],
    n: Annotated[
        int | None, typer.Option(help="Streams. Default: 4, or the first example of what refuses that.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the sampled matrix.", min=0, max=2**63 - 1)] = 0,
) -> None:
    """One manifold, gate, predictor or preset: what it is, its options, and a sample."""
    with bad_input():
        # A name can be both: the preset is the whole system, and its manifold follows.
        preset = name in HyperConnectionConfig.presets()
        config = HyperConnectionConfig.preset(name, streams=n) if preset else None
        registry, part = (MANIFOLDS, config.make_manifold()) if config else _find(name, n)
    try:
        with blaming_plugins(part.name, registry):
            facts, sample = _facts(registry, part), _sample(part, seed)
    except PluginError as error:  # what a built-in raises is a bug of ours, and keeps its traceback
        fail(str(error), BAD_INPUT)
    if config is not None:
        _show_preset(name, config)
    say(f"{registry.kind} {part.name}: {part!r}")
    say(f"{_doc(part)}\n")
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key, Text(value))
    output.print(table)
    for line in sample:
        say(line)


def _find(name: str, n: int | None) -> tuple[Registry[Any], Any]:
    known = set(HyperConnectionConfig.presets())
    for registry in (MANIFOLDS, GATES, PREDICTORS):
        try:
            registry.get(name)
        except NotAllowedError:
            raise
        except UnknownNameError as error:
            known |= set(error.known)
            continue
        with blaming_plugins(name, registry):
            sized = n is not None and registry is not PREDICTORS
            return registry, registry.make(name, n=n) if sized else shown_instance(name, registry)
    raise unknown_name("manifold, gate, predictor or preset", name, known)


def _show_preset(name: str, config: HyperConnectionConfig) -> None:
    say(f"preset {name}: of the default config, it changes")
    default = HyperConnectionConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != getattr(default, field.name):
            say(f"  {field.name} = {value!r}")
    say("")


def _facts(registry: Registry[Any], part: Any) -> dict[str, str]:
    options = [field.name for field in dataclasses.fields(part) if field.init and field.name != "n"]
    facts = {
        "aliases": ", ".join(registry.aliases(part.name)) or "none",
        "options": "\n".join(f"{name} = {getattr(part, name)!r}" for name in options) or "none",
    }
    if isinstance(part, Manifold):
        groups = ", ".join(f"{group} {size}" for group, size in part.coordinate_groups) or "none"
        held = ", ".join(invariant.name for invariant in part.exact_invariants) or "none"
        tolerances = (f"{part.tolerance(d):.1e} {str(d)[6:]}" for d in (torch.float32, torch.float64))
        facts |= {
            "coordinates": f"{part.num_coordinates} at n={part.n}; groups: {groups}",
            "invariants": "\n".join(f"{i.name}: {i.statement}" for i in part.invariants) or "none",
            "exact": "yes" if part.exact else f"of these: {held}",
            "contains I": "yes" if part.contains_identity else "no",
            "norm bound": "none" if part.norm_bound is None else f"{part.norm_bound:g}",
            "tolerance": ", ".join(tolerances),
            "fused": _fused(part),
        }
    elif isinstance(part, Gate):
        facts |= {
            "logits": f"{part.num_coordinates} at n={part.n}",
            "weights": f"shape {list(part.value_shape)}; can {_roles(part)}",
            "fused": _fused(part),
        }
    elif isinstance(part, Predictor):
        layout = Layout(n=4, channels=64, sizes=(4, 4, 16))
        shapes = ", ".join(f"{key} {list(shape)}" for key, shape in part.parameters(layout).items())
        facts["parameters"] = f"{shapes} at n=4, 64 channels, {layout.total} logits"
    provider = registry.provider(type(part)) or "a class registered in this process"
    return facts | {"source": part.source or "–", "provided by": str(provider)}


def _sample(part: Any, seed: int) -> list[str]:
    """What a manifold or a gate makes of standard normal numbers."""
    if isinstance(part, Predictor):
        return []
    value = part(torch.randn(part.num_coordinates, generator=torch.Generator().manual_seed(seed)))
    made = "weights" if isinstance(part, Gate) else f"H of violation {float(part.violation(value)):.1e}"
    rows = value.reshape(-1, value.shape[-1]).tolist()
    lines = ["  " + " ".join(f"{number:8.4f}" for number in row) for row in rows]
    return [f"{made} at standard normal coordinates (seed {seed}):", *lines]
