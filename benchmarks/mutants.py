"""Whether the laws notice when a built-in manifold is wrong: break it in every small way, and count who gets caught.

Each mutant of the mathematics is loaded in a process of its own, in place of the module that it was made of, and held
to the laws on the examples of the manifolds that use the module. It needs a system that can fork. Usage, from the root:

    python benchmarks/mutants.py [FILE ...] [--sample N] [--seed S] [--examples N] [--workers W]
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.util
import multiprocessing
import random
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

# Imported here once, so that the process of a mutant starts with them; hyperconn itself must not be.
import geotorch.so  # noqa: F401
import hypothesis  # noqa: F401
import torch

from equivalents import is_equivalent
from mutation import Mutant, mutants

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 120
BAR = 0.95

ALL = ("identity", "permutation", "stiefel", "kronecker", "grassmann", "spectral_sphere", "birkhoff", "unconstrained")
# file -> the manifolds whose mathematics it is
FILES: dict[str, tuple[str, ...]] = {
    "kernels/maps/cayley.py": ("stiefel", "spectral_sphere", "grassmann", "birkhoff"),
    "kernels/maps/layout.py": ("birkhoff",),
    "kernels/maps/rounding.py": ("birkhoff",),
    "kernels/maps/sinkhorn.py": ("birkhoff",),
    "manifolds/core/manifold.py": ALL,
    "manifolds/birkhoff.py": ("birkhoff",),
    "manifolds/core/constants.py": ("permutation", "spectral_sphere"),
    "manifolds/core/factorisation.py": ("kronecker",),
    "manifolds/grassmann.py": ("grassmann",),
    "manifolds/identity.py": ("identity",),
    "manifolds/core/invariants.py": ALL,
    "manifolds/kronecker.py": ("kronecker",),
    "manifolds/permutation.py": ("permutation",),
    "manifolds/core/rotations.py": ("spectral_sphere",),
    "manifolds/spectral_sphere.py": ("spectral_sphere",),
    "manifolds/stiefel.py": ("stiefel", "spectral_sphere", "grassmann"),
    "manifolds/unconstrained.py": ("unconstrained",),
}


# Laws that kill most come first, those that take most of the time come last. A graph means the same as the code, unless
# the code asks.
_SHARP = {"reference", "membership", "round_trip", "first_derivative"}
_SLOW = {"compiled", "device", "products"}


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: the law (or the error) that killed it, or nothing."""

    mutant: Mutant
    killer: str | None


def collect(files: Iterable[str] = FILES) -> list[Mutant]:
    """Every mutant of some files."""
    return [mutant for file in files for mutant in mutants(file, (ROOT / file).read_text(encoding="utf-8"))]


def run(job: tuple[Mutant, int]) -> Outcome:
    """Hold one mutant to the laws, in a process that has not imported hyperconn."""
    mutant, examples = job
    torch.set_num_threads(1)
    sys.meta_path.insert(0, _Changed(mutant))
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        return Outcome(mutant, _killer(mutant, examples))
    except _TooLong:
        return Outcome(mutant, "(hangs)")
    finally:
        signal.alarm(0)


def _killer(mutant: Mutant, examples: int) -> str | None:
    try:
        from hyperconn import manifolds
        from hyperconn.testing import LAWS
        from hyperconn.testing.law import CRASHES
        from hyperconn.testing.runner import judge
    except Exception as error:  # noqa: BLE001 - whatever a broken module raises on import, it is dead
        return f"(import: {type(error).__name__})"
    try:
        instances = [instance for name in FILES[mutant.path] for instance in manifolds.get(name).examples()]
        laws = [law for law in LAWS if law.name != "compiled" or "is_compiling" in mutant.source]
        laws.sort(key=lambda law: (law.name in _SLOW, law.name not in _SHARP))
        for count in (0, examples) if examples else (0,):
            for law in laws:
                for instance in instances:
                    if law.applies(instance):
                        verdict = judge(law, instance, count, seed=0)
                        if not verdict.holds:
                            return f"{law.name} (error)" if verdict.worst.what.endswith("; failures") else law.name
    except CRASHES as error:
        return f"({type(error).__name__} outside of the laws)"
    return None


class _TooLong(BaseException):
    """The time of a mutant is over. No Exception, so that nobody takes it for one of the mutant's."""


def _too_long(signum: int, frame: FrameType | None) -> None:
    raise _TooLong


class _Changed(importlib.abc.MetaPathFinder):
    """Finds the mutant where its module is asked for."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.name = f"hyperconn.{mutant.path.removesuffix('.py').replace('/', '.')}"

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, ROOT / self.mutant.path, loader=_Loader(name, self.mutant))


class _Loader(SourceFileLoader):
    def __init__(self, name: str, mutant: Mutant) -> None:
        super().__init__(name, str(ROOT / mutant.path))
        self.mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.mutant.source, self.mutant.path, "exec")


def outcomes(chosen: list[Mutant], examples: int, workers: int) -> Iterator[Outcome]:
    """Each mutant in a fresh process, forked from one that has imported torch already."""
    with multiprocessing.get_context("fork").Pool(workers, maxtasksperchild=1) as pool:
        yield from pool.imap(run, [(mutant, examples) for mutant in chosen])


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return number


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="break the built-in manifolds and see whether the laws notice")
    parser.add_argument("files", nargs="*", default=list(FILES), help="default: all with mathematics")
    parser.add_argument("--sample", type=_positive, help="only so many mutants, drawn by chance")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--examples", type=int, default=0, help="random cases of each law beyond the fixed grid")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    found = collect(options.files)
    chosen = [mutant for mutant in found if not is_equivalent(mutant)]
    equivalent = len(found) - len(chosen)
    if options.sample is not None and options.sample < len(chosen):
        chosen = random.Random(options.seed).sample(chosen, options.sample)
    killed: dict[str, int] = {}
    survivors: list[Mutant] = []
    for done, outcome in enumerate(outcomes(chosen, options.examples, options.workers), start=1):
        if done % 25 == 0:
            print(f"{done} of {len(chosen)}", file=sys.stderr, flush=True)
        if outcome.killer is None:
            survivors.append(outcome.mutant)
            print(f"survives: {outcome.mutant}", flush=True)
        else:
            killed[outcome.killer] = killed.get(outcome.killer, 0) + 1
    for killer, count in sorted(killed.items(), key=lambda item: -item[1]):
        print(f"{count:5d}  {killer}")
    dead = sum(killed.values())
    share = f", {dead / len(chosen):.1%}" if chosen else ""
    print(f"{dead} of {len(chosen)} mutants killed{share}; {equivalent} more are equivalent")
    return 0 if dead >= BAR * len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
