"""The maps of the constraints, in plain torch."""
