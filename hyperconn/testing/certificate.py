"""Certificates: what the laws found on a class, as plain data and as the block of a documentation page.

No clock, no machine, no path: versions, seeds, numbers. Two runs with one seed write the same.
"""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import hypothesis
import torch

from hyperconn.manifolds.registry import Registry
from hyperconn.testing.expressions import expression
from hyperconn.testing.measured import Measured
from hyperconn.testing.runner import Verdict
from hyperconn.testing.survey import by_law

BEGIN = "<!-- certificate: `make certificates` writes what stands between these two lines -->"
END = "<!-- end of the certificate -->"


def certificate(cls: type[Any], verdicts: Sequence[Verdict], *, examples: int, seed: int) -> dict[str, Any]:
    """What was found on the instances of a class, as plain data.

    Args:
        cls: the class.
        verdicts: of all its instances.
        examples: drawn cases for each law, over all instances.
        seed: of the first instance; the others count up.
    """
    registry = next(registry for registry in Registry.all if issubclass(cls, registry.base))
    provider = registry.provider(cls)
    return {
        "kind": registry.kind,
        "name": str(getattr(cls, "name", cls.__name__)),
        "class": f"{cls.__module__}:{cls.__qualname__}",
        "provider": None if provider is None else dataclasses.asdict(provider),
        "hyperconn": metadata.version("hyperconn"),
        "torch": torch.__version__.partition("+")[0],
        "python": platform.python_version(),
        "hypothesis": hypothesis.__version__,
        "seed": seed,
        "examples": examples,
        "instances": len({expression(verdict.subject) for verdict in verdicts}),
        "cases": sum(verdict.cases for verdict in verdicts),
        "holds": all(verdict.holds for verdict in verdicts),
        "violations": _violations(verdicts),
        "laws": {law: _law(found) for law, found in by_law(verdicts).items()},
    }


def write_block(pages: Path, found: Mapping[str, Any]) -> None:
    """Put what was found on a class into the page ``NAME.md`` of a folder, if there is one."""
    page = pages / f"{found['name']}.md"
    if page.exists():
        page.write_text(put(page.read_text(encoding="utf-8"), block(found)), encoding="utf-8")


def block(found: Mapping[str, Any]) -> str:
    """A few lines of Markdown between two markers: what was checked, and how exact the map is."""
    verdict = "Every [law](../laws.md) holds" if found["holds"] else "**Not every law holds**"
    lines = [f"{verdict}: {len(found['laws'])} laws, {found['instances']} instances, {found['cases']:,} cases."]
    if found["holds"] and found["violations"]:
        worst = ", ".join(f"{v['value']:.1e} in {dtype}" for dtype, v in found["violations"].items())
        lines.append(f"Worst violation: {worst}.")
    return "\n".join([BEGIN, *lines, END])


def put(page: str, new: str) -> str:
    """The page with its block replaced, or with a block at its end.

    Raises:
        ValueError: there is one marker without the other, or more than one of a kind.
    """
    counts = page.count(BEGIN), page.count(END)
    if counts == (0, 0):
        return f"{page.rstrip()}\n\n{new}\n"
    if counts != (1, 1) or page.index(BEGIN) > page.index(END):
        raise ValueError(f"a page has {BEGIN!r} and {END!r} once each, in this order, or neither; got {counts} of them")
    return page[: page.index(BEGIN)] + new + page[page.index(END) + len(END) :]


def _violations(verdicts: Sequence[Verdict]) -> dict[str, dict[str, Any]]:
    """The worst violation of a promised invariant by dtype, relative to its bound, which grows with n."""
    worst: dict[str, tuple[Measured, Verdict]] = {}
    for verdict in verdicts:
        if verdict.law == "membership":
            for dtype, measured in verdict.worst_by_dtype.items():
                promised = not math.isinf(measured.bound)
                if promised and (dtype not in worst or measured.severity > worst[dtype][0].severity):
                    worst[dtype] = measured, verdict
    return {
        dtype: {"value": _plain(measured.value), "bound": measured.bound, "of": expression(verdict.subject)}
        for dtype, (measured, verdict) in sorted(worst.items())
    }


def _law(found: Sequence[Verdict]) -> dict[str, Any]:
    first = found[0]
    return {
        "holds": first.holds,
        "cases": sum(verdict.cases for verdict in found),
        "worst": f"{first.worst}",
        "of": expression(first.subject),
    }


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN
