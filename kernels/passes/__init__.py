"""The passes over the streams, in plain torch."""
