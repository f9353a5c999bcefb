"""Every law on every instance of a class, in processes, and what to say of the outcome in a table."""

from __future__ import annotations

import math
import multiprocessing
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch

from hyperconn.manifolds.core.map import Map
from hyperconn.testing.all_laws import LAWS
from hyperconn.testing.expressions import expression
from hyperconn.testing.law import again
from hyperconn.testing.runner import Verdict, judge

Task = tuple[Map, tuple[tuple[str, int], ...], int]

HEAD = ("law", "holds", "cases", "worst", "bound", "of")


def tasks(instances: Iterable[Map], examples: int, seed: int) -> list[Task]:
    """An instance, its laws with their shares of the drawn cases, and a seed: what one process does."""
    chosen = list(instances)
    concerned = {law.name: [law.applies(instance) for instance in chosen] for law in LAWS}
    return [
        (instance, tuple((name, -(-examples // sum(which))) for name, which in concerned.items() if which[k]), seed + k)
        for k, instance in enumerate(chosen)
    ]


def examine(task: Task, device: str = "cpu") -> list[Verdict]:
    """The verdicts of a task, broken laws included."""
    subject, shares, seed = task
    named = dict(shares)
    return [judge(law, subject, named[law.name], seed, device=device) for law in LAWS if law.name in named]


def in_processes(
    planned: Sequence[tuple[type, Task]], jobs: int, device: str = "cpu"
) -> Iterator[tuple[tuple[type, Task], list[Verdict]]]:
    """A class with its task, and the verdicts, as they come; a single job needs no process of its own."""
    if jobs == 1:
        yield from ((one, examine(one[1], device)) for one in planned)
        return
    # Fresh interpreters: a fork would inherit threads of torch that do not run in it.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending = {pool.submit(examine, one[1], device): one for one in planned}
        for future in as_completed(pending):
            yield pending[future], future.result()


def by_law(verdicts: Sequence[Verdict]) -> dict[str, list[Verdict]]:
    """The verdicts of each law, the worst first: broken ones, and then those that come nearest to their bounds."""
    found: dict[str, list[Verdict]] = {}
    for verdict in sorted(verdicts, key=lambda v: (v.holds, -v.worst.severity)):
        found.setdefault(verdict.law, []).append(verdict)
    order = [law.name for law in LAWS]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def rows(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, ...]]:
    """A row for each law under ``HEAD``, with the measurement that is worst; an error is written out once."""
    seen: dict[str, str] = {}
    for law, found in by_law(verdicts).items():
        worst = found[0].worst
        value, sign = f"{worst.what}: {worst.value:.3g}", "≥" if worst.lower else "≤"
        first = seen.setdefault(_cause(found[0]), law)
        value = value if first == law else f"as in {first}"
        cases = str(sum(verdict.cases for verdict in found))
        bound = "–" if math.isinf(worst.bound) else f"{sign} {worst.bound:.3g}"
        yield law, "yes" if found[0].holds else "NO", cases, value, bound, expression(found[0].subject)


def failures(verdicts: Sequence[Verdict]) -> list[str]:
    """The first broken law in full, for the others may follow from it; then a line for each other cause."""
    by_cause: dict[str, list[list[Verdict]]] = {}
    for found in by_law(verdicts).values():
        if not found[0].holds:
            by_cause.setdefault(_cause(found[0]), []).append(found)
    said: list[str] = []
    for causes in by_cause.values():
        found, *same = causes
        first, count = found[0], sum(not verdict.holds for verdict in found)
        others = f"; the same in {', '.join(each[0].law for each in same)}" if same else ""
        if said:
            said.append(f"{expression(first.subject)} also breaks {first.law}: {first.worst}{others}")
        else:
            said.append(
                f"{expression(first.subject)} breaks {first.law}: {first.statement}\n{first.worst}; broken on "
                f"{count} of {len(found)} instances{others}\n"
                f"See it again: {again(first.subject, first.law, first.case)}"
            )
    if len(said) > 1:
        said.append("What is broken further down may follow from the first: mend that one, then run the laws again.")
    return said


def _cause(verdict: Verdict) -> str:
    """What is the same for laws that fail alike: the error, whatever sizes it names; otherwise the law."""
    kind, error, _ = verdict.worst.what.partition(": ")
    raised = not verdict.holds and kind.startswith(("error ", "not measured"))
    return re.sub(r"\[[\d, ]*\]|\d+", "#", verdict.worst.what) if raised and error else verdict.law
