"""The passes over the streams, as Triton kernels."""
