"""What a layer notes in its checkpoint: everything that decides what its numbers mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hyperconn.config import HyperConnectionConfig
from hyperconn.manifolds import Manifold
from hyperconn.options import chosen_options

# What two layers of one function may differ in.
_FREE = ("init", "sharpness", "scale_init", "fn_std", "collapse", "backend")


def signature(config: HyperConnectionConfig, manifold: Manifold) -> dict[str, Any]:
    """What must agree for a checkpoint to mean the same function: everything but initialisation and backend."""
    # Two spellings of one manifold (an alias, a default written out) are one manifold.
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    own |= {"manifold": manifold.name, "manifold_options": chosen_options(manifold)}
    return {key: value for key, value in own.items() if key not in _FREE}


def differences(saved: object, own: dict[str, Any]) -> str | None:
    """How a saved signature differs from a layer's own, in words; None if it does not, or if nothing was saved."""
    if saved is None or saved == own:
        return None
    if not isinstance(saved, Mapping):
        return f"the checkpoint holds something else than a hyper-connection here: {saved!r}"
    changed = [key for key in own if saved.get(key) != own[key]]
    differing = ", ".join(f"{key}={saved.get(key)!r} where this layer has {own[key]!r}" for key in changed)
    kind = "the checkpoint holds another kind of hyper-connection"
    return f"{kind}, {differing}; build the model with the checkpoint's config"
