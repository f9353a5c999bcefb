"""Mutants that compute the same as the source, to rounding, each with the reason: nobody could tell them apart.

What only might be told apart by a case that the laws do not try is no such mutant, and has to count as a survivor.
"""

from __future__ import annotations

from typing import NamedTuple

from mutation import Mutant


class Change(NamedTuple):
    """Mutants of one function whose line comes from replacing the first ``old`` in it by ``new``."""

    path: str
    function: str
    old: str
    new: str

    def made(self, mutant: Mutant) -> bool:
        """Whether this is the change that made the mutant."""
        return (
            (mutant.path, mutant.function) == (self.path, self.function)
            and self.old in mutant.before
            and mutant.after == mutant.before.replace(self.old, self.new, 1)
        )


def is_equivalent(mutant: Mutant) -> bool:
    """Whether the mutant is listed here."""
    return any(change.made(mutant) for changes in EQUIVALENTS.values() for change in changes)


def _changes(path: str, function: str, *pairs: tuple[str, str]) -> tuple[Change, ...]:
    return tuple(Change(path, function, old, new) for old, new in pairs)


CAYLEY, LAYOUT, ROUNDING, SINKHORN = (f"kernels/{name}.py" for name in ("cayley", "layout", "rounding", "sinkhorn"))
BASE, BIRKHOFF, CONSTANTS = (f"manifolds/{name}.py" for name in ("base", "birkhoff", "constants"))
FACTORISATION, GRASSMANN, KRONECKER = (f"manifolds/{name}.py" for name in ("factorisation", "grassmann", "kronecker"))
INVARIANTS, PERMUTATION = (f"manifolds/{name}.py" for name in ("invariants", "permutation"))
SIGNATURE, SPHERE = (f"manifolds/{name}.py" for name in ("signature", "spectral_sphere"))

_ROUND = "round_to_doubly_stochastic"
_IMPLICIT = "_ImplicitSinkhorn.backward"
_WAY = "way = torch.where((second * (Q @ first) - first * (Q @ second)).sum(0) < 0, "

# why nobody could tell -> the changes
EQUIVALENTS: dict[str, tuple[Change, ...]] = {
    "two ways to the same numbers; which one is taken is a matter of speed": (
        *_changes(CAYLEY, "module", ("_SMALL = 7", "_SMALL = 8"), ("_SMALL = 7", "_SMALL = 6")),
        *_changes(
            CAYLEY,
            "polish_orthogonal",
            ("<= _SMALL and", "<= _SMALL or"),
            ("<= _SMALL and", "> _SMALL and"),
            ("type == 'cpu'", "type != 'cpu'"),
            (
                "_by_entries(Q) if small else _polished_by_products",
                "_by_products(Q) if small else _polished_by_entries",
            ),
        ),
        *_changes(SINKHORN, "_sweeps", ("if torch", "if not torch")),
        *_changes(CONSTANTS, "constant", ("if torch", "if not torch")),
        *_changes(BIRKHOFF, "Birkhoff.forward", (", implicit=self.gradient == 'implicit')", ")")),
        *_changes(FACTORISATION, "_peel", (", full_matrices=False", ""), ("_matrices=False", "_matrices=True")),
    ),
    "where in memory it lies": (
        *_changes(LAYOUT, "entries_together", ("if torch", "if not torch")),
        *_changes(LAYOUT, "entries_together", ("_EntriesTogether.apply(matrix)", "matrix")),
        *_changes(LAYOUT, "_EntriesTogether.forward", ("memory_format=torch.contiguous_format", "")),
        *_changes(BIRKHOFF, "Birkhoff.forward", ("entries_together(H)", "H")),
    ),
    "a batch of sizes that broadcast to the same": (
        *_changes(
            ROUNDING,
            _ROUND,
            ("mean(0, keepdim=True)", "mean(0, keepdim=False)"),
            ("row_error.abs().amax(0, keepdim=True)", "row_error.abs().amax(0, keepdim=False)"),
            ("column_error.abs().amax(1, keepdim=True)", "column_error.abs().amax(1, keepdim=False)"),
        ),
        *_changes(
            ROUNDING,
            "_round",
            ("sum(0, keepdim=True).clamp", "sum(0, keepdim=False).clamp"),
            ("row_missing.sum(0, keepdim=True)", "row_missing.sum(0, keepdim=False)"),
            ("shares.sum(1, keepdim=True)", "shares.sum(1, keepdim=False)"),
        ),
        *_changes(SINKHORN, "_sweeps", ("amax((0, 1), keepdim=True)", "amax((0, 1), keepdim=False)")),
        *_changes(
            SPHERE,
            "SpectralSphere._singular_values",
            ("return s.new_ones(*s.shape[:-1]", "return s.new_ones(*s.shape[:-0]"),
        ),
        *_changes(FACTORISATION, "nearest_factors", ("rest[..., 0, 0]", "rest[..., -1, 0]")),
        *_changes(FACTORISATION, "nearest_factors", ("rest[..., 0, 0]", "rest[..., 0, -1]")),
        *_changes(FACTORISATION, "Misfit.__call__", (".all(-1).all(-1)", ".all(-2).all(-1)")),
        *_changes(BASE, "Manifold.violation", (".all(-1).all(-1)", ".all(-2).all(-1)")),
        *_changes(INVARIANTS, "spectral_norm_of", (".all(-1).all(-1)", ".all(-2).all(-1)")),
        *_changes(FACTORISATION, "_flips", ("list(flip)", "flip")),
    ),
    "one step more of an iteration that has converged": (
        *_changes(CAYLEY, "module", ("POLISH_STEPS = 3", "POLISH_STEPS = 4")),
        *_changes(CAYLEY, "_polished_by_products", ("(POLISH_STEPS)", "(POLISH_STEPS + 1)")),
        *_changes(CAYLEY, "_polished_by_entries", ("(POLISH_STEPS)", "(POLISH_STEPS + 1)")),
        *_changes(SINKHORN, _IMPLICIT, ("(ctx.iterations)", "(ctx.iterations + 1)")),
    ),
    "a symmetric matrix": (
        *_changes(INVARIANTS, "_gram_error", ("H.mT @ H - ", "H @ H.mT - ")),
        *_changes(
            CAYLEY,
            "_polished_by_entries",
            ("(row.unsqueeze(1), row.unsqueeze(0)", "(row.unsqueeze(0), row.unsqueeze(1)"),
        ),
        *_changes(CAYLEY, "_polished_by_entries", ("gram.unbind(0)", "gram.unbind(1)")),
    ),
    "more of the half-sweeps run in logarithms: the same numbers, later": _changes(
        SINKHORN,
        "_half_sweeps_in_logs",
        ("max(2, count - harmless)", "max(3, count - harmless)"),
        ("max(2, count - harmless)", "max(2, count)"),
        ("max(2, count - harmless)", "max(2, count + harmless)"),
        ("min(count,", "max(count,"),
        ("(info.eps / 16 / info.tiny, n)", "(n, info.eps / 16 / info.tiny)"),
        ("info.eps / 16 / info.tiny", "info.tiny / (info.eps / 16)"),
        ("info.eps / 16 / info.tiny", "info.eps / 16"),
    ),
    "a hair more or less of a margin": (
        *_changes(
            SINKHORN,
            "_half_sweeps_in_logs",
            ("eps / 16", "eps / 17"),
            ("eps / 16", "eps / 15"),
            ("eps / 16", "eps * 16"),
            ("eps / 16", "eps"),
        ),
        *_changes(SINKHORN, "sinkhorn", ("max / 64", "max / 65"), ("max / 64", "max / 63")),
        *_changes(ROUNDING, "_round", ("eps / 4", "eps / 5"), ("eps / 4", "eps / 3"), ("eps / 4", "eps")),
        *_changes(BIRKHOFF, "module", ("_FAR = 64.0", "_FAR = 128.0")),
        *_changes(PERMUTATION, "module", ("_FAR = 64.0", "_FAR = 128.0")),
        *_changes(PERMUTATION, "module", ("MAX_N = 6", "MAX_N = 7"), ("MAX_N = 6", "MAX_N = 5")),
        *_changes(SIGNATURE, "cayley_signature", ("1 + 1e-13", "1 + 2e-13")),
        *_changes(
            BIRKHOFF, "module", ("_CONVERGED = 200", "_CONVERGED = 201"), ("_CONVERGED = 200", "_CONVERGED = 199")
        ),
        *_changes(
            BASE, "module", ("MAX_STREAMS = 1024", "MAX_STREAMS = 1025"), ("MAX_STREAMS = 1024", "MAX_STREAMS = 1023")
        ),
        *_changes(BASE, "module", ("STREAMS = 16", "STREAMS = 17"), ("STREAMS = 16", "STREAMS = 15")),
    ),
    "the axes of half-sweeps alternate": _changes(SINKHORN, "_Sweeps.forward", ("in_logs - 1", "1 - in_logs")),
    "an even number of changes of sign": (
        *_changes(
            SINKHORN,
            "_Sweeps.jvp",
            ("tangent - (y * tangent).sum(dim, keepdim=True)", "(y * tangent).sum(dim, keepdim=True) - tangent"),
        ),
        *_changes(
            SINKHORN,
            "_gradient_step_by_step",
            ("step - y * step.sum(dim, keepdim=True)", "y * step.sum(dim, keepdim=True) - step"),
        ),
        *_changes(FACTORISATION, "_flips", ("I - X", "X - I")),
    ),
    "zeros in the place of nothing": _changes(
        SINKHORN,
        "_Sweeps.setup_context",
        ("ctx.set_materialize_grads(False)", "pass"),
        ("ctx.set_materialize_grads(False)", "False"),
        ("(False)", "(True)"),
    ),
    "there is one output": (
        *_changes(SINKHORN, _IMPLICIT, ("grad_outputs[0]", "grad_outputs[-1]")),
        *_changes(LAYOUT, "_EntriesTogether.backward", ("grads[0]", "grads[-1]")),
    ),
    "the first round writes v before it is read": _changes(SINKHORN, _IMPLICIT, ("zeros_like", "ones_like")),
    "the sums of a converged matrix are 1": _changes(
        SINKHORN,
        _IMPLICIT,
        (".sum(0)) / column_sum.clamp(min=tiny)", ".sum(0)) * column_sum.clamp(min=tiny)"),
        (".sum(1)) / row_sum.clamp(min=tiny)", ".sum(1)) * row_sum.clamp(min=tiny)"),
        (
            "v = (column_total - (balanced * u.unsqueeze(1)).sum(0)) / column_sum.clamp(min=tiny)",
            "v = column_total - (balanced * u.unsqueeze(1)).sum(0)",
        ),
    ),
    "the total of what Sinkhorn returns does not move, and errors of rows and of columns add up to the same": _changes(
        ROUNDING,
        _ROUND,
        ("column_error - row_error.mean", "column_error + row_error.mean"),
        ("(row_error + column_error - row_error.mean(0, keepdim=True))", "(row_error + column_error)"),
        ("column_error.abs().amax(1", "column_error.amax(1"),
        ("row_error.abs().amax(0", "row_error.amax(0"),
    ),
    "rounding errors are put right, of a size that the tolerance leaves room for": _changes(
        ROUNDING,
        "_round",
        ("row_missing = _with_gradient_of(row_missing, row_missing.clamp(min=0))", "pass"),
        (
            "_with_gradient_of(row_missing, row_missing.clamp(min=0))",
            "_with_gradient_of(row_missing.clamp(min=0), row_missing)",
        ),
        ("(row_missing, row_missing.clamp(min=0))", "(row_missing, row_missing)"),
        ("row_missing.clamp(min=0)", "row_missing.clamp(min=-1)"),
        ("column_missing.clamp(min=0)", "column_missing"),
        ("column_missing.clamp(min=0)", "column_missing.clamp(min=-1)"),
        ("column_missing = _with_gradient_of(column_missing, shares * mass)", "pass"),
        ("_with_gradient_of(column_missing, shares * mass)", "_with_gradient_of(shares * mass, column_missing)"),
    ),
    "what stands in for a matrix that is not finite is replaced by NaN": (
        *_changes(INVARIANTS, "spectral_norm_of", ("zeros_like", "ones_like")),
        *_changes(FACTORISATION, "Misfit.__call__", ("zeros_like", "ones_like")),
    ),
    "a largest eigenvalue of HᵀH is not negative": _changes(
        INVARIANTS, "spectral_norm_of", ("clamp(min=0)", "clamp(min=-1)")
    ),
    "NaN has no sign, and zero none that counts": _changes(
        BASE, "Manifold.violation", ("worst + torch", "worst - torch")
    ),
    "Python's arithmetic and torch's": (
        *_changes(
            BASE, "Manifold._require_member", ("float(invariant.residual(H).amax())", "invariant.residual(H).amax()")
        ),
        *_changes(PERMUTATION, "Permutation.initial", ("-float(sharpness)", "-sharpness")),
        *_changes(SIGNATURE, "cayley_signature", ("float(A.abs().max())", "A.abs().max()")),
    ),
    "the wider of two dtypes, in either order": _changes(
        BASE, "working_dtype", ("(dtype, torch.float32)", "(torch.float32, dtype)")
    ),
    "a definition: what counts as rounding": (
        *_changes(BASE, "Manifold.tolerance", ("16.0 * self.n * torch", "16.0 * torch"), ("16.0", "32.0")),
        *_changes(KRONECKER, "Kronecker.tolerance", ("max([", "min([")),
    ),
    "it promises less than it could; that is no lie": _changes(
        BIRKHOFF,
        "Birkhoff.exact",
        ("'round' or (", "'round' and ("),
        ("n == 1", "n == 0"),
        ("eps == 0.0", "eps == 1.0"),
    ),
    "constants along the axis that is normalised first change nothing": _changes(
        BIRKHOFF,
        "Birkhoff.initial",
        ("(torch.eye(self.n, dtype=dtype, device=device) - 1)", "(torch.eye(self.n, dtype=dtype, device=device) + 1)"),
        ("(torch.eye(self.n, dtype=dtype, device=device) - 1)", "torch.eye(self.n, dtype=dtype, device=device)"),
        ("device) - 1", "device) - 2"),
        ("device) - 1", "device) - 0"),
    ),
    "every projector of rank p is as near to I": _changes(
        GRASSMANN, "Grassmann.identity", ("torch.zeros", "torch.ones")
    ),
    "coordinates are not differentiated": (
        *_changes(PERMUTATION, "Permutation.coordinates", ("H.detach()", "H")),
        *_changes(GRASSMANN, "Grassmann.coordinates", ("H.detach()", "H")),
    ),
    "only the polar factor of the sum is used, and in each plane it does not depend on a positive weight": _changes(
        SIGNATURE,
        "rotation_root",
        (f"{_WAY}-1.0, 1.0)", f"{_WAY}-2.0, 1.0)"),
        (f"{_WAY}-1.0, 1.0)", f"{_WAY}-1.0, 2.0)"),
    ),
    "A is skew: its largest entry is the largest in size, at (i, j) or at (j, i), and both are flipped": _changes(
        SIGNATURE, "cayley_signature", ("A.abs().argmax()", "A.argmax()")
    ),
    "more rounds than a member has entries to empty": _changes(
        PERMUTATION,
        "Permutation.coordinates",
        ("** 2 + 1", "** 2 + 1 + 1"),
        ("** 2 + 1", "** 2 + 2"),
        ("** 2 + 1", "** 3 + 1"),
        ("self.n - 1", "self.n + 1"),
        ("(self.n - 1)", "self.n"),
        ("self.n - 1", "self.n - 0"),
        ("self.n - 1", "1 - self.n"),
    ),
    "every norm bound of a built-in manifold is 1": _changes(
        KRONECKER, "Kronecker.norm_bound", ("if b is not None", "if b is None")
    ),
    "no bottleneck of a member is negative": _changes(
        PERMUTATION, "Permutation.coordinates", ("bottleneck.clamp(min=0)", "bottleneck"), ("min=0", "min=-1")
    ),
    "every sign is written before it is read": _changes(SIGNATURE, "cayley_signature", ("torch.ones", "torch.zeros")),
    "for k = 1, A is zero": _changes(SIGNATURE, "cayley_signature", ("while k > 1", "while k > 0")),
    "A is skew: one of two entries is the positive one": _changes(
        SIGNATURE, "cayley_signature", ("float(A.abs().max())", "float(A.max())")
    ),
    "signs are their own inverses": (
        *_changes(SIGNATURE, "cayley_signature", ("U * signs", "U / signs")),
        *_changes(SPHERE, "SpectralSphere._core_coordinates", ("sigma * sign_u", "sigma / sign_u")),
        *_changes(
            FACTORISATION,
            "nearest_factors",
            ("factors[k] * sign", "factors[k] / sign"),
            ("scale * sign", "scale / sign"),
        ),
    ),
    "one of several that take any scale": _changes(
        FACTORISATION, "nearest_factors", ("of_any_scale[0]", "of_any_scale[-1]")
    ),
    "nothing is left for a member, of which H is the product": _changes(
        FACTORISATION, "nearest_factors", ("else -1", "else -0")
    ),
    "a distance, in either direction": (
        *_changes(
            FACTORISATION,
            "Misfit.__call__",
            ("reduce(kronecker_product, factors) - H", "H - reduce(kronecker_product, factors)"),
        ),
        *_changes(
            INVARIANTS,
            "_gram_error",
            (
                "H.mT @ H - torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)",
                "torch.eye(H.shape[-1], dtype=H.dtype, device=H.device) - H.mT @ H",
            ),
        ),
    ),
    "the nearest factor of zero is any multiple of a member": _changes(
        FACTORISATION,
        "_peel",
        ("start / torch.linalg.matrix_norm(start)", "start * torch.linalg.matrix_norm(start)"),
        ("start / torch.linalg.matrix_norm(start)", "start"),
    ),
    "sets with one kind of sums have the other": _changes(FACTORISATION, "_has_sums", (" or ", " and ")),
    "the first set holds its own members": _changes(KRONECKER, "_shared", ("sets[1:]", "sets[0:]")),
    "a set, in another order": _changes(
        BIRKHOFF, "Birkhoff.exact_invariants", ("(last, invariants.nonnegative)", "(invariants.nonnegative, last)")
    ),
}
