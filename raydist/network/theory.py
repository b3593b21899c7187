"""The excess risk of distributed learning near a minimiser, in closed form (arXiv:2509.11337).

The short-term model: around a minimiser w* of J = (1/K) Σ J_k the Hessians H_k are constant,
agent k has the gradient d_k at w* and independent gradient noise of covariance R_k / B per round.
For quadratic risks nothing is left out. With w̃_k = w* − w_k, stacked agent by agent, and
s the stacked noise of a round,

    W̃_n = F W̃_{n−1} + μ G (d + s_n),    F = A_2ᵀ (A_1ᵀ − μ H),    G = A_2ᵀ
    consensus A_1, A_2 = A, I     diffusion I, A     centralized I, 11ᵀ/K     local I, I

Here "diffusion" is adapt-then-combine. The risk is that of the agents' models, not of their mean:
with a common Hessian the mean follows the same recursion under every doubly stochastic A. Nothing
but the linear term of the risk depends on w* being a minimiser: with it, w* may be any point.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raydist.network.strategy import Strategy, find

Array = NDArray[np.float64]


def _block_diagonal(blocks: Array) -> Array:
    """The (KM, KM) matrix with the K blocks of shape (M, M) on its diagonal."""
    K, M, _ = blocks.shape
    matrix: Array = np.einsum("kij,kl->kilj", blocks, np.eye(K)).reshape(K * M, K * M)
    return matrix


def _check(
    A: Array, hessians: Array, gradients: Array, noise: Array, rounds: Sequence[float]
) -> None:
    K, M = gradients.shape if gradients.ndim == 2 else (0, 0)
    shapes = {"A": (A, (K, K)), "hessians": (hessians, (K, M, M)), "noise": (noise, (K, M, M))}
    for name, (array, expected) in shapes.items():
        if array.shape != expected:
            raise ValueError(
                f"{name} has shape {array.shape}, expected {expected} with K agents and "
                f"M parameters from gradients of shape {gradients.shape}"
            )
    for n in rounds:
        if n < 0 or n != n or (n != math.inf and n != int(n)):
            raise ValueError(f"round {n} in rounds: expected integers ≥ 0 or math.inf")


def _limit(F: Array, drift: Array, spread: Array) -> tuple[Array, Array]:
    """The fixed points m = F m + drift, P = F P Fᵀ + spread; F has spectral radius < 1."""
    m = np.asarray(np.linalg.solve(np.eye(len(F)) - F, drift), dtype=np.float64)
    P = spread
    while np.abs(F).max() > 1e-20:  # Smith's doubling: P holds 1, 2, 4, ... terms of the series
        P = P + F @ P @ F.T
        F = F @ F
    return m, P


def excess_risk(
    strategy: str | Strategy,
    A: ArrayLike,
    hessians: ArrayLike,
    gradients: ArrayLike,
    noise: ArrayLike,
    lr: float,
    batch: int,
    rounds: Sequence[float],
    *,
    start: ArrayLike = 0.0,
) -> Array:
    """The mean excess risk of the agents, ER_n = (1/K) Σ_k E J(w_k,n) − J(w*).

    With F and G from the head of this module, m_0 = w* − w_0, P_0 = 0, H̄ = (1/K) Σ H_k:

        m_n = F m_{n−1} + μ G d,    P_n = F P_{n−1} Fᵀ + (μ²/B) G R Gᵀ,
        ER_n = (1/2K) [ m_nᵀ (I ⊗ H̄) m_n + Tr((I ⊗ H̄) P_n) ] − (1/K) (1 ⊗ d̄)ᵀ m_n

    The last term is 0 at a minimiser; elsewhere ER_n may be negative. Exact for quadratic risks;
    for others it is the short-term model of arXiv:2509.11337.

    Args:
        strategy: the strategy, or its name.
        A: combination matrix, shape (K, K), columns sum to 1; centralized and local ignore it.
        hessians: H_k at w*, shape (K, M, M).
        gradients: d_k at w*, shape (K, M).
        noise: covariance R_k of one sample's gradient at agent k, shape (K, M, M).
        lr: μ > 0.
        batch: B, samples per agent and round.
        rounds: numbers of rounds n ≥ 0 in any order, `math.inf` for the limit.
        start: w* − w_0, shape (M,), or (K, M) for agents that start apart.

    Returns:
        ER_n for each of `rounds`, shape (len(rounds),); inf where it diverges.

    Raises:
        ValueError: the strategy is unknown, the shapes do not fit, or a round is not a number ≥ 0.

    Example:
        >>> one = np.ones((1, 1, 1))  # one agent, J = w²/2, start at w = 2: w_n = 2 (1 - 0.5)^n
        >>> excess_risk("local", [[1]], one, [[0]], 0 * one, 0.5, 1, [0, 1, math.inf], start=[2])
        array([2. , 0.5, 0. ])
    """
    A, H, d, R = (np.asarray(x, dtype=np.float64) for x in (A, hessians, gradients, noise))
    _check(A, H, d, R, rounds)
    K, M = d.shape
    rule = find(strategy) if isinstance(strategy, str) else strategy
    A1, A2 = rule.factors(A)
    G = np.kron(A2.T, np.eye(M))
    F = G @ (np.kron(A1.T, np.eye(M)) - lr * _block_diagonal(H))
    drift = lr * G @ d.ravel()
    spread = lr**2 / batch * G @ _block_diagonal(R) @ G.T
    Hbar, dbar = np.kron(np.eye(K), H.mean(axis=0)), np.tile(d.mean(axis=0), K)

    def risk(m: Array, P: Array) -> float:
        value = float((m @ Hbar @ m + (Hbar * P).sum()) / 2 - dbar @ m) / K
        return math.inf if math.isnan(value) else value  # inf − inf, after an overflow

    risks = {}
    if math.inf in rounds:
        stable = np.abs(np.linalg.eigvals(F)).max() < 1 - 1e-12
        risks[math.inf] = risk(*_limit(F, drift, spread)) if stable else math.inf
    m = np.broadcast_to(np.asarray(start, dtype=np.float64), (K, M)).ravel()
    P = np.zeros_like(F)
    with np.errstate(over="ignore", invalid="ignore"):
        for n in range(int(max((n for n in rounds if n != math.inf), default=-1)) + 1):
            risks[n] = risk(m, P)
            m, P = F @ m + drift, F @ P @ F.T + spread
    return np.array([risks[n] for n in rounds])
