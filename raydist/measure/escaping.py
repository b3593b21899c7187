"""Escaping efficiency of a network: what the theory asks for, measured within a subspace.

Around w* the theory of `raydist.network.theory` (arXiv:2509.11337) asks for every agent's Hessian
H_k, gradient d_k and single-sample gradient noise R_k. For a network they are taken within the span
of the m top eigenvectors of the Hessian of the mean risk, the rows of V (m, P):

    H_k → V H_k Vᵀ,   d_k → V d_k,   R_k → V R_k Vᵀ

Left out are: what happens outside the subspace; how the Hessian changes along the way; and that an
epoch draws its samples without replacement, so the noise of its rounds is smaller in sum. w* need
not be a minimiser: the theory keeps the linear term of the risk, d̄ᵀ(w − w*).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from raydist.measure.curvature import Attack, attacked, hessian_pairs, projected_gradients, subspace
from raydist.measure.derivatives import Batches, Loss, gradient
from raydist.measure.spectrum import Array
from raydist.network import theory
from raydist.network.strategy import Strategy
from raydist.seeding import Purpose, seed_for
from raydist.vector import at, flat, trainable

STEP = 0.01  # of a finite difference, as a fraction of ‖w*‖


@dataclass(frozen=True)
class LocalModel:
    """The risks of K agents near w*, to second order, within a subspace of m dimensions.

    Attributes:
        hessians: V H_k Vᵀ, (K, m, m).
        gradients: V d_k, (K, m).
        noise: covariance of V times the gradient at one of agent k's samples, (K, m, m).
        basis: V, orthonormal rows, (m, P).
    """

    hessians: Array
    gradients: Array
    noise: Array
    basis: Array


def local_model(
    model: nn.Module,
    shares: Sequence[Batches],
    loss_fn: Loss,
    attack: Attack | None,
    dimension: int,
    seed: int,
    step: float | None = None,
) -> LocalModel:
    """Derivatives that the theory needs of a network at its present weights w*.

    Without an attack H_k is the exact Hessian within the subspace. With one, the points follow the
    weights, which sharpens the risk; a Hessian at held points would not see that. So H_k is then

        ½ (D + Dᵀ),   D_ij = v_iᵀ [ ∇J_k(w* + h v_j) − ∇J_k(w* − h v_j) ] / 2h

    with the attack run anew at each w, its draws the same. The basis is that of held points.

    Args:
        model: the model at w*; in eval mode meanwhile, and left as found.
        shares: for each agent its samples, batches (x, y); as many each, so that all count alike.
        loss_fn: `(outputs, y) -> scalar`, the mean over a batch.
        attack: the attack, as in `curvature.attacked`; None: the samples as they are.
        dimension: m, 1..P.
        seed: seed of the attack's draws and of the eigenvectors' iteration.
        step: h > 0 in units of w; None is `STEP` · ‖w*‖. A risk with kinks looks the rougher the
            smaller it is; the length of the way that is to be predicted is a good choice.

    Returns:
        The local model.
    """

    def points(k: int) -> Batches:
        if attack is None:
            return shares[k]
        return attacked(model, shares[k], attack, seed_for(Purpose.EVALUATE, seed, k))

    agents = range(len(shares))
    held = [points(k) for k in agents]
    everything = [pair for part in held for pair in part]
    basis = hessian_pairs(model, loss_fn, everything, dimension, seed)[1]
    samples = [
        np.concatenate(
            [projected_gradients(model, loss_fn, x, y, basis, len(x)) for x, y in held[k]]
        )
        for k in agents
    ]
    w = flat(trainable(model).values())
    if step is None:
        step = STEP * float(w.norm())

    def slope(k: int, way: Array) -> Array:
        with at(model, w + torch.from_numpy(way).to(w)):
            return basis @ gradient(model, loss_fn, points(k))

    def hessian(k: int) -> Array:
        if attack is None:
            return subspace(model, loss_fn, shares[k], basis)
        D = [(slope(k, step * v) - slope(k, -step * v)) / (2 * step) for v in basis]
        return (np.array(D) + np.array(D).T) / 2

    return LocalModel(
        hessians=np.stack([hessian(k) for k in agents]),
        gradients=np.stack([g.mean(axis=0) for g in samples]),
        noise=np.stack([np.atleast_2d(np.cov(g, rowvar=False, ddof=0)) for g in samples]),
        basis=basis,
    )


def predict(
    local: LocalModel,
    strategy: str | Strategy,
    A: ArrayLike,
    lr: float,
    batch: int,
    rounds: Sequence[float],
) -> Array:
    """The mean excess risk of agents that start at w*, as far as it lies in the subspace.

    Args:
        local: the local model at w*.
        strategy: the strategy, as in `theory.excess_risk`.
        A: combination matrix, (K, K).
        lr: μ > 0.
        batch: B, samples per agent and round.
        rounds: numbers of rounds n ≥ 0, `math.inf` for the limit.

    Returns:
        ER_n by (E1), (len(rounds),).
    """
    parts = (local.hessians, local.gradients, local.noise)
    return theory.excess_risk(strategy, A, *parts, lr, batch, rounds)
