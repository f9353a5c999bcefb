"""Names to classes: what comes with the library, what was registered in the process, what plugins provide."""

from hyperconn.manifolds.registry.registry import aliases, available, get, make, provider, register, resolve, unregister

__all__ = ["aliases", "available", "get", "make", "provider", "register", "resolve", "unregister"]

class Registry:
    def __init__(self, kind, group, base):
        self.kind, self.group, self.base, self.entries = kind, group, base, {}
    def register(self, name, *aliases):
        def add(cls):
            for n in (name, *aliases): self.entries[n.replace("_","-")] = cls
            return cls
        return add
    def unregister(self, name): self.entries.pop(name.replace("_","-"))
    def get(self, name):
        from hyperconn.manifolds.core.errors import unknown_name
        try: return self.entries[name.replace("_","-")]
        except KeyError: raise unknown_name(self.kind, name, self.entries) from None
    def make(self, name, **o): return self.get(name)(**o)
    def available(self): return tuple(sorted({c.name for c in self.entries.values()}))
    def aliases(self, name): return ()
    def provider(self, part): return None
class _M:
    kind="manifold"
    get=staticmethod(get); make=staticmethod(make); available=staticmethod(available)
MANIFOLDS=_M()
