"""The maps of the constraints and of the gates, as Triton device functions."""
