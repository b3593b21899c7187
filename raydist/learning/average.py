"""Averages of a model's weights over training: functions of flat vectors, one call per new model.

BatchNorm's running statistics do not belong to an average of weights: measure them anew, or average
them in the same way, as part of the same vector.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def ema(average: Tensor, w: Tensor, decay: float) -> Tensor:
    """Exponential moving average, ā ← d ā + (1 − d) w.

    From a_0 it is dⁿ a_0 + (1 − d) Σ_{i ≤ n} d^{n−i} w_i after n calls.

    Args:
        average: ā so far, (P,); the first model at the start.
        w: the new model, (P,).
        decay: d in [0, 1], such as 0.995.

    Returns:
        The new average, (P,), a new tensor without history of gradients.

    Raises:
        ValueError: decay is out of its range.

    Example:
        >>> import torch
        >>> ema(torch.tensor([1.0]), torch.tensor([2.0]), decay=0.75)
        tensor([1.2500])
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}, expected a number in [0, 1]: write 0.995")
    return decay * average.detach() + (1 - decay) * w.detach()


def swa(average: Tensor, w: Tensor, count: int) -> Tensor:
    """Stochastic weight averaging, ā ← (n ā + w) / (n + 1) (arXiv:1803.05407, algorithm 1).

    Args:
        average: mean of the n models so far, (P,); of any value for n = 0.
        w: the new model, (P,).
        count: the number n ≥ 0 of models in the average.

    Returns:
        The mean of all n + 1, (P,), a new tensor without history of gradients.

    Raises:
        ValueError: count is negative.

    Example:
        >>> import torch
        >>> swa(torch.tensor([1.0]), torch.tensor([4.0]), count=2)
        tensor([2.])
    """
    if count < 0:
        raise ValueError(f"count is {count}, expected an integer >= 0: write 0 for the first model")
    return (count * average.detach() + w.detach()) / (count + 1)


class RunningAverage:
    """The average of the models that were added so far.

    The mean over agents of their averages is the average of the centroid: both are linear.

    Attributes:
        value: (P,); the first model given until one is added.
        count: the number of models that were added.
    """

    def __init__(self, first: Tensor, decay: float | None) -> None:
        """Begin with no model in the average.

        Args:
            first: the value of the average until a model is added, (P,).
            decay: the decay of the exponential average; None: the plain mean of all models.
        """
        self.value, self.count, self._decay = first, 0, decay

    def add(self, w: Tensor) -> None:
        """One more model, (P,)."""
        if self.count == 0 or self._decay is None:
            self.value = swa(self.value, w, self.count)
        else:
            self.value = ema(self.value, w, self._decay)
        self.count += 1


class Ensemble(nn.Module):
    """The members' softmax outputs averaged, as log-probabilities (arXiv:2006.08403)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        """Take models of the same classes as members."""
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Log (1/S) Σ_s softmax(f_s(x)), (N, C): its softmax is the average."""
        logs = torch.stack([torch.log_softmax(member(x), dim=1) for member in self.members])
        return torch.logsumexp(logs, dim=0) - math.log(len(self.members))
