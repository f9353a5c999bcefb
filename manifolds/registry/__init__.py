"""Names to classes: what comes with the library, what was registered in the process, what plugins provide."""

from hyperconn.manifolds.core.instance_check import require_manifold
from hyperconn.manifolds.core.manifold import Manifold
from hyperconn.manifolds.registry.registry import Registry as Registry

MANIFOLDS: Registry[Manifold] = Registry("manifold", Manifold, require_manifold)
register, unregister, get, make = MANIFOLDS.register, MANIFOLDS.unregister, MANIFOLDS.get, MANIFOLDS.make
available, aliases, resolve, provider = MANIFOLDS.available, MANIFOLDS.aliases, MANIFOLDS.resolve, MANIFOLDS.provider
