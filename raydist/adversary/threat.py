"""The threat model: which perturbations an adversary may use."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]

ORDER: dict[Norm, float] = {"linf": math.inf, "l2": 2.0, "l1": 1.0}
ROUNDING = 1e-5  # of points that lie on the sphere, in float32
DUAL_ORDER: dict[Norm, float] = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


def rows(t: Tensor) -> Tensor:
    """One row per sample: (N, ...) as (N, D)."""
    return t.flatten(1) if t.ndim > 1 else t.unsqueeze(1)


@dataclass(frozen=True)
class ThreatModel:
    """The set of allowed points around a clean one: a norm ball intersected with a box.

    S_ε(x) = {x + δ : ‖δ‖ ≤ ε} ∩ [low, high]^D. All methods take tensors of shape (N, ...), one
    sample per row, and expect x inside the box.

    Args:
        norm: "linf", "l2" or "l1".
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
            raise ValueError(f'norm is {self.norm!r}, expected one of: write "linf", "l2" or "l1"')
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise ValueError(f"eps is {self.eps}, expected a finite number >= 0: write 8 / 255")
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"bounds is {self.bounds}, expected low < high: write (0.0, 1.0)")

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Bring points back into the ball, then into the box; the result lies in both.

        For l∞ this is the Euclidean projection on S_ε(x). For l2 and l1 it is the projection on the
        ball followed by that on the box, which need not be the nearest point of the intersection.
        That on the l1 ball is sign(δ_i) max(|δ_i| − θ, 0), with |δ|_(1) ≥ |δ|_(2) ≥ … and

            θ = max(0, max_j (|δ|_(1) + … + |δ|_(j) − ε) / j)     (Duchi et al., ICML 2008)

        Args:
            x_adv: points of any distance, (N, ...).
            x: the clean points, centres of the balls, (N, ...).

        Returns:
            Points of S_ε(x), (N, ...).
        """
        if self.norm == "linf":
            inside = torch.clamp(x_adv, x - self.eps, x + self.eps)
        elif self.norm == "l1":
            delta = rows(x_adv - x)
            largest = delta.abs().sort(dim=1, descending=True).values.cumsum(dim=1)
            count = torch.arange(1, delta.shape[1] + 1, device=x.device, dtype=x.dtype)
            theta = ((largest - self.eps) / count).amax(dim=1, keepdim=True).clamp_min(0)
            inside = x + (delta.sign() * (delta.abs() - theta).clamp_min(0)).view(x.shape)
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
            # a draw of density exp(-‖δ‖^p) has a uniform direction; the radius density r^(D - 1)
            if self.norm == "l2":
                normal = torch.randn(x.shape, generator=generator, device=device, dtype=dtype)
                direction = rows(self.steepest(normal))
            else:
                pair = torch.empty((2, *x.shape), device=device, dtype=dtype)
                laplace = rows(torch.sub(*pair.exponential_(generator=generator)))
                direction = laplace / self.norm_of(laplace).unsqueeze(1)
            radius = torch.rand(len(x), 1, generator=generator, device=device, dtype=dtype)
            unit = (radius ** (1 / direction.shape[1]) * direction).view(x.shape)
        return (x + self.eps * unit.to(x.device)).clamp(*self.bounds)

    def steepest(self, g: Tensor, x: Tensor | None = None) -> Tensor:
        """The direction of steepest ascent, argmax ⟨d, g⟩ over ‖d‖ ≤ 1.

        sign(g) for l∞, g / ‖g‖₂ for l2, for l1 sign(g_i) at the first i of largest |g_i| and 0
        elsewhere; and 0 where the gradient is 0.

        Args:
            g: gradients, (N, ...).
            x: points inside the box, (N, ...), where a step would begin: for l1, coordinates at
                the end of the box to which g points are passed over, since no step moves them.

        Returns:
            Directions, (N, ...).
        """
        if self.norm == "linf":
            return g.sign()
        flat = rows(g)
        if self.norm == "l1":
            if x is not None:
                low, high = self.bounds
                flat = flat.masked_fill(rows(torch.where(g > 0, x >= high, x <= low)), 0.0)
            place = flat.abs().argmax(dim=1, keepdim=True)
            one = torch.zeros_like(flat).scatter_(1, place, flat.gather(1, place).sign())
            return one.view(g.shape)
        # scaled to max |g_i| = 1 first, so that the square of a tiny gradient does not vanish
        largest = flat.abs().amax(dim=1, keepdim=True)
        scaled = flat / torch.where(largest > 0, largest, 1.0)
        length = self.norm_of(scaled).unsqueeze(1)  # ≥ 1, or 0
        return (scaled / length.clamp_min(1.0)).view(g.shape)

    def outside(self, x_adv: Tensor, x: Tensor) -> str:
        """Reason why points are not allowed: they leave ball or box by more than rounding does.

        Args:
            x_adv: the points, (N, ...).
            x: the clean points, (N, ...).

        Returns:
            In words, "" if all are allowed.
        """
        low, high = self.bounds
        slack = ROUNDING * max(1.0, float(x.abs().max()) if x.numel() else 0.0)
        farthest = float(self.norm_of(x_adv - x).max()) if len(x) else 0.0
        if not farthest <= self.eps * (1 + ROUNDING) + slack:  # nan, too
            return f"lie {farthest:g} from the images in {self.norm}, beyond eps = {self.eps:g}"
        if not bool(((x_adv >= low - slack) & (x_adv <= high + slack)).all()):
            return f"leave the box from {low:g} to {high:g}"
        return ""

    def norm_of(self, delta: Tensor) -> Tensor:
        """‖δ‖ of each sample in the norm of the ball: (N, ...) to (N,)."""
        lengths: Tensor = torch.linalg.vector_norm(rows(delta), ord=ORDER[self.norm], dim=1)
        return lengths

    def dual_norm(self, g: Tensor) -> Tensor:
        """‖g‖_* of each sample, max ⟨d, g⟩ over ‖d‖ ≤ 1: l1 for l∞, l2 for l2, l∞ for l1; (N,)."""
        lengths: Tensor = torch.linalg.vector_norm(rows(g), ord=DUAL_ORDER[self.norm], dim=1)
        return lengths
