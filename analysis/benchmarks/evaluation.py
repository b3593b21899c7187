"""AutoAttack as it is run here, against the package pyautoattack alone, on the same model.

CPU seconds of one thread, ABBA in one run; images that pass the model are counted. The model is a
small network on digits, trained by two agents; the images are the first that it is tested on. What
frozen parameters save shows where the time goes into passes: in a PreAct ResNet-18.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyautoattack
import torch
from numpy.typing import NDArray
from step import Step, alternate
from targets import Row, row, tell
from torch import Tensor, nn

from raydist.adversary.threat import ThreatModel
from raydist.config.experiment import validate
from raydist.engine.agent.risk import one_thread
from raydist.engine.driver import train
from raydist.engine.plan import make_plan
from raydist.engine.pool.pool import LocalPool
from raydist.learning.data import load, to_tensor
from raydist.learning.model import build
from raydist.measure.autoattack import autoattack
from raydist.measure.cascade import STANDARD, Cascade

EPS, CLASSES, BATCH, SEED = 0.1, 10, 128, 0
TINY = 1e-6  # a budget that breaks nothing
SHARDS = 4
GRADIENTS = STANDARD[:-1]  # all but Square
WHOLE = "AutoAttack: the adapter against the package alone"
FROZEN = "AutoAttack's gradient attacks, parameters frozen, against the package alone"


class Counted(nn.Module):
    """A model that counts the images that pass it."""

    def __init__(self, model: nn.Module) -> None:
        """Count from 0."""
        super().__init__()
        self.model, self.images = model, 0

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        self.images += len(x)
        logits: Tensor = self.model(x)
        return logits


def trained(rounds: int = 60) -> tuple[nn.Module, Tensor, Tensor]:
    """A model in eval mode, its parameters as training leaves them, and all test images."""
    tree = {
        "topology": {"kind": "complete", "agents": 2},
        "rounds": rounds,
        "threat": {"eps": EPS},
        "attack": {"steps": 5},
        "optim": {"lr": 0.02, "momentum": 0.9},
        "evaluate": {"validation_images": 2, "test_images": 2, "autoattack": 0},
    }
    plan = make_plan(validate(tree))
    pool = LocalPool(plan)
    for _ in train(pool, plan):
        pass
    assert plan.data is not None
    x, y = plan.data.test
    return pool.agents[0].flat.module.eval(), to_tensor(x, plan.data.scale), torch.from_numpy(y)


def deep(images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in eval mode, images of CIFAR-10, and as labels what it takes them for."""
    data = load("cifar10")
    model = build("preact-resnet-18", data.shape, CLASSES, width=0.25, seed=0).eval()
    x = to_tensor(data.test[0][:images], data.scale)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def ours(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[str] | None = None,
    eps: float = EPS,
) -> Cascade:
    """AutoAttack as an agent runs it."""
    threat = ThreatModel("linf", eps)
    return autoattack(model, x, y, threat, classes=CLASSES, batch=BATCH, seed=SEED, attacks=attacks)


def package(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[str] | None = None,
    eps: float = EPS,
) -> NDArray[np.bool_]:
    """The package's own evaluation: True where its last points are right."""
    alone = pyautoattack.AutoAttack(model, eps=eps, norm="Linf", seed=SEED, version="standard")
    if attacks is not None:
        alone.attacks_to_run = list(attacks)
    x_adv, _ = alone.run_standard_evaluation(x, y, batch_size=BATCH)
    with torch.no_grad():
        right: NDArray[np.bool_] = (model(x_adv).argmax(1) == y).numpy()
    return right


def cost(
    target: str,
    limit: float,
    images: tuple[nn.Module, Tensor, Tensor],
    how: tuple[Sequence[str] | None, float],
    repeats: int,
    about: str,
) -> Row:
    """Seconds of the two.

    Args:
        target: its name.
        limit: on the ratio.
        images: the model, images and labels.
        how: the attacks and the budget.
        repeats: of each.
        about: what the images and the model are.

    Returns:
        The row.
    """
    steps: dict[str, Step] = {
        "ours": partial(ours, *images, *how),
        "alone": partial(package, *images, *how),
    }
    spent = alternate(steps, repeats)
    note = f"{len(images[1])} images of {about}, 1 thread"
    return row(target, spent["ours"], "CPU s", limit=limit, reference=spent["alone"], note=note)


def survivors(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Row]:
    """Images that pass the model: each attack sees what the ones before it left, and no other."""
    here, there = Counted(model).eval(), Counted(model).eval()
    verdict, right = ours(here, x, y), package(there, x, y)
    same = int((verdict.robust == right).sum())
    left = ", ".join(f"{name} {int(mask.sum())}" for name, mask in verdict.left_by.items())
    yield row(
        "images that pass the model in AutoAttack",
        here.images,
        "images",
        limit=1.01,
        reference=there.images,
        note=f"left after each: {left}; verdicts equal on {same} of {len(x)}",
    )


def balance(model: nn.Module, x: Tensor, y: Tensor) -> Iterator[Row]:
    """Every S-th image for each of S agents, as agents share them out."""
    passed = []
    for shard in range(SHARDS):
        counted = Counted(model).eval()
        ours(counted, x[shard::SHARDS], y[shard::SHARDS])
        passed.append(counted.images)
    yield row(
        "the busiest agent in AutoAttack against the mean",
        max(passed),
        "images that pass the model",
        limit=1.25,
        reference=float(np.mean(passed)),
        note=f"{SHARDS} agents, {len(x)} images",
    )


def targets(quick: bool) -> Iterator[Row]:
    """The rows as they are known, with one thread."""
    with one_thread():
        model, x, y = trained()
        model = copy.deepcopy(model)  # its parameters are its own, and want gradients
        images = 64 if quick else 128
        x, y = x[:images], y[:images]
        yield from survivors(model, x, y)
        yield from balance(model, x, y)
        yield cost(WHOLE, 1.0, (model, x, y), (None, EPS), 2 if quick else 4, "digits, small-cnn")
        few = deep(2 if quick else 4)
        about = "CIFAR-10, preact-resnet-18 of width 0.25"
        yield cost(FROZEN, 0.85, few, (GRADIENTS, TINY), 1 if quick else 2, about)


def measure(quick: bool) -> list[Row]:
    """All targets of evaluation; quick: fewer images and repetitions."""
    return list(targets(quick))


if __name__ == "__main__":
    tell(targets)
