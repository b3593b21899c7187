"""Eigenvalues of a large symmetric matrix H that is known by its products H v alone.

All numbers are float64, the starts are functions of a seed, and nothing here knows about models.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import (
    ArpackNoConvergence,
    LinearOperator,
    eigsh,
)

from raydist.seeding import Purpose, numpy_rng

Array = NDArray[np.float64]

RESTARTS = 100  # of the Lanczos iteration for top eigenvalues, before it is called off
BLUR = 0.01  # standard deviation of a drawn eigenvalue, as a fraction of the spectrum's width


def rademacher(size: int, seed: int, index: int) -> Array:
    """Probe `index` of a seed: independent signs ±1, (size,); the same in any process."""
    bits = numpy_rng(Purpose.NOISE, seed, round=index).integers(0, 2, size)
    return (2 * bits - 1).astype(np.float64)


def unit_direction(size: int, seed: int) -> Array:
    """A direction drawn uniformly from the unit sphere, (size,)."""
    v: Array = numpy_rng(Purpose.NOISE, seed).standard_normal(size)
    v /= np.linalg.norm(v)
    return v


def top_pairs(operator: LinearOperator, k: int, seed: int, tolerance: float) -> tuple[Array, Array]:
    """The k largest eigenvalues, by their sign and not their size, with eigenvectors.

    Implicitly restarted Lanczos (ARPACK) until ‖H v − λ v‖ ≤ tolerance · ‖H‖, for an eigenvalue
    near 0 as for the largest one; the whole matrix where Lanczos would build it anyway. It keeps
    max(2k + 1, 20) vectors.

    Args:
        operator: H, symmetric (P, P).
        k: number of eigenvalues, 1..P.
        seed: seed of the start; the result depends on it within the tolerance only.
        tolerance: relative residual, not below the precision of the products.

    Returns:
        Eigenvalues (k,), descending, and as rows their unit eigenvectors (k, P), of which the
        entry of largest size is positive.

    Raises:
        ValueError: k is not in 1..P.
        RuntimeError: not converged after `RESTARTS` restarts.

    Example:
        >>> from scipy.sparse.linalg import aslinearoperator
        >>> top_pairs(aslinearoperator(np.diag([1.0, -5.0, 3.0])), 2, seed=0, tolerance=1e-9)[0]
        array([3., 1.])
    """
    size = operator.shape[0]
    if not 1 <= k <= size:
        raise ValueError(f"k is {k}, expected 1 to {size}: the matrix has {size} eigenvalues")
    kept = max(2 * k + 1, 20)
    if size <= kept:
        matrix = operator.matmat(np.eye(size))
        values, columns = np.linalg.eigh((matrix + matrix.T) / 2)
    else:
        start = unit_direction(size, seed)
        values, columns = _lanczos_top(operator, k, kept, start, seed, tolerance)
    values, vectors = values[::-1][:k], columns.T[::-1][:k]
    largest = np.abs(vectors).argmax(axis=1, keepdims=True)
    return values.copy(), vectors * np.sign(np.take_along_axis(vectors, largest, axis=1))


def _lanczos_top(
    operator: LinearOperator, k: int, kept: int, start: Array, seed: int, tolerance: float
) -> tuple[Array, Array]:
    """Ascending; ARPACK's test is relative to each eigenvalue, so H + ‖H‖ I is what it is given."""
    size = operator.shape[0]
    shift = 2 * float(np.abs(lanczos(operator, start, 5)[0]).max()) or 1.0
    shifted = LinearOperator(
        operator.shape, matvec=lambda v: operator.matvec(v) + shift * v, dtype=np.float64
    )
    try:
        values, columns = eigsh(
            shifted,
            k,
            which="LA",
            v0=start,
            ncv=kept,
            tol=tolerance,
            maxiter=RESTARTS,
            rng=numpy_rng(Purpose.NOISE, seed),
        )
    except ArpackNoConvergence as error:
        raise RuntimeError(
            f"{len(error.eigenvalues)} of {k} eigenvalues converged in {RESTARTS} restarts of"
            f" Lanczos on a matrix of size {size}: the products H v are noisy or not symmetric"
            " (is the model deterministic?), or ask for fewer"
        ) from None
    return values - shift, columns


def lanczos(operator: LinearOperator, start: Array, steps: int) -> tuple[Array, Array]:
    """Gauss quadrature of the spectrum that a start sees (Golub and Welsch).

        Σ_i w_i f(t_i) ≈ vᵀ f(H) v / ‖v‖²,   exact for polynomials f of degree < 2 · steps

    Three vectors are kept. Without reorthogonalisation a converged eigenvalue comes twice, with
    its weight divided among the copies, which leaves the quadrature as it is.

    Args:
        operator: H, symmetric (P, P).
        start: v ≠ 0, (P,).
        steps: products with H, ≥ 1; fewer are made if v lies in a smaller invariant subspace.

    Returns:
        Nodes t (n,), ascending, and weights w (n,), which sum to 1; n ≤ min(steps, P).
    """
    alphas: list[float] = []
    betas: list[float] = []
    v, before = start / np.linalg.norm(start), np.zeros_like(start)
    for _ in range(min(steps, len(start))):
        after = operator.matvec(v) - (betas[-1] if betas else 0.0) * before
        alphas.append(float(after @ v))
        after -= alphas[-1] * v
        betas.append(float(np.linalg.norm(after)))
        if betas[-1] <= 1e-13 * max(map(abs, alphas + betas)):
            break
        v, before = after / betas[-1], v
    off = betas[: len(alphas) - 1]
    nodes, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1))
    return nodes, vectors[0] ** 2


def density(
    operator: LinearOperator, *, probes: int, steps: int, points: int, seed: int
) -> tuple[Array, Array]:
    """Distribution of the eigenvalues, by stochastic Lanczos quadrature (arXiv:1901.10159).

        p(t) = (1/P) Σ_i N(t; λ_i, σ²) ≈ mean over probes of Σ_i w_i N(t; t_i, σ²)

    with the nodes and weights of `lanczos` from Rademacher probes, the same as those of the trace:
    the mean of t under p is the trace estimate over P. σ is `BLUR` times the width of the spectrum.

    Args:
        operator: H, symmetric (P, P).
        probes: starts, ≥ 1.
        steps: products with H for each start, ≥ 1.
        points: the points of the grid, ≥ 2; at least 200 to resolve σ.
        seed: seed of the probes.

    Returns:
        Grid t (points,), evenly spaced from 5 σ below to 5 σ above the spectrum, and density p
        (points,), whose integral by the trapezoidal rule is 1.

    Raises:
        ValueError: fewer than one probe or step, or than two points.
    """
    for name, number, least in (("probes", probes, 1), ("steps", steps, 1), ("points", points, 2)):
        if number < least:
            raise ValueError(f"{name} is {number}, expected an integer >= {least}")
    size = operator.shape[0]
    runs = [lanczos(operator, rademacher(size, seed, i), steps) for i in range(probes)]
    nodes = np.concatenate([run[0] for run in runs])
    weights = np.concatenate([run[1] for run in runs]) / probes

    low, high = float(nodes.min()), float(nodes.max())
    # a multiple of the identity has no width: its own size, or 1 for H = 0, stands in
    sigma = BLUR * (high - low if high - low > 1e-6 * abs(high) else abs(high) or 1.0)
    grid = np.linspace(low - 5 * sigma, high + 5 * sigma, points)
    p = np.zeros(points)
    for node, weight in zip(nodes, weights, strict=True):  # not all at once: points × nodes
        p += weight * np.exp(-0.5 * ((grid - node) / sigma) ** 2)
    return grid, p / np.trapezoid(p, grid)
