"""Validation of a model in training, in parts that agents share.

Each agent measures a part of the images and returns plain sums; `add` puts the parts together, so
that the numbers do not depend on the division of work. `raydist.engine.agent.verdicts` does so at
the end of training, image by image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.adversary.attack import fgsm
from raydist.adversary.objective import cross_entropies
from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import Experiment
from raydist.learning.data import to_tensor
from raydist.measure.stationarity import stationarity
from raydist.seeding import Purpose, torch_generator
from raydist.vector import frozen

Sums = dict[str, float]


@dataclass(frozen=True)
class Part:
    """Some images of a split.

    Attributes:
        index: their positions in the split.
        x: all images of the split, (N, C, H, W), in units of `scale`.
        y: all labels, (N,).
        scale: the factor that brings pixels to [0, 1].
        device: the device to compute on.
        seen: the agent's transform of images in [0, 1]; None: no transform.
    """

    index: NDArray[np.int64]
    x: NDArray[Any]
    y: NDArray[np.int64]
    scale: float
    device: torch.device
    seen: Callable[[Tensor], Tensor] | None = None

    def tensors(self, index: NDArray[np.int64], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and labels at positions of the split."""
        x = to_tensor(self.x[index], self.scale, dtype, self.device)
        images = x if self.seen is None else self.seen(x)
        return images, torch.tensor(self.y[index], device=self.device)


def validate(model: nn.Module, part: Part, threat: ThreatModel, config: Experiment, n: int) -> Sums:
    """Sums over some validation images; `add` makes means of them.

    Args:
        model: the model, which returns logits.
        part: the images.
        threat: the set of allowed points.
        config: the experiment.
        n: the round, for the draws.

    Returns:
        `count` and the sums of `val_loss` (clean cross-entropy), `val_clean_acc`, `val_pgd10_acc`,
        `val_fgsm_acc`, `val_fosc`, `val_fosc_box`, `val_fosc_relative`.
    """
    total: Sums = {"count": float(len(part.index))}
    agent = int(part.index[0]) if len(part.index) else 0
    draw = torch_generator(Purpose.EVALUATE, config.seed, agent, n, part.device)
    dtype = next(model.parameters()).dtype
    for first in range(0, len(part.index), config.evaluate.batch):
        x, y = part.tensors(part.index[first : first + config.evaluate.batch], dtype)
        x_adv, gaps = stationarity(model, x, y, threat, draw)
        x_fgsm = fgsm(model, x, y, threat)
        with frozen(model), torch.no_grad():
            logits, attacked, stepped = model(x), model(x_adv), model(x_fgsm)
        right = logits.argmax(1) == y
        sums = {
            "val_loss": cross_entropies(logits, y),
            "val_clean_acc": right,
            "val_pgd10_acc": right & (attacked.argmax(1) == y),
            "val_fgsm_acc": right & (stepped.argmax(1) == y),
            **{f"val_{name}": gap for name, gap in gaps.items()},
        }
        for name, values in sums.items():
            total[name] = total.get(name, 0.0) + float(values.sum())
    return total


def add(parts: Sequence[Sums]) -> Sums:
    """Means over all images, from the sums over parts of them."""
    count = sum(part.get("count", 0.0) for part in parts)
    names = dict.fromkeys(name for part in parts for name in part if name != "count")
    return {name: sum(part.get(name, 0.0) for part in parts) / count for name in names}
