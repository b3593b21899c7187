"""The combination of a round, w_k⁺ = Σ_l a_lk m_l + (φ_k − m_k), on vectors of weights."""

from collections.abc import Iterable, Sequence

import torch

BLOCK = 2**17  # numbers, which the cache of a core keeps while the messages pass through it


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
