"""Every law there is, by name."""

from __future__ import annotations

from hyperconn.manifolds.core.errors import unknown_name
from hyperconn.testing import gradient_laws, interface_laws, member_laws, part_laws, point_laws
from hyperconn.testing.law import Law

_MODULES = (interface_laws, member_laws, point_laws, gradient_laws, part_laws)

LAWS: tuple[Law, ...] = tuple(law for module in _MODULES for law in vars(module).values() if isinstance(law, Law))

_BY_NAME = {law.name: law for law in LAWS}


def get_law(name: str) -> Law:
    """The law of that name; raises UnknownNameError with the nearest names."""
    try:
        return _BY_NAME[name]
    except KeyError:
        raise unknown_name("law", name, _BY_NAME) from None
