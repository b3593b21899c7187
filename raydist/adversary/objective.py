"""Per-sample functions that attacks ascend: cross-entropies, divergences, margins, ratios.

A per-sample function maps outputs to (N,). Margins and their ratios are not blinded by the scale of
the logits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def margin(outputs: Tensor, y: Tensor) -> Tensor:
    """The margin that the label lacks, max_{j≠y} z_j − z_y (arXiv:1608.04644, f6 without κ).

    Args:
        outputs: logits z, (N, C) with C ≥ 2.
        y: labels, (N,).

    Returns:
        One value per sample, (N,), < 0 for right labels.

    Example:
        >>> margin(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0]))
        tensor([-1.])
    """
    label = y.unsqueeze(1)
    other = outputs.scatter(1, label, -torch.inf).amax(dim=1)
    return other - outputs.gather(1, label).squeeze(1)


def dlr(outputs: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, −(z_y − max_{j≠y} z_j) / (z_(1) − z_(3) + 1e-12).

    z_(1) ≥ z_(2) ≥ z_(3) are the highest logits (arXiv:2003.01690). Scaling or shifting the
    logits changes nothing.

    Args:
        outputs: logits z, (N, C) with C ≥ 3.
        y: labels, (N,).

    Returns:
        One value per sample, (N,), in [−1, 0] for right labels and ≥ 0 for wrong ones.

    Raises:
        ValueError: fewer than 3 classes.

    Example:
        >>> dlr(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([0]))
        tensor([-0.5000])
    """
    if outputs.ndim != 2 or outputs.shape[1] < 3:
        raise ValueError(
            f"outputs is of shape {tuple(outputs.shape)}, expected (N, C) with C >= 3 classes for"
            ' the DLR losses: write loss="ce"'
        )
    top, classes = outputs.topk(3, dim=1)
    other = torch.where(classes[:, 0] == y, top[:, 1], top[:, 0])
    own = outputs.gather(1, y.unsqueeze(1)).squeeze(1)
    return -(own - other) / (top[:, 0] - top[:, 2] + 1e-12)


def redlr(outputs: Tensor, y: Tensor) -> Tensor:
    """Rectified DLR: `dlr` where the label is right, 0 elsewhere (arXiv:2306.09844).

    A sample that is already wrong has gradient 0, so that no budget is spent on it. Arguments as
    in `dlr`.

    Returns:
        One value per sample, (N,), ≤ 0.

    Raises:
        ValueError: fewer than 3 classes.
    """
    return torch.where(outputs.argmax(1) == y, dlr(outputs, y), 0.0)


def cross_entropies(outputs: Tensor, y: Tensor) -> Tensor:
    """CE of each sample, −log p_y, of logits (N, C) and labels (N,): (N,)."""
    return F.cross_entropy(outputs, y, reduction="none")


def kl_divergences(clean: Tensor, outputs: Tensor) -> Tensor:
    """KL(p ‖ q) of each sample, p = softmax(clean), q = softmax(outputs), logits (N, C): (N,)."""
    log_p, log_q = F.log_softmax(clean, dim=1), F.log_softmax(outputs, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)


def quadratics(outputs: Tensor, y: Tensor, hessian: Tensor) -> Tensor:
    """½ rᵀ H r of each sample, r = outputs (N, M), H = diag(hessian) (M,), no use of y: (N,)."""
    return (hessian * outputs.square()).sum(dim=1) / 2
