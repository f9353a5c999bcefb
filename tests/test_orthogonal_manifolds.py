"""Stiefel, spectral sphere and Grassmann: how exact, what is reached, and an account that is not ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from geotorch.so import cayley_map
from torch import Tensor

from hyperconn.manifolds import Grassmann, SpectralSphere, Stiefel
from hyperconn.manifolds.core.rotations import skew_coordinates
from hyperconn.manifolds.spectral_sphere import helmert


def normal(*shape: int, std: float = 1.0) -> Tensor:
    return std * torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("std", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 16])
def test_it_is_the_cayley_map_of_geotorch(n: int, std: float) -> None:
    """geotorch's X is −2A: it maps X to (I − X/2)⁻¹(I + X/2)."""
    m, W = Stiefel(n=n), normal(n, n, std=std)
    rotation = cayley_map(W.mT - W)
    torch.testing.assert_close(Stiefel(n=n, generator="full")(W.flatten()), rotation, rtol=0, atol=1e-12)
    torch.testing.assert_close(m(skew_coordinates((W - W.mT) / 2)), rotation, rtol=0, atol=1e-12)
    assert torch.linalg.det(rotation) > 0


@pytest.mark.parametrize(
    ("std", "low", "high"), [(0.5, 3e-4, 3e-3), (1.0, 4e-3, 4e-2), (4.0, 0.3, 3.0), (16.0, 1e3, 1e6)]
)
def test_errors_of_the_iterative_method(std: float, low: float, high: float) -> None:
    """Documented: 8e-4, 0.011 and 0.6 at standard deviation 0.5, 1 and 4; further out it diverges."""
    m = Stiefel(n=4, method="iterative")
    assert low < m.violation(m(normal(4096, 6, std=std))).max() < high


def test_more_steps_approach_the_cayley_transform() -> None:
    """The iteration rotates by W where the transform takes A = −(α/2) W."""
    W = normal(6)
    exact = Stiefel(n=4)(-0.05 * W)
    errors = [float((Stiefel(n=4, method="iterative", steps=s)(W) - exact).abs().max()) for s in (1, 3, 30)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-14


def test_what_the_cayley_transform_does_not_reach() -> None:
    with pytest.raises(ValueError, match=r"Stiefel\(n=2.* does not reach this matrix: it has an eigenvalue .*−1"):
        Stiefel(n=2).coordinates(-torch.eye(2))
    with pytest.raises(ValueError, match=r"orthogonal .* is off by 3.0e\+00; pass a member"):
        Stiefel(n=2).coordinates(2 * torch.eye(2))


def test_groups_of_the_sphere() -> None:
    assert SpectralSphere(n=5).coordinate_groups == (("u", 6), ("v", 6), ("s", 4))
    assert SpectralSphere(n=5, isometric=True).coordinate_groups == (("u", 6), ("v", 6))
    plain = SpectralSphere(n=3, preserve_mean=False)
    assert plain.coordinate_groups == (("u", 3), ("v", 3), ("s", 2))
    assert {i.name for i in plain.invariants} == {"spectral_norm", "non_expansive"}


def test_every_matrix_on_the_sphere_has_coordinates() -> None:
    """Any orthogonal U and V, determinants −1 and eigenvalues −1 included, and any singular values."""
    for n in (2, 3, 4, 6):
        Z = helmert(n)
        Q = torch.linalg.qr(normal(2, 40, n - 1, n - 1))[0]
        sigma = torch.rand(40, 1, n - 1, dtype=torch.float64)
        sigma[::2, :, -1:] = 0.0
        H = 1 / n + Z @ (Q[0] * sigma) @ Q[1].mT @ Z.mT
        m = SpectralSphere(n=n)
        torch.testing.assert_close(m(m.coordinates(H)), H, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [3, 4, 5, 6])
def test_every_rotation_about_the_mean_has_coordinates(n: int) -> None:
    """Half turns and their neighbours included, where the two halves of the rotation are barely within reach."""
    m, wide = SpectralSphere(n=n, isometric=True), SpectralSphere(n=n, isometric=True, gamma=2.0)
    Z, found = helmert(n), 0
    edge = np.arccos(1e-6 - 1)  # where a rotation is no longer taken for a half turn
    for angle in (np.pi, np.pi - 1e-10, np.pi - 1e-5, edge, np.pi - 1e-2, -np.pi + 1e-8, -2.0, 1.0):
        for _ in range(5):
            turn = torch.eye(n - 1, dtype=torch.float64)
            turn[:2, :2] = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            frame = torch.linalg.qr(normal(n - 1, n - 1))[0]
            H = 1 / n + Z @ frame @ turn @ frame.mT @ Z.mT
            torch.testing.assert_close(m(m.coordinates(H)), H, rtol=0, atol=1e-12)
            rounded = H.to(torch.bfloat16)  # no longer orthogonal
            assert (wide(wide.coordinates(rounded)) - H).abs().max() < 0.05
            found += 1
    assert found == 40


def test_what_the_sphere_does_not_reach() -> None:
    swap = torch.eye(3)[[1, 0, 2]]
    with pytest.raises(ValueError, match="does not reach this matrix: its determinant is −1"):
        SpectralSphere(n=3, isometric=True).coordinates(swap)
    narrow = SpectralSphere(n=4, gamma=0.9)
    with pytest.raises(NotImplementedError, match="gamma=0.9.* has no right inverse"):
        narrow.coordinates(narrow(normal(9)))
    with pytest.raises(ValueError, match="pass a member"):
        SpectralSphere(n=3).coordinates(2 * torch.eye(3))
    with pytest.raises(NotImplementedError, match="has no right inverse"):
        SpectralSphere(n=3, preserve_mean=False).coordinates(torch.eye(3))


def test_every_projector_has_coordinates() -> None:
    for n, p in ((2, 1), (4, 2), (5, 4), (6, 2)):
        m = Grassmann(n=n, p=p)
        U = torch.linalg.qr(normal(30, n, p))[0]
        U[0] = torch.eye(n, dtype=torch.float64)[:, n - p :]  # as far from the start as it gets
        H = U @ U.mT
        torch.testing.assert_close(m(m.coordinates(H)), H, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"trace_2 .* is off by 1.0e\+00"):
        Grassmann(n=4, p=2).coordinates(torch.diag(torch.tensor([1.0, 0.0, 0.0, 0.0])))
