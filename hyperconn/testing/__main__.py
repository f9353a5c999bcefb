"""``python -m hyperconn.testing``: every law on everything that is registered, as a table and as certificates."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hyperconn.manifolds import PluginError
from hyperconn.manifolds.registry import Registry
from hyperconn.testing.certificate import block, certificate, dumps, put
from hyperconn.testing.expressions import expression
from hyperconn.testing.runner import Verdict
from hyperconn.testing.subjects import KINDS, ContractError, choose, named
from hyperconn.testing.survey import HEAD, failures, in_processes, rows, tasks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the laws and print what they found; returns the exit status, 1 where a law is broken."""
    options = _parser().parse_args(arguments)
    started = time.perf_counter()
    planned = [
        (cls, task)
        for cls, instances in _choose_all(options.names, options.n).items()
        for task in tasks(instances, options.examples, options.seed)
    ]
    results: dict[int, list[Verdict]] = {}
    for done, (k, verdicts) in enumerate(in_processes([task for _, task in planned], options.jobs, options.device), 1):
        results[k] = verdicts
        print(f"[{done}/{len(planned)}] {expression(planned[k][1][0])}", file=sys.stderr, flush=True)
    by_class: dict[type[Any], list[Verdict]] = {}
    for k, (cls, _) in enumerate(planned):
        by_class.setdefault(cls, []).extend(results[k])
    verdicts = [verdict for found in by_class.values() for verdict in found]
    print(*("  ".join(row) for row in [HEAD, *rows(verdicts)]), *failures(verdicts), sep="\n")
    broken, minutes = sum(not verdict.holds for verdict in verdicts), (time.perf_counter() - started) / 60
    cases = sum(verdict.cases for verdict in verdicts)
    print(f"{cases} cases on {len(planned)} instances in {minutes:.1f} minutes: {broken or 'no'} laws broken")
    if options.certificates is not None:
        for cls, found in by_class.items():
            _certify(cls, found, options)
    return 1 if broken else 0


def _choose_all(names: Sequence[str], sizes: Sequence[int] | None) -> dict[type[Any], tuple[Any, ...]]:
    """The instances by class. Without names, plugins that give none are remarked upon and left out."""
    if names:
        return {cls: choose(cls, sizes) for cls in map(named, names)}
    chosen = {}
    for registry in KINDS:
        for name in registry.available():
            try:
                cls = registry.get(name)
                chosen[cls] = choose(cls, sizes)
            except (PluginError, ContractError) as error:
                if _is_built_in(registry, name):
                    raise
                print(f"{name} is left out: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return chosen


def _is_built_in(registry: Registry[Any], name: str) -> bool:
    try:
        return registry.get(name).__module__.startswith("hyperconn.")
    except PluginError:
        return False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hyperconn.testing", description="Check every law on the examples of everything registered."
    )
    add = parser.add_argument
    add("names", nargs="*", help="registered names; default: all manifolds, gates and predictors")
    add("--n", type=int, nargs="+", help="streams: these sizes with default options, and the examples of these sizes")
    add("--examples", type=int, default=2000, help="drawn cases for each law and name, shared out among its instances")
    add("--seed", type=int, default=0, help="equal seeds check equal cases (default: 0)")
    add("--jobs", type=int, default=2, help="processes, one core each (default: 2)")
    add("--device", default="cpu", help="where the tensors live (default: cpu)")
    add("--certificates", type=Path, metavar="FOLDER", help="write FOLDER/NAME.json, the certificate of each")
    add(
        "--pages",
        type=Path,
        metavar="FOLDER",
        help="with --certificates: put it into FOLDER/NAME.md if it is there",
    )
    return parser


def _certify(cls: type[Any], verdicts: Sequence[Verdict], options: argparse.Namespace) -> None:
    found = certificate(cls, verdicts, examples=options.examples, seed=options.seed)
    options.certificates.mkdir(parents=True, exist_ok=True)
    path = options.certificates / f"{cls.name}.json"
    path.write_text(dumps(found), encoding="utf-8")
    page = None if options.pages is None else options.pages / f"{cls.name}.md"
    if page is not None and page.exists():
        source = Path(os.path.relpath(path, options.pages)).as_posix()
        page.write_text(put(page.read_text(encoding="utf-8"), block(found, source)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
