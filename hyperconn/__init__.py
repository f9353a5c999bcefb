"""Hyper-connections with any residual-matrix constraint, chosen by name.

>>> import hyperconn
>>> hyperconn.manifolds.make("birkhoff", n=4, finish="round").exact
True
"""

from hyperconn import diagnostics, gates, manifolds, predictors
from hyperconn.backends import BackendUnavailableError
from hyperconn.coefficients import Coefficients
from hyperconn.config import HyperConnectionConfig
from hyperconn.connection import HyperConnection
from hyperconn.manifolds import UnknownNameError
from hyperconn.optimizer import parameter_groups
from hyperconn.stack import HyperConnectionStack
from hyperconn.stream_state import Handover
from hyperconn.streams import DelayedStreams, HyperConnectionHead, collapse_streams, expand_streams

__version__ = "0.2.0"

__all__ = [
    "BackendUnavailableError",
    "Coefficients",
    "DelayedStreams",
    "Handover",
    "HyperConnection",
    "HyperConnectionConfig",
    "HyperConnectionHead",
    "HyperConnectionStack",
    "UnknownNameError",
    "collapse_streams",
    "diagnostics",
    "expand_streams",
    "gates",
    "manifolds",
    "parameter_groups",
    "predictors",
]
