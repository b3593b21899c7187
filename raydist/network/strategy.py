"""The strategies by which agents learn together, as the equations of the papers.

With w_k the iterate of agent k before a round, φ_k the one after its own local step, and m_k what
it sends, every decentralised strategy is one line:

    w_k⁺ = Σ_l a_lk m_l + (φ_k − m_k)

    m = φ    diffusion (adapt, then combine)
    m = w    consensus (the gradient is taken at the agent's old own iterate)
    A = I    local (no cooperation)

centralized is one model and the mean gradient over all K·B samples: every agent sends its gradient,
averages all K of them and takes the same step. From a common start this equals diffusion with
A = 11ᵀ/K; consensus with that A is something else. (arXiv:2509.11337; Sayed, "Adaptation,
Learning, and Optimization over Networks", 2014, chapters 5 and 7.)
"""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

Strategy = Literal["centralized", "consensus", "diffusion", "local"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)


def combination_matrix(strategy: Strategy, A: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix that a strategy combines with, given the graph's matrix A.

    Args:
        strategy: the strategy.
        A: combination matrix of the graph, (K, K), columns sum to 1.

    Returns:
        11ᵀ/K for centralized, the identity for local, A otherwise.
    """
    agents = A.shape[0]
    if strategy == "centralized":
        return np.full((agents, agents), 1.0 / agents)
    return np.eye(agents) if strategy == "local" else A


def message(
    strategy: Strategy, w: torch.Tensor, phi: torch.Tensor, gradient: torch.Tensor
) -> torch.Tensor:
    """What an agent sends in a round.

    Args:
        strategy: the strategy.
        w: the iterate before the round, (P,).
        phi: the iterate after the local step, (P,).
        gradient: the gradient at w, (P,).

    Returns:
        One of the three, (P,).
    """
    if strategy == "centralized":
        return gradient
    return w if strategy == "consensus" else phi


def combine(weights: Sequence[float], messages: Sequence[torch.Tensor]) -> torch.Tensor:
    """Σ_l a_lk m_l, summed in the order given (a fixed order makes the result reproducible).

    Args:
        weights: the a_lk of the neighbourhood N_k (which includes k).
        messages: the m_l in the same order, each (P,).

    Returns:
        The combination, a new tensor (P,).
    """
    mixed = weights[0] * messages[0]
    for a_lk, m_l in zip(weights[1:], messages[1:], strict=True):
        mixed.add_(m_l, alpha=a_lk)
    return mixed


def update(mixed: torch.Tensor, phi: torch.Tensor, sent: torch.Tensor) -> torch.Tensor:
    """w_k⁺ = Σ_l a_lk m_l + (φ_k − m_k), all (P,)."""
    return mixed + (phi - sent)
