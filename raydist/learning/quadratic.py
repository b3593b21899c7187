"""A task with exact answers: quadratic risks, normal samples, exact worst perturbations.

Agent k draws x ~ N(c_k, s² I) and has the loss, with a diagonal Hessian h_k and no pixel box,

    max over |δ_i| ≤ ε of 1/2 (w − x − δ)' H_k (w − x − δ) = 1/2 Σ_i h_ki (|w_i − x_i| + ε)²,

ε = ε_k.

With m = w − c_k and per coordinate (e = 2Φ(m/s) − 1 = erf(m / (s√2)))

    E|w − x| = s √(2/π) exp(−m²/2s²) + m e,   d/dm E|w − x| = e,   d²/dm² = (2/s) φ(m/s),

risk, gradient, Hessian and gradient noise follow in closed form. Adversarial training sharpens the
risk: its Hessian is above H_k wherever ε > 0.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Quadratic:
    """The quadratic risks of K agents in M coordinates.

    Args:
        centers: means c_k of the samples, of shape (K, M).
        hessian: diagonals of H_k, positive, of shape (M,) for all agents or (K, M).
        noise: standard deviation s ≥ 0 of the samples.
        eps: radius ε ≥ 0 of the l∞ perturbation, for all agents or of each, (K,).

    Raises:
        ValueError: a shape or a range is wrong.

    Example:
        >>> task = Quadratic(np.array([[1.0, 0.0], [-1.0, 2.0]]), np.array([1.0, 0.5]))
        >>> task.minimiser().tolist(), task.total_risk(task.minimiser())
        ([0.0, 1.0], 0.75)
    """

    centers: Vector
    hessian: Vector
    noise: float = 0.0
    eps: float | Vector = 0.0

    def __post_init__(self) -> None:
        centers = np.array(self.centers, np.float64)
        hessian = np.array(self.hessian, np.float64)
        if centers.ndim != 2 or centers.size == 0:
            raise ValueError(
                f"centers have shape {centers.shape}, expected (K, M): write one list for each "
                "agent, [[1, 0], [0, 1]]"
            )
        agents, size = centers.shape
        if hessian.shape not in ((size,), (agents, size)) or not np.all(hessian > 0):
            raise ValueError(
                f"hessian is {hessian.tolist()}, expected {size} numbers above 0, or {agents} "
                "lists of that many"
            )
        eps = np.array(self.eps, np.float64)
        if not (0 <= self.noise < math.inf and np.all((eps >= 0) & (eps < math.inf))):
            raise ValueError(f"noise is {self.noise}, eps is {self.eps}, expected 0 or more")
        if eps.shape not in ((), (agents,)):
            raise ValueError(f"eps has shape {eps.shape}, expected one number or {agents}")
        object.__setattr__(self, "centers", centers)
        object.__setattr__(self, "hessian", np.broadcast_to(hessian, centers.shape).copy())

    def risk(self, k: int, w: Vector) -> float:
        """J_k(w) = Σ h [(m² + s²)/2 + ε E|w − x| + ε²/2].

        Args:
            k: the agent.
            w: the point, of shape (M,).

        Returns:
            The expected worst loss.
        """
        m: Vector = w - self.centers[k]
        s, eps = self.noise, self._budget(k)
        distance = self._bump(m) + m * self._slope(m)  # E|w − x|
        losses = (m**2 + s**2) / 2 + eps * distance + eps**2 / 2
        return float(np.sum(self.hessian[k] * losses))

    def gradient(self, k: int, w: Vector) -> Vector:
        """∇J_k(w) = h (m + ε e); with s = 0 the subgradient with sign(0) = 0.

        Args:
            k: the agent.
            w: the point, of shape (M,).

        Returns:
            Of shape (M,).
        """
        h: Vector = self.hessian[k]
        m: Vector = w - self.centers[k]
        return h * (m + self._budget(k) * self._slope(m))

    def hessian_at(self, k: int, w: Vector) -> Vector:
        """∇²J_k(w) = h (1 + (2ε/s) φ(m/s)); with s = 0 it is h, away from the kink at m = 0.

        Args:
            k: the agent.
            w: the point, of shape (M,).

        Returns:
            The diagonal, of shape (M,).
        """
        h: Vector = self.hessian[k]
        if self.noise == 0:
            return h.copy()
        return h * (1 + self._budget(k) * self._bump(w - self.centers[k]) / self.noise**2)

    def noise_covariance(self, k: int, w: Vector) -> Vector:
        """Covariance of the gradient at one sample, h² (s² + 2ε (E|w − x| − m e) + ε² (1 − e²)).

        It is H² s² for ε = 0. The mean over a batch of B has 1/B of it.

        Args:
            k: the agent.
            w: the point, of shape (M,).

        Returns:
            The diagonal, of shape (M,); off it the covariance is 0.
        """
        h: Vector = self.hessian[k]
        if self.noise == 0:
            return np.zeros_like(h)
        m, s, eps = w - self.centers[k], self.noise, self._budget(k)
        return h**2 * (s**2 + 2 * eps * self._bump(m) + eps**2 * (1 - self._slope(m) ** 2))

    def total_risk(self, w: Vector) -> float:
        """J(w) = (1/K) Σ_k J_k(w), for w of shape (M,)."""
        return float(np.mean([self.risk(k, w) for k in range(len(self.centers))]))

    def minimiser(self) -> Vector:
        """The minimiser w* of J, of shape (M,)."""
        return self._minimiser.copy()

    def excess_risk(self, w: Vector) -> float:
        """J(w) − J(w*), for w of shape (M,)."""
        if not np.any(self.eps):  # without the cancellation of two risks
            return float(0.5 * np.sum(self.hessian.mean(axis=0) * (w - self._minimiser) ** 2))
        return self.total_risk(w) - self.total_risk(self._minimiser)

    def sample(self, k: int, batch: int, rng: np.random.Generator) -> Vector:
        """Samples x ~ N(c_k, s² I), exactly c_k for s = 0.

        Args:
            k: the agent.
            batch: the number of samples.
            rng: where the draws come from.

        Returns:
            Of shape (batch, M).
        """
        center: Vector = self.centers[k]
        return center + self.noise * rng.standard_normal((batch, center.size))

    @cached_property
    def _minimiser(self) -> Vector:
        if not np.any(self.eps):
            closed: Vector = np.sum(self.hessian * self.centers, axis=0) / self.hessian.sum(axis=0)
            return closed
        # J is a sum over coordinates and its gradient increases in each, from ≤ 0 at the least
        # center to ≥ 0 at the largest: bisection, until the interval is below rounding
        low, high = self.centers.min(axis=0), self.centers.max(axis=0)
        for _ in range(100):
            middle: Vector = (low + high) / 2
            slope = np.sum([self.gradient(k, middle) for k in range(len(self.centers))], axis=0)
            low, high = np.where(slope < 0, middle, low), np.where(slope < 0, high, middle)
        return middle

    def _budget(self, k: int) -> float:
        """ε_k."""
        return float(np.broadcast_to(self.eps, len(self.centers))[k])

    def _slope(self, m: Vector) -> Vector:
        """E = 2Φ(m/s) − 1, the expected sign of w − x."""
        if self.noise == 0:
            return np.sign(m)
        expected: Vector = torch.erf(torch.tensor(m / (self.noise * math.sqrt(2)))).numpy()
        return expected

    def _bump(self, m: Vector) -> Vector:
        """E|w − x| − m e = s √(2/π) exp(−m²/2s²)."""
        if self.noise == 0:
            return np.zeros_like(m)
        density: Vector = np.exp(-((m / self.noise) ** 2) / 2)
        return self.noise * math.sqrt(2 / math.pi) * density
