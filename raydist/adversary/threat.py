"""The threat model: which perturbations an adversary may use."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


def rows(t: Tensor) -> Tensor:
    """One row per sample: (N, ...) as (N, D)."""
    return t.flatten(1) if t.ndim > 1 else t.unsqueeze(1)


@dataclass(frozen=True)
class ThreatModel:
    """The set of allowed points around a clean one: a norm ball intersected with a box.

    S_ε(x) = {x + δ : ‖δ‖ ≤ ε} ∩ [low, high]^D. All methods take tensors of shape (N, ...), one
    sample per row, and expect x inside the box.

    Args:
        norm: "linf" or "l2".
        eps: the radius ε ≥ 0, in units of x (a fraction of the range for pixels, such as 8 / 255).
        bounds: (low, high), the range of one coordinate; infinite where there is none.

    Raises:
        ValueError: unknown norm, negative or infinite eps, or bounds out of order.

    Example:
        >>> threat = ThreatModel("linf", 0.25)
        >>> threat.project(torch.tensor([[1.0, 1.0]]), torch.tensor([[0.5, 0.875]]))
        tensor([[0.7500, 1.0000]])
    """

    norm: Norm
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(f'norm is {self.norm!r}, expected one of: write "linf" or "l2"')
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps is {self.eps}, expected a finite number >= 0: write 8 / 255")
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"bounds is {self.bounds}, expected low < high: write (0.0, 1.0)")

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bring points back into the ball, then into the box; the result lies in both.

        For l∞ this is the Euclidean projection on S_ε(x). For l2 it is the projection on the ball
        followed by that on the box, which need not be the nearest point of the intersection.

        Args:
            x_adv: points of any distance, (N, ...).
            x: the clean points, centres of the balls, (N, ...).

        Returns:
            Points of S_ε(x), (N, ...).
        """
        if self.norm == "linf":
            inside = torch.clamp(x_adv, x - self.eps, x + self.eps)
        else:
            delta = rows(x_adv - x)
            length = self.norm_of(delta).unsqueeze(1)
            shrink = torch.where(length > self.eps, self.eps / length, 1.0)
            inside = x + (shrink * delta).view(x.shape)
        return inside.clamp(*self.bounds)

    def random_start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Points drawn uniformly from the ball around x, clipped to the box.

        Args:
            x: the clean points, (N, ...).
            generator: source of the draw; on x's device it costs no transfer.

        Returns:
            The points x + δ (not δ), (N, ...).
        """
        device, dtype = generator.device, x.dtype
        if self.norm == "linf":
            unit = 2 * torch.rand(x.shape, generator=generator, device=device, dtype=dtype) - 1
        else:
            # a uniform direction, at a radius of density r^(D - 1)
            normal = torch.randn(x.shape, generator=generator, device=device, dtype=dtype)
            direction = rows(self.steepest(normal))
            radius = torch.rand(len(x), 1, generator=generator, device=device, dtype=dtype)
            unit = (radius ** (1 / direction.shape[1]) * direction).view(x.shape)
        return (x + self.eps * unit.to(x.device)).clamp(*self.bounds)

    def steepest(self, g: Tensor) -> Tensor:
        """The direction of steepest ascent, argmax ⟨d, g⟩ over ‖d‖ ≤ 1.

        sign(g) for l∞, g / ‖g‖₂ for l2, and 0 where the gradient is 0.

        Args:
            g: gradients, (N, ...).

        Returns:
            Directions, (N, ...).
        """
        if self.norm == "linf":
            return g.sign()
        flat = rows(g)
        # scaled to max |g_i| = 1 first, so that the square of a tiny gradient does not vanish
        largest = flat.abs().amax(dim=1, keepdim=True)
        scaled = flat / torch.where(largest > 0, largest, 1.0)
        length = self.norm_of(scaled).unsqueeze(1)  # ≥ 1, or 0
        return (scaled / length.clamp_min(1.0)).view(g.shape)

    def norm_of(self, delta: Tensor) -> Tensor:
        """‖δ‖ of each sample in the norm of the ball: (N, ...) to (N,)."""
        order = math.inf if self.norm == "linf" else 2
        lengths: Tensor = torch.linalg.vector_norm(rows(delta), ord=order, dim=1)
        return lengths

    def dual_norm(self, g: Tensor) -> Tensor:
        """‖g‖_* of each sample, max ⟨d, g⟩ over ‖d‖ ≤ 1: l1 for l∞, l2 for l2; (N,)."""
        order = 1 if self.norm == "linf" else 2
        lengths: Tensor = torch.linalg.vector_norm(rows(g), ord=order, dim=1)
        return lengths
