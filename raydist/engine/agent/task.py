"""Model, loss and attack of an experiment, bound by name.

Only this module maps names of the configuration to functions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raydist.adversary import loss as losses
from raydist.adversary.attack import Ascent, AttackLoss, Gradient, ascend, by_autograd, by_name
from raydist.adversary.schedule import lr_at
from raydist.adversary.threat import ThreatModel
from raydist.config.adversary import Fgsm, KlPgd, OwnAttack, OwnLoss, Pgd
from raydist.config.experiment import Experiment
from raydist.config.fields import arguments
from raydist.config.training import Network, OwnNetwork
from raydist.config.training import Quadratic as QuadraticData
from raydist.engine.agent.own import Own
from raydist.learning import checkpoint
from raydist.learning import model as models
from raydist.learning.quadratic import Quadratic
from raydist.lookup import resolve
from raydist.seeding import Purpose, drawing

Attack = Callable[..., Ascent]
Split = tuple[NDArray[Any], NDArray[np.int64]]

LOSSES: dict[str, Callable[..., Tensor]] = {
    "standard": losses.standard,
    "pgd_at": losses.pgd_at,
    "trades": losses.trades,
    "mart": losses.mart,
    "wasserstein": losses.wasserstein,
    "quadratic": losses.quadratic,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def build_model(config: Experiment, shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build the model of an experiment, on the CPU, at the start common to all agents.

    Args:
        config: the experiment.
        shape: shape of one input.
        classes: number of classes.

    Returns:
        The model in the experiment's dtype.
    """
    table = config.model
    extra: dict[str, Any] = dict(models.NORMALISATION.get(config.data.set, {}))
    extra |= table.model_dump(include={"start", "width", "params"})
    extra |= extra.pop("params", {})
    model = models.build(table.name, shape, classes, seed=config.seed, **extra)
    if isinstance(table, OwnNetwork):
        with drawing(Purpose.MODEL, config.seed, round=1):
            model = models.whole(model, shape)
    if isinstance(table, Network):
        _begin_at(model, table, config.seed)
    return model.to(DTYPES[config.dtype])


def _begin_at(model: nn.Module, table: Network, seed: int) -> None:
    """Set a model's weights to those from which fine-tuning begins."""
    if table.checkpoint is not None:
        key_map = table.key_map
        if key_map == "published":
            key_map = checkpoint.KEY_MAPS.get(table.name, {})
        checkpoint.load(model, table.checkpoint, key_map or None)
    if table.reset_last:
        checkpoint.reset_last_layer(model, seed)
    if table.noise:
        checkpoint.add_noise(model, table.noise, seed)


def loss_named(config: Experiment) -> Callable[..., Tensor]:
    """The loss function of a configuration, with its parameters bound.

    Args:
        config: the experiment.

    Returns:
        The function (model, x, x_adv, y) -> scalar.
    """
    table = config.loss
    if isinstance(table, OwnLoss):
        return partial(resolve(table.name), **table.params)
    return partial(LOSSES[table.name], **table.model_dump(include={"beta", "gamma"}))


def rate_named(config: Experiment) -> Callable[[float], float]:
    """The learning rate of a configuration as a function of progress."""
    table = config.optim.schedule
    return partial(lr_at, table.name, lr=config.optim.lr, **arguments(table))


def attack_named(config: Experiment, own: Own, each: AttackLoss = "ce") -> Attack:
    """The training attack of an agent.

    Args:
        config: the experiment.
        own: the agent's settings.
        each: the per-sample function that pgd and fgsm ascend.

    Returns:
        A function with the arguments of `tasks.Task.attack`, for any budget of the threat.
    """
    table, steps = config.attack, partial(ascend, steps=0)
    if isinstance(table, OwnAttack):
        return _own_attack(table)
    if isinstance(table, Fgsm):
        steps = partial(ascend, steps=1, start=table.start, loss=each)
    elif isinstance(table, Pgd):
        steps = partial(
            ascend, steps=table.steps, start=table.start, restarts=table.restarts, loss=each
        )
    elif isinstance(table, KlPgd):
        steps = partial(
            ascend, steps=table.steps, start="normal", restarts=table.restarts, loss="kl"
        )

    def attack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        draw: torch.Generator,
        gradient: Gradient = by_autograd,
    ) -> Ascent:
        alpha = own.alpha(threat)
        return steps(model, x, y, threat, alpha=alpha, generator=draw, gradient=gradient)

    return attack


def _own_attack(table: OwnAttack) -> Attack:
    """An attack of the user's own, which leaves no gradient behind."""
    function = by_name(table.name, table.params)

    def attack(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: ThreatModel,
        draw: torch.Generator,
        gradient: Gradient = by_autograd,
    ) -> Ascent:
        x_adv = function(model, x, y, threat, generator=draw)
        return Ascent(x_adv, x_adv, None)

    return attack


def quadratic_of(config: Experiment) -> Quadratic:
    """The quadratic risks of a configuration, one per agent."""
    table = config.data
    assert isinstance(table, QuadraticData)
    centers = np.array(table.centers, dtype=float)
    hessian = np.array(table.hessian, dtype=float)
    eps = [Own(config, k).threat.eps for k in range(config.topology.agents)]
    return Quadratic(centers, hessian, table.noise, np.array(eps))
