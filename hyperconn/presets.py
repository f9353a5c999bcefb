"""The published systems, as fields of a config. ``docs/presets.md`` says where each value comes from."""

from __future__ import annotations

from typing import Any

# Coefficients predicted from all streams at once.
_MHC_FAMILY: dict[str, Any] = {"predictor": "flat", "pre_gate": "sigmoid", "post_gate": "double_sigmoid"}
# The start of the released code of mHC-lite, KromHC and sHC.
_RELEASED: dict[str, Any] = {"init": "published", "sharpness": 8.0, "collapse": "sum"}
# The norm of their released code has a weight, which their tables of parameters count.
_WEIGHTED: dict[str, Any] = {"predictor_options": {"norm_weight": "weight"}}
_HC: dict[str, Any] = {
    "manifold": "unconstrained",
    "predictor": "per_stream",
    "pre_gate": "linear",
    "post_gate": "linear",
    "orientation": "transposed",
    "norm_eps": 1e-5,
}
# As in Hugging Face transformers: applies the transpose of a rows-first Sinkhorn with eps.
_DEEPSEEK: dict[str, Any] = {
    **_MHC_FAMILY,
    "manifold": "birkhoff",
    "manifold_options": {"first_axis": "rows", "eps": 1e-6, "eps_mode": "softmax"},
    "pre_eps": 1e-6,
    "orientation": "transposed",
}

PRESETS: dict[str, dict[str, Any]] = {
    # h + F(h) through the same layer, without a parameter: what all others are compared with
    "plain": {"streams": 1, "manifold": "identity", "predictor": "static", "pre_gate": "mean", "post_gate": "ones"},
    # HC, arXiv 2409.19606; its norm has no weight
    "hc": {**_HC, "collapse": "sum"},
    # Frac-Connections, arXiv 2503.14125; its norm has a weight
    "fc": {**_HC, **_WEIGHTED, "pre_gate": "matrix", "expand": "fractions", "collapse": "concat"},
    # mHC, arXiv 2512.24880
    "mhc": {**_MHC_FAMILY, **_RELEASED, "manifold": "birkhoff"},
    # mHC-lite, arXiv 2601.05732
    "mhc-lite": {**_MHC_FAMILY, **_RELEASED, **_WEIGHTED, "manifold": "permutation"},
    # KromHC, arXiv 2601.21579
    "kromhc": {**_MHC_FAMILY, **_RELEASED, **_WEIGHTED, "manifold": "kronecker"},
    # JPmHC, arXiv 2602.18308, with the exact Cayley transform in place of its iteration. It predicts a whole matrix for
    # each of pre, post and H, from a LayerNorm and without a bias. Streams that start alike would stay alike without
    # one, so the prediction weights start at random; the paper does not say how.
    "jpmhc": {
        "manifold": "stiefel",
        "manifold_options": {"generator": "full"},
        "predictor": "flat",
        "predictor_options": {"norm": "layer", "norm_weight": "affine", "bias": False, "scale": False},
        "pre_gate": "row_softmax",
        "post_gate": "column_softmax",
        "fn_std": 0.02,
        "collapse": "mean",
    },
    # sHC, arXiv 2603.20896; sharpness 8 is its s = 4
    "shc": {**_MHC_FAMILY, **_RELEASED, "manifold": "spectral_sphere"},
    # mHC without mixing; the hy_v4 model of Hugging Face transformers is of this kind
    "ihc": {**_MHC_FAMILY, "manifold": "identity", "collapse": "head"},
    # DeepSeek-V4
    "deepseek-v4": {**_DEEPSEEK, "collapse": "head"},
    # DeepSeek-V4.1: each sublayer reads with the weights of the one before, so that one pass over the streams suffices
    "deepseek-v4.1": {**_DEEPSEEK, "read": "delayed", "collapse": "pre"},
}
