"""The laws, one idea a file; ``LAWS`` lists them all."""

from __future__ import annotations

from hyperconn.manifolds.core.errors import unknown_name
from hyperconn.testing.law import Law
from hyperconn.testing.laws.extremes import extremes
from hyperconn.testing.laws.gradients import (
    bounded_gradients,
    finite,
    first_derivative,
    forward_mode,
    gradient_precision,
    second_derivative,
    tangent,
)
from hyperconn.testing.laws.inputs import not_a_number, wrong_inputs
from hyperconn.testing.laws.interface import autocast, batched, compiled, device, dtype, pure, shape
from hyperconn.testing.laws.measures import measures
from hyperconn.testing.laws.members import iterations, membership, norm_bound, perturbation, products
from hyperconn.testing.laws.objects import declarations, tolerance, value_semantics
from hyperconn.testing.laws.points import identity, initial, round_trip
from hyperconn.testing.laws.relations import mixtures, reference, relabelling, symmetries

LAWS: tuple[Law, ...] = (
    shape,
    dtype,
    device,
    batched,
    pure,
    autocast,
    compiled,
    wrong_inputs,
    not_a_number,
    membership,
    extremes,
    iterations,
    products,
    mixtures,
    relabelling,
    norm_bound,
    perturbation,
    measures,
    reference,
    symmetries,
    finite,
    bounded_gradients,
    first_derivative,
    gradient_precision,
    second_derivative,
    forward_mode,
    tangent,
    identity,
    initial,
    round_trip,
    tolerance,
    declarations,
    value_semantics,
)

_BY_NAME = {law.name: law for law in LAWS}


def get_law(name: str) -> Law:
    """The law of that name; raises UnknownNameError with the nearest names."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise unknown_name("law", name, _BY_NAME) from None
