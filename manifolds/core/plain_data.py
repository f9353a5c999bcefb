"""How much plain data a config may hold: more than any use needs, too little to stall or exhaust a machine."""

from __future__ import annotations

from collections.abc import Mapping

# Tables and lists inside each other. Python recurses into data that is compared, hashed or shown.
MAX_DEPTH = 32
# Values, keys and characters together; the largest published config has some hundred.
MAX_SIZE = 100_000
# Any such int converts to a float and to text; what an option takes is the option's business.
_MAX_BITS = 128


def require_small(data: object, what: str) -> None:
    """Refuse tables and lists that are too deep or too large, hold themselves, or hold huge ints.

    Takes time in proportion to MAX_SIZE at most, whatever the data.

    Raises:
        ValueError: with the limit; ``what`` begins the message.
    """
    size = 0
    todo: list[tuple[object, int]] = [(data, 0)]
    while todo:
        item, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"{what} is nested more than {MAX_DEPTH} tables and lists deep, or holds itself")
        size += 1 + (len(item) if isinstance(item, (Mapping, list, tuple, str)) else 0)
        if size > MAX_SIZE:
            raise ValueError(f"{what} has more than {MAX_SIZE} values and characters; a config is a short table")
        if isinstance(item, Mapping):
            todo += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, (list, tuple)):
            todo += [(part, depth + 1) for part in item]
        elif isinstance(item, int) and item.bit_length() > _MAX_BITS:
            raise ValueError(f"{what} holds an int of {item.bit_length()} bits, at most {_MAX_BITS} are taken")

from hyperconn.options import Options  # STUB
import dataclasses as _d
def chosen_options(part):
    def plain(v):
        if hasattr(v, "chosen_options") or hasattr(v,"num_coordinates"): return {"manifold": v.name, "n": v.n, **chosen_options(v)}
        return [plain(i) for i in v] if isinstance(v, tuple) else v
    return {f.name: plain(getattr(part,f.name)) for f in _d.fields(part) if f.init and f.name!="n" and getattr(part,f.name)!=f.default}
