"""A task without learning, for the engine as it is: plug-ins of model, data and loss.

The model is P weights, 0 at the start. In round 1 the gradient is −v, v the agent's pixel, so with
lr = 1 all its weights become v; in every later round it is 0 and nothing but the exchange changes
them.
"""

import numpy as np
import torch
from torch import Tensor, nn

IMAGES = 400


class Weights(nn.Module):
    """P weights; of the last one the logits are made."""

    def __init__(self, parameters: int, classes: int) -> None:
        """Begin at 0; P is `parameters`."""
        super().__init__()
        self.body = nn.Parameter(torch.zeros(parameters - 1))
        self.last = nn.Parameter(torch.zeros(1))
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, classes), all alike."""
        return x.flatten(1).mean(1, keepdim=True).expand(-1, self.classes) * self.last


def weights(shape: tuple[int, ...], classes: int, parameters: int) -> nn.Module:
    """The model."""
    return Weights(parameters, classes)


def pixels() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images of one pixel in (0, 1), all different."""
    x = np.linspace(0.1, 0.9, IMAGES, dtype=np.float32).reshape(-1, 1, 1, 1)
    y = np.arange(IMAGES) % 2
    return {"train": (x, y), "test": (x[:32], y[:32])}


def once(model: Weights, x: Tensor, x_adv: Tensor, y: Tensor) -> Tensor:
    """A loss of value v with the gradient −v in the first round, of 0 with the gradient 0 later."""
    if model.body[0].item() == 0:
        return x.mean() * (1 - model.body.sum() - model.last.sum())
    return 0 * model.last.sum()
