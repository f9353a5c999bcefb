"""Symmetries of a map: changes of the coordinates whose effect on the matrix is known without computing it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Action = Callable[[Tensor, Tensor], Tensor]


def unchanged(H: Tensor, draw: Tensor) -> Tensor:
    """The action that does nothing."""
    return H


@dataclass(frozen=True)
class Symmetry:
    """``m(coordinates(theta)) = matrices(m(theta))``, the ``statement`` as a formula; by default H does not change.

    Actions take ``theta [..., P]`` or ``H [..., n, n]`` and ``draw [2, n]``, standard normal numbers that choose one
    symmetry of a family, such as the constants that are added or (by ``relabelling``) the permutation.
    """

    name: str
    statement: str
    coordinates: Action
    matrices: Action = unchanged


def relabelling(draw: Tensor) -> Tensor:
    """``[n]`` the permutation that a draw stands for."""
    return draw[0].argsort()


def relabelled(H: Tensor, draw: Tensor) -> Tensor:
    """``P H Pᵀ``: the streams of ``H [..., n, n]`` in another order."""
    order = relabelling(draw)
    return H[..., order, :][..., order]


def transposed(H: Tensor, draw: Tensor) -> Tensor:
    """``Hᵀ``."""
    return H.mT


def on_entries(action: Action) -> Action:
    """The action on matrices as one on coordinates that are their entries, row by row."""

    def act(theta: Tensor, draw: Tensor) -> Tensor:
        n = draw.shape[-1]
        return action(theta.unflatten(-1, (n, n)), draw).flatten(-2)

    return act
