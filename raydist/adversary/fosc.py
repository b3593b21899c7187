"""The first-order stationary condition (FOSC) of an attack.

    c(x') = max_{‖d‖ ≤ ε} ⟨d, g⟩ − ⟨x' − x, g⟩ = ε‖g‖_* − ⟨x' − x, g⟩,   g = ∇_x' ℓ(x')

(arXiv:2112.08304). It is ≥ 0, and 0 where no first-order step
inside the ball gains. x is the clean point, not the random start, and ℓ is the loss of one sample.

FOSC is large on rugged losses and 0 where the gradient vanishes: a model with saturated outputs
looks robust to gradient attacks and has FOSC 0, so compare with an attack without gradients too.
"""

import torch
from torch import Tensor, nn

from raydist.adversary.attack import input_gradient
from raydist.adversary.threat import ThreatModel, rows

BISECTIONS = 60  # on a logarithmic scale: past the precision of float64 for any ratio below 1e30


def fosc(
    model: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    threat: ThreatModel,
    box: bool = False,
) -> Tensor:
    """FOSC of each sample for the cross-entropy, with one forward and one input gradient.

    Args:
        model: maps (N, ...) to logits (N, C).
        x: clean points inside the box, (N, ...).
        x_adv: adversarial points x' inside ball and box, (N, ...).
        y: labels, (N,).
        threat: the set of allowed points.
        box: whether the maximum is over ball ∩ box instead of the ball, as published.

    Returns:
        c(x'), (N,), ≥ 0, in units of the loss.
    """
    return first_order_gap(x, x_adv, input_gradient(model, x_adv, y), threat, box)


def first_order_gap(
    x: Tensor, x_adv: Tensor, grad: Tensor, threat: ThreatModel, box: bool = False
) -> Tensor:
    """FOSC of each sample from a given gradient at x'.

    With box, the maximum is over d with ‖d‖ ≤ ε and x + d in the box; it is at most the published
    one, whose floor from coordinates at the end of their range it does not have.

    Args:
        x: clean points inside the box, (N, ...).
        x_adv: adversarial points x', (N, ...).
        grad: gradient of each sample's loss at x', (N, ...).
        threat: the set of allowed points.
        box: whether the maximum respects the box.

    Returns:
        c(x'), (N,), ≥ 0, in units of the loss.

    Example:
        >>> x, grad = torch.tensor([[0.5, 1.0]]), torch.tensor([[2.0, 4.0]])
        >>> threat = ThreatModel("linf", 0.25)
        >>> first_order_gap(x, x, grad, threat), first_order_gap(x, x, grad, threat, box=True)
        (tensor([1.5000]), tensor([0.5000]))
    """
    highest = threat.eps * threat.dual_norm(grad)
    if box:
        in_box = (rows(grad) * _box_maximiser(rows(x), rows(grad), threat)).sum(dim=1)
        highest = torch.minimum(highest, in_box)  # a smaller set; rounding must not tell otherwise
    reached = (rows(x_adv - x) * rows(grad)).sum(dim=1)
    return (highest - reached).clamp_min(0)  # below 0 only by rounding, for x' in the set


def relative_gap(x: Tensor, x_adv: Tensor, grad: Tensor, threat: ThreatModel) -> Tensor:
    """The gap on ball ∩ box divided by ε‖g‖_*: free of the scale of the loss.

    Args:
        x: clean points inside the box, (N, ...).
        x_adv: adversarial points x', (N, ...).
        grad: gradient of each sample's loss at x', (N, ...).
        threat: the set of allowed points.

    Returns:
        The share of the first-order gain not yet taken, (N,), in [0, 2]; 0 where g = 0 or ε = 0.
    """
    scale = threat.eps * threat.dual_norm(grad)
    gap = first_order_gap(x, x_adv, grad, threat, box=True)
    return torch.where(scale == 0, 0.0, gap / scale)


def _box_maximiser(x: Tensor, g: Tensor, threat: ThreatModel) -> Tensor:
    """The d of largest ⟨g, d⟩ with ‖d‖ ≤ ε and x + d in the box, for rows x, g (N, D).

    |d_i| ≤ room_i, what ball and box leave in the direction of g_i. For l∞ that is all. For l1 the
    coordinates of largest |g_i| take their rooms until ε is spent. For l2 the
    multiplier of the ball gives |d_i| = min(λ |g_i|, room_i), with λ such that ‖d‖₂ = ε, or
    unbounded if the corner |d| = room lies inside the ball. ‖d‖₂ grows with λ: bisection.

    Returns:
        The maximisers, (N, D).
    """
    low, high = threat.bounds
    room = torch.where(g > 0, high - x, x - low).clamp(max=threat.eps)
    if threat.norm == "linf":
        return g.sign() * room
    if threat.norm == "l1":
        order = g.abs().argsort(dim=1, descending=True)
        spent = room.gather(1, order).cumsum(dim=1).clamp(max=threat.eps)
        share = spent.diff(dim=1, prepend=torch.zeros_like(spent[:, :1]))
        return g.sign() * torch.zeros_like(g).scatter(1, order, share)
    slope = threat.steepest(g).abs()
    inner = torch.full_like(slope[:, :1], threat.eps)  # ‖ε g/‖g‖‖ = ε: inside
    full = torch.where(slope > 0, room / slope, 0.0).amax(dim=1, keepdim=True)
    outer = torch.maximum(full, inner)  # every coordinate at its room
    for _ in range(BISECTIONS):
        middle = (inner * outer).sqrt()
        inside = threat.norm_of(torch.minimum(middle * slope, room)).unsqueeze(1) <= threat.eps
        inner, outer = torch.where(inside, middle, inner), torch.where(inside, outer, middle)
    return g.sign() * torch.minimum(inner * slope, room)
