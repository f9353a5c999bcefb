"""Names as they are compared: of parts, and of the distributions that provide them."""

from __future__ import annotations

import re


def part_key(name: str) -> str:
    """The name of a part without what does not matter: case, blanks around it, ``_`` or ``-``.

    >>> part_key("MHC_lite")
    'mhc-lite'
    """
    return name.strip().lower().replace("_", "-")


def distribution_key(name: str) -> str:
    """A distribution's name in the normal form of PEP 503.

    >>> distribution_key("My.Extra_Manifolds")
    'my-extra-manifolds'
    """
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
