"""Training losses.

A training loss is `(model, x, x_adv, y, **params) -> scalar tensor`, the mean over the batch, with
no side effect but the forward passes of the model.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from raydist.adversary.objective import cross_entropies, kl_divergences, quadratics


def standard(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """Mean CE at the clean points: training without an adversary.

    Args:
        model: maps (N, ...) to logits (N, C).
        x: clean points, (N, ...).
        x_adv: not used.
        y: labels, (N,).

    Returns:
        The loss, a scalar.
    """
    return cross_entropies(model(x), y).mean()


def pgd_at(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """Mean CE at the adversarial points: min_w E max_δ ℓ(w; x + δ, y) (arXiv:1706.06083, eq. 2.1).

    Args:
        model: maps (N, ...) to logits (N, C).
        x: not used.
        x_adv: adversarial points, (N, ...).
        y: labels, (N,).

    Returns:
        The loss, a scalar.
    """
    return cross_entropies(model(x_adv), y).mean()


def trades(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """Mean of CE(f(x), y) + β KL(p(x) ‖ p(x')) (arXiv:1901.08573, eq. 5).

    The gradient flows through both arguments of the KL term. Each of the two batches passes the
    model once (clean first), so BatchNorm in train mode sees each once.

    Args:
        model: maps (N, ...) to logits (N, C).
        x: clean points, (N, ...).
        x_adv: adversarial points x', (N, ...).
        y: labels, (N,).
        beta: weight β ≥ 0 of robustness; 0 is the clean loss.

    Returns:
        The loss, a scalar.
    """
    clean, adversarial = model(x), model(x_adv)
    return (cross_entropies(clean, y) + beta * kl_divergences(clean, adversarial)).mean()


def mart(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """Mean of BCE(p(x'), y) + β KL(p(x) ‖ p(x')) (1 − p_y(x)) (MART: Wang et al., ICLR 2020).

        BCE(q, y) = −log q_y − log(1 − max_{k ≠ y} q_k)

    Misclassified points weigh more: the factor 1 − p_y(x) is large where the clean point is wrong.
    The gradient flows through all three factors. All logarithms are exact, also of probabilities
    that are 0 or 1 in floating point; the released code adds constants to them instead. The clean
    batch passes the model first, as in `trades`.

    Args:
        model: maps (N, ...) to logits (N, C), C ≥ 2.
        x: clean points, (N, ...).
        x_adv: adversarial points x', (N, ...).
        y: labels, (N,).
        beta: weight β ≥ 0 of the KL term, 5 in the paper.

    Returns:
        The loss, a scalar.
    """
    clean, adversarial = model(x), model(x_adv)
    label = y.unsqueeze(1)
    wrong = -torch.expm1(F.log_softmax(clean, dim=1).gather(1, label)).squeeze(1)  # 1 − p_y(x)
    rival = adversarial.scatter(1, label, -torch.inf).argmax(dim=1, keepdim=True)
    others = adversarial.scatter(1, rival, -torch.inf)
    log_rest: Tensor = others.logsumexp(dim=1) - adversarial.logsumexp(dim=1)  # log(1 − max q_k)
    boosted = cross_entropies(adversarial, y) - log_rest
    return (boosted + beta * kl_divergences(clean, adversarial) * wrong).mean()


def wasserstein(
    model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float, gamma: float = 0.0
) -> Tensor:
    """Mean of CE(f(x), y) + β CE(f(x'), y) + γ CE(f(x''), y) (arXiv:2502.09352, eqs. 5.1 and 5.6).

    Args:
        model: maps (N, ...) to logits (N, C).
        x: clean points, (N, ...).
        x_adv: points x' of the distributional attack, (N, ...); behind them those x'' of the
            pointwise attack if γ > 0, (2N, ...).
        y: labels, (N,).
        beta: weight β ≥ 0 of the distributional term.
        gamma: weight γ ≥ 0 of the pointwise term.

    Returns:
        The loss, a scalar.
    """
    terms = [model(part) for part in (x, *torch.split(x_adv, len(x)))]
    weights = (1.0, beta, gamma)[: len(terms)]
    each = [w * cross_entropies(z, y) for w, z in zip(weights, terms, strict=True)]
    return sum(each[1:], each[0]).mean()


def quadratic(model: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, hessian: Tensor) -> Tensor:
    """Mean of ½ rᵀ H r with r = model(x'), the task whose every answer is known.

    With the model r = w − x' this is ½ (w − x')ᵀ H (w − x').

    Args:
        model: maps (N, M) to residuals (N, M).
        x: not used.
        x_adv: adversarial points x', (N, M).
        y: not used.
        hessian: the diagonal of H, (M,), ≥ 0.

    Returns:
        The loss, a scalar.
    """
    return quadratics(model(x_adv), y, hessian).mean()
