"""Names to classes: what comes with the library, what was registered in the process, what plugins provide."""

from hyperconn.manifolds.registry.registry import aliases, available, get, make, provider, register, resolve, unregister

__all__ = ["aliases", "available", "get", "make", "provider", "register", "resolve", "unregister"]
