"""Sets of n×n matrices, each reached by a smooth map from free coordinates, and the registry of their names."""

from hyperconn.manifolds.birkhoff import Birkhoff
from hyperconn.manifolds.core import invariants
from hyperconn.manifolds.core.class_check import API_VERSION
from hyperconn.manifolds.core.errors import PartError, PluginError, UnknownNameError
from hyperconn.manifolds.core.invariants import Invariant
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.core.symmetries import Symmetry
from hyperconn.manifolds.grassmann import Grassmann
from hyperconn.manifolds.identity import Identity
from hyperconn.manifolds.kronecker import Kronecker
from hyperconn.manifolds.permutation import Permutation
from hyperconn.manifolds.registry import aliases, available, get, make, provider, register, resolve, unregister
from hyperconn.manifolds.registry.constrain import constrain
from hyperconn.manifolds.registry.plugins import Provider
from hyperconn.manifolds.registry.provenance import PluginVersionWarning
from hyperconn.manifolds.spectral_sphere import SpectralSphere
from hyperconn.manifolds.stiefel import Stiefel
from hyperconn.manifolds.unconstrained import Unconstrained

__all__ = [
    "API_VERSION",
    "Birkhoff",
    "Grassmann",
    "Identity",
    "Invariant",
    "Kronecker",
    "Manifold",
    "PartError",
    "Permutation",
    "PluginError",
    "PluginVersionWarning",
    "Provider",
    "SpectralSphere",
    "Stiefel",
    "Symmetry",
    "Unconstrained",
    "UnknownNameError",
    "aliases",
    "available",
    "constrain",
    "get",
    "invariants",
    "make",
    "provider",
    "register",
    "resolve",
    "unregister",
]
