"""Result of an ensemble of attacks on each image: plain NumPy, to be stored and read."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
FEW_CLASSES = ("apgd-ce", "fab", "square")

FLAGS = {
    "few-classes": "not the standard ensemble: its targeted DLR loss needs at least 4 classes",
    "partial": "not the standard ensemble: other attacks than its four, in its order, were run",
    "randomised": "the logits of one input differ from call to call",
    "probabilities": "the outputs are probabilities; attacks need logits",
    "dynamic": "the forward pass computes gradients itself",
    "zero-gradient": "some points have a zero input gradient",
    "square-stronger": "Square, which sees no gradient, broke what the others left",
}

Mask = NDArray[np.bool_]


def fraction(mask: Mask) -> float:
    """The share of True; nan without images."""
    return float(mask.mean()) if mask.size else math.nan


@dataclass(frozen=True, eq=False)
class Cascade:
    """Result of the ensemble on each image.

    Attributes:
        attacks: the attacks, in the order in which they were run.
        broken_by: (N,) int8: -1 robust to all, 0 misclassified without attack, p broken by the
            p-th attack. An attack only sees what the ones before it left.
        seconds: wall seconds of each attack.
        observed: flags that were raised while running; `flags` is the complete list.
    """

    attacks: tuple[str, ...]
    broken_by: NDArray[np.int8]
    seconds: tuple[float, ...]
    observed: frozenset[str]

    @property
    def standard(self) -> bool:
        """True for the standard ensemble: only that one is called AutoAttack."""
        return self.attacks == STANDARD

    @property
    def robust(self) -> Mask:
        """(N,): True where no attack succeeded."""
        return np.equal(self.broken_by, -1)

    @property
    def left_by(self) -> dict[str, Mask]:
        """(N,) masks of what is right after each attack of the cascade, first of all "clean"."""
        broken_by = np.where(self.robust, len(self.attacks) + 1, self.broken_by)
        return {name: broken_by > p for p, name in enumerate(("clean", *self.attacks))}

    @property
    def accuracies(self) -> dict[str, float]:
        """Accuracy after each attack of the cascade, "clean" first; nan without images."""
        return {name: fraction(mask) for name, mask in self.left_by.items()}

    @property
    def flags(self) -> tuple[str, ...]:
        """The names in `FLAGS` that hold, in that order."""
        raised = set(self.observed)
        # more than 0.2 points, as in the package; on all images, so that shards do not matter
        position = self.attacks.index("square") + 1 if "square" in self.attacks else 0
        if position > 1 and fraction(self.broken_by == position) > 0.002:
            raised.add("square-stronger")
        return tuple(name for name in FLAGS if name in raised)
