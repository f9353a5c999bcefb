"""What a layer notes in its checkpoint: everything that decides what its numbers mean."""

from __future__ import annotations

import dataclasses
from typing import Any

from hyperconn.spec import LayerSpec

# What two layers of one function may differ in.
_FREE = ("init", "sharpness", "scale_init", "fn_std", "collapse", "backend")
_PARTS = ("manifold", "pre_gate", "post_gate", "predictor")


def signature(spec: LayerSpec) -> dict[str, Any]:
    """What must agree for a checkpoint to mean the same function: everything but initialisation and backend."""
    # Two spellings of one part (an alias, a default written out, an object) are one part.
    own = {field.name: getattr(spec.config, field.name) for field in dataclasses.fields(spec.config)}
    for field in _PARTS:
        part = getattr(spec, field)
        own |= {field: part.name, f"{field}_options": part.chosen_options()}
    own["expand"] = spec.expand.name
    return {key: value for key, value in own.items() if key not in _FREE}
