"""Who takes part in a comparison: names and tables become configs of connections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hyperconn.config import HyperConnectionConfig
from hyperconn.lab.settings import PLAIN, LabConfig, hyper_connection
from hyperconn.manifolds import available
from hyperconn.manifolds.core.errors import unknown_name

DEFAULT_CONTESTANTS = ("plain", "hc", "mhc", "mhc-lite", "kromhc", "jpmhc", "shc")


@dataclass(frozen=True)
class Contestant:
    """A residual connection that takes part in a comparison.

    Attributes:
        name: what tables call it.
        connection: None for the plain residual.
    """

    name: str
    connection: HyperConnectionConfig | None


def contestants(config: LabConfig, names: Sequence[str] = ()) -> tuple[Contestant, ...]:
    """Who takes part.

    Args:
        config: the file; its ``compare.overrides`` go to every preset and manifold that is only named.
        names: these, and not those of the file; a contestant with keys of its own in the file can be named too. Without
            either, ``DEFAULT_CONTESTANTS`` and the file's section.

    Raises:
        UnknownNameError: no such preset or manifold, or an override that is no key.
        ValueError: a name twice, or ``config`` without a [hyper_connection] section.
    """
    own = {entry["name"]: dict(entry) for entry in config.compare.contestants}
    chosen = [*names] or [entry["name"] for entry in config.compare.contestants]
    if not chosen:
        chosen = [*DEFAULT_CONTESTANTS, *(["config"] if config.hyper_connection is not None else [])]
    repeated = sorted({name for name in chosen if chosen.count(name) > 1})
    if repeated:
        raise ValueError(f"a contestant takes part once, got {', '.join(repeated)} twice; give them names of their own")
    return tuple(Contestant(name, _connection(own.get(name, {"name": name}), config)) for name in chosen)


def _connection(entry: dict[str, Any], config: LabConfig) -> HyperConnectionConfig | None:
    name, keys = entry["name"], {key: value for key, value in entry.items() if key != "name"}
    overrides = config.compare.overrides
    if name == PLAIN:
        if keys not in ({}, {"preset": PLAIN}):
            raise ValueError(f"the contestant {PLAIN!r} is the plain residual and takes no keys, got {', '.join(keys)}")
        return None
    if keys:
        return hyper_connection(keys)
    if name == "config":
        if config.hyper_connection is None:
            raise ValueError("the contestant 'config' is the [hyper_connection] section, and this config has none")
        return config.hyper_connection
    if name in HyperConnectionConfig.presets():
        return HyperConnectionConfig.preset(name, **overrides)
    if name in available():
        return HyperConnectionConfig.from_dict({**overrides, "manifold": name})
    described = (entry["name"] for entry in config.compare.contestants)
    known = {PLAIN, "config", *HyperConnectionConfig.presets(), *available(), *described}
    raise unknown_name("contestant", name, known)


def described(contestant: Contestant) -> tuple[str, dict[str, Any]]:
    """What a connection is a variant of, and the keys in which it differs from that.

    The preset of its name, or else what is nearest: the default config with its manifold, or a preset.
    """
    connection = contestant.connection
    if connection is None:
        return "plain", {}
    presets = [name for name in HyperConnectionConfig.presets() if name != PLAIN]
    own = connection.to_dict()
    manifold = {key: own[key] for key in ("manifold", "manifold_options")}
    bases: dict[str, HyperConnectionConfig] = {}
    if contestant.name in presets:
        bases[f"preset {contestant.name}"] = HyperConnectionConfig.preset(contestant.name)
    else:
        bases["defaults"] = HyperConnectionConfig.from_dict(manifold | {"streams": connection.streams})
        bases |= {f"preset {name}": HyperConnectionConfig.preset(name) for name in presets}
    best = min(bases, key=lambda name: len(_differing(own, bases[name].to_dict())))
    return best, _differing(own, bases[best].to_dict())


def _differing(own: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in own.items() if key != "plugins" and value != base.get(key)}
