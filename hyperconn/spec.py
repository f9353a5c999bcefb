"""What a layer is, as a frozen value: its parts and its sizes, without a tensor.

Checks, coefficients and the streams on their way through a layer work on this value and on tensors. The module that
holds the parameters stands above all of them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from hyperconn.config import HyperConnectionConfig
from hyperconn.gates import Gate
from hyperconn.manifolds import Manifold
from hyperconn.predictors import Layout, Predictor
from hyperconn.streams import Expand

# What two layers of one function may differ in.
_NO_PART_OF_THE_FUNCTION = ("init", "sharpness", "scale_init", "fn_std", "collapse", "channel_dim", "backend")


@dataclass(frozen=True)
class LayerSpec:
    """The parts and sizes of one hyper-connection.

    Attributes:
        config: what it was made from.
        dim: channels that the branch sees.
        layer_index: position in the stack of sublayers.
        manifold, pre_gate, post_gate, predictor, expand: the parts that the config names or holds.
        layout: number of streams, their channels, and the number of logits of each group.
    """

    config: HyperConnectionConfig
    dim: int
    layer_index: int
    manifold: Manifold
    pre_gate: Gate
    post_gate: Gate
    predictor: Predictor
    expand: Expand
    layout: Layout

    @classmethod
    def of(cls, config: HyperConnectionConfig, dim: int, layer_index: int = 0) -> LayerSpec:
        """The layer that a config describes, for a branch of ``dim`` channels.

        Raises:
            ValueError, TypeError: a dim or layer_index that cannot be, or a channel-wise gate for other channels.
        """
        if not isinstance(config, HyperConnectionConfig):
            raise TypeError(
                f"HyperConnection: config must be a HyperConnectionConfig, got {config!r}; "
                "make one with HyperConnectionConfig.from_dict or HyperConnectionConfig.preset"
            )
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"HyperConnection: dim must be a positive int, the channels of the branch; got {dim!r}")
        if isinstance(layer_index, bool) or not isinstance(layer_index, int):
            raise TypeError(f"HyperConnection: layer_index must be an int, got {layer_index!r}")
        manifold, expand = config.make_manifold(), config.make_expand()
        pre_gate, post_gate, predictor = config.make_pre_gate(), config.make_post_gate(), config.make_predictor()
        channels = expand.stream_dim(dim, config.streams)
        n = config.streams
        if pre_gate.value_shape not in ((n,), (n, n) if config.fractions else (n, channels)):
            raise ValueError(
                f"HyperConnection: pre_gate {pre_gate!r} gives weights of shape {list(pre_gate.value_shape)}, the "
                f"streams are {[n, channels]}; make a gate of that shape"
            )
        layout = Layout(config.streams, channels, config.group_sizes(), config.norm_eps, config.norm_eps_mode)
        return cls(config, dim, layer_index, manifold, pre_gate, post_gate, predictor, expand, layout)

    @property
    def stream_shape(self) -> tuple[int, int]:
        """Shape of a token's streams, ``(n, stream_dim)``."""
        return self.layout.n, self.layout.channels

    @property
    def parts(self) -> tuple[Any, ...]:
        """What registries may know: manifold, gates, predictor."""
        return self.manifold, self.pre_gate, self.post_gate, self.predictor

    @property
    def one_weight_a_stream(self) -> bool:
        """Whether the read weights are one number a stream, which is what the passes over the streams take."""
        return self.pre_gate.value_shape == (self.layout.n,)

    def signature(self) -> dict[str, Any]:
        """What must agree for a checkpoint to mean the same function: everything but initialisation and backend."""
        # Two spellings of one part (an alias, a default written out, an object) are one part.
        own = {field.name: getattr(self.config, field.name) for field in dataclasses.fields(self.config)}
        for field, part in zip(("manifold", "pre_gate", "post_gate", "predictor"), self.parts, strict=True):
            own |= {field: part.name, f"{field}_options": part.chosen_options()}
        own["expand"] = self.expand.name
        return {key: value for key, value in own.items() if key not in _NO_PART_OF_THE_FUNCTION}

    def summary(self) -> str:
        """The layer in a few words, for messages."""
        return f"HyperConnection({self.manifold.name}, streams={self.layout.n}, dim={self.dim})"
