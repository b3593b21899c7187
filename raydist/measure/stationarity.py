"""Stationarity of an attack's last point: FOSC in its three forms."""

import torch
from torch import Tensor, nn

from raydist.adversary.attack import input_gradient, pgd
from raydist.adversary.fosc import first_order_gap, relative_gap
from raydist.adversary.threat import ThreatModel

FOSC_STEPS = 10  # FOSC is taken at the last point of PGD-10 (arXiv:2410.07675)


def stationarity(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, draw: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The last PGD-10 point and FOSC there in its three forms.

    Args:
        model: gives logits.
        x: images, (N, ...).
        y: labels, (N,).
        threat: the set of allowed points.
        draw: source of the random start.

    Returns:
        x' and, each (N,): `fosc` as published, `fosc_box` on ball ∩ box, `fosc_relative` free of
        the scale of the loss.
    """
    alpha = threat.eps / 4
    x_adv = pgd(model, x, y, threat, steps=FOSC_STEPS, alpha=alpha, generator=draw)
    g = input_gradient(model, x_adv, y)
    return x_adv, {
        "fosc": first_order_gap(x, x_adv, g, threat),
        "fosc_box": first_order_gap(x, x_adv, g, threat, box=True),
        "fosc_relative": relative_gap(x, x_adv, g, threat),
    }
