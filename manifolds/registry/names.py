"""Names as they are compared: of manifolds, and of the distributions that provide them."""

from __future__ import annotations

import re


def manifold_key(name: str) -> str:
    """A manifold's name without what does not matter: case, blanks around it, ``_`` or ``-``.

    >>> manifold_key("MHC_lite")
    'mhc-lite'
    """
    return name.strip().lower().replace("_", "-")


def distribution_key(name: str) -> str:
    """A distribution's name in the normal form of PEP 503.

    >>> distribution_key("My.Extra_Manifolds")
    'my-extra-manifolds'
    """
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
