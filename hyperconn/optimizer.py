"""Groups of parameters for an optimizer: what learns slower, and what must not decay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from hyperconn.connection import HyperConnection
from hyperconn.manifolds.registry.constrain import OnManifold
from hyperconn.streams import HyperConnectionHead


def parameter_groups(model: nn.Module, *, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """The learned parameters of a model in groups of one learning rate and decay, for any optimizer of torch.

    A predictor says how fast its parameters may learn (``Predictor.learning_rates``): those of the published systems
    slower the wider the streams are, so that a step of Adam moves their logits as it does in the default config.
    Biases, scales and norm weights of the predictors do not decay, nor do coordinates of ``manifolds.constrain`` and
    vectors elsewhere; prediction weights and matrices elsewhere do.

    Args:
        model: a model, or a part of one. Parameters that need no gradient are left out; shared ones come once.
        lr: learning rate of everything that is no predictor's.
        weight_decay: of what decays.

    Returns:
        Groups with ``params``, ``lr`` and ``weight_decay``, those with the most parameters first.

    Raises:
        TypeError, ValueError: no module, or a rate or decay that is not finite and at least 0.

    >>> import torch
    >>> from hyperconn import HyperConnectionConfig
    >>> layer = HyperConnection(nn.Linear(64, 64), 64, HyperConnectionConfig.preset("kromhc"))
    >>> groups = parameter_groups(layer, lr=1e-3, weight_decay=0.1)
    >>> [(sum(p.numel() for p in group["params"]), group["lr"], group["weight_decay"]) for group in groups]
    [(4096, 0.001, 0.1), (3072, 0.00390625, 0.1), (332, 0.001, 0.0), (3, 1e-05, 0.0)]
    >>> optimizer = torch.optim.AdamW(groups)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"parameter_groups takes a module, got {type(model).__name__}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
            raise ValueError(f"parameter_groups: {name} must be a finite number of at least 0, got {value!r}")
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for parameter, rate, decays in _rated(model):
        if parameter.requires_grad and parameter not in seen:
            seen.add(parameter)
            found.setdefault((lr * rate, weight_decay if decays else 0.0), []).append(parameter)
    groups = [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in found.items()]
    return sorted(groups, key=lambda group: -sum(p.numel() for p in group["params"]))


def _rated(model: nn.Module) -> Iterator[tuple[nn.Parameter, float, bool]]:
    """Parameters with the factor of their learning rate, and whether they decay; the first mention of one counts."""
    for module in model.modules():
        if isinstance(module, HyperConnection):
            rates = module.learning_rates()
            for name, parameter in module.predictor_parameters().items():
                yield parameter, rates.get(name, 1.0), name == "fn"
        elif isinstance(module, HyperConnectionHead):
            rates = module.learning_rates()
            for name, parameter in module.named_parameters(recurse=False):
                yield parameter, rates.get(name, 1.0), name == "hc_fn"
        elif isinstance(module, ParametrizationList) and any(isinstance(part, OnManifold) for part in module):
            for parameter in module.parameters():
                yield parameter, 1.0, False
    for parameter in model.parameters():
        yield parameter, 1.0, parameter.dim() >= 2
