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

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

Strategy = Literal["centralized", "consensus", "diffusion", "local"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
BLOCK = 2**17  # numbers, which the cache of a core keeps while the messages pass through it


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


def sent(strategy: Strategy) -> Literal["w", "phi", "gradient"]:
    """The kind of message m that an agent sends in a round.

    Args:
        strategy: the strategy.

    Returns:
        "w": the iterate before the local step; "phi": the one after it; "gradient": at w.
    """
    if strategy == "centralized":
        return "gradient"
    return "w" if strategy == "consensus" else "phi"


def combine(
    weights: Sequence[float], messages: Sequence[torch.Tensor], out: torch.Tensor
) -> torch.Tensor:
    """Σ_l a_lk m_l, summed in the order given (a fixed order makes the result reproducible).

    Args:
        weights: the a_lk of the neighbourhood N_k (which includes k).
        messages: the m_l in the same order, each (P,).
        out: where the combination goes, (P,); may be one of the messages.

    Returns:
        `out`.
    """
    for here, *theirs in _blocks(out, *messages):
        _combine(weights, theirs, here)
    return out


def update(
    weights: Sequence[float],
    messages: Sequence[torch.Tensor],
    phi: torch.Tensor,
    sent: torch.Tensor | None,
) -> None:
    """w_k⁺ = Σ_l a_lk m_l + (φ_k − m_k), in place of φ_k.

    Args:
        weights: the weights, as in `combine`.
        messages: the messages, as in `combine`.
        phi: φ_k, (P,), becomes w_k⁺; may be one of the messages.
        sent: m_k, (P,); None if that is φ_k.
    """
    if sent is None:
        combine(weights, messages, phi)
        return
    for here, mine, *theirs in _blocks(phi, sent, *messages):
        own = here - mine
        _combine(weights, theirs, here)
        here.add_(own)


def _combine(weights: Sequence[float], messages: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    first, *others = [m.clone() if m.data_ptr() == out.data_ptr() else m for m in messages]
    torch.mul(first, weights[0], out=out)
    for a_lk, m_l in zip(weights[1:], others, strict=True):
        out.add_(m_l, alpha=a_lk)


def _blocks(*vectors: torch.Tensor) -> Iterable[Sequence[torch.Tensor]]:
    """Vectors part by part, which a CPU sums up within its cache; elsewhere as they are."""
    if vectors[0].numel() <= BLOCK or vectors[0].device.type != "cpu":
        return [vectors]
    parts = [vector.split(BLOCK) for vector in vectors]  # type: ignore[no-untyped-call]
    return zip(*parts, strict=True)
