"""The excess risk of a run over its start, J(w) − J(w*): measured, and predicted.

    J(w) = (1/K) Σ_k J_k(w),   J_k(w) = mean over images of agent k of ℓ(w; x + δ(w), y)

with the run's own training loss and attack, the model in eval mode, and the agent's transformed
images without augmentation. The attack's draws are a function of (seed, agent, batch), so they are
the same in every round and under every strategy (arXiv:2509.11337). w* is the start of the run, a
minimiser if the model was trained before (`model.checkpoint`).
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from raydist.config.adversary import Fgsm, Pgd
from raydist.config.experiment import Experiment
from raydist.config.training import Point, Quadratic, Sgd
from raydist.engine.agent.own import Own
from raydist.engine.agent.task import (
    DTYPES,
    Split,
    attack_named,
    build_model,
    loss_named,
    quadratic_of,
)
from raydist.learning.data import to_tensor
from raydist.network import theory
from raydist.network.strategy import find
from raydist.seeding import Purpose, torch_generator
from raydist.vector import frozen


def risk(
    model: nn.Module,
    config: Experiment,
    images: Split,
    agent: int,
    scale: float,
    device: torch.device,
) -> float:
    """J_k(w) of an agent k.

    Args:
        model: the model at w.
        config: the experiment.
        images: the images of all agents, agent after agent, equally many of each.
        agent: the agent k.
        scale: the factor that brings pixels to [0, 1].
        device: the device to compute on.

    Returns:
        The mean loss.
    """
    loss, own = loss_named(config), Own(config, agent)
    attack = attack_named(config, own)
    total, count = 0.0, 0
    for number, (x, y) in enumerate(batches(config, images, agent, scale, device)):
        draw = torch_generator(Purpose.EVALUATE, config.seed, agent, number, device)
        x_adv = attack(model, x, y, own.threat, draw).x_adv
        with frozen(model), torch.no_grad():
            total += len(y) * float(loss(model, x, x_adv, y))
        count += len(y)
    return total / count


def batches(
    config: Experiment, images: Split, agent: int, scale: float, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of an agent's transformed images and labels; arguments as in `risk`."""
    own = Own(config, agent)
    each = len(images[1]) // config.topology.agents
    x, y = (part[agent * each : (agent + 1) * each] for part in images)
    for first in range(0, each, config.evaluate.batch):
        part = slice(first, first + config.evaluate.batch)
        pixels = to_tensor(x[part], scale, DTYPES[config.dtype], device)
        yield own.images(pixels), torch.tensor(y[part], device=device)


def unpredictable(config: Experiment) -> str:
    """Explain why the theory does not cover a run: it treats plain SGD on one smooth risk.

    Args:
        config: the experiment.

    Returns:
        The reason, "" if there is none.
    """
    optim, schedules = config.optim, (config.optim.schedule.name, config.threat.schedule.name)
    reasons = {
        "optim is not plain SGD": not isinstance(optim, Sgd)
        or bool(optim.momentum or optim.weight_decay),
        "a schedule changes the step or the risk": schedules != ("constant", "constant"),
        "awp moves the weights": config.awp.gamma > 0,
        "the remedy adds noise to the inputs": config.stop.on_instability == "heal",
    }
    if isinstance(config.data, Quadratic):
        agents = [Own(config, k) for k in range(config.topology.agents)]
        attacked = [own for own in agents if own.threat.eps > 0]
        reasons |= {
            "without data.noise the risk under attack has kinks, and no Hessian there": (
                config.data.noise == 0 and bool(attacked)
            ),
            "the training attack does not reach the worst perturbations, of which the risk is": (
                not all(_reaches(config, own) for own in attacked)
            ),
        }
    else:
        reasons["agents have threats of their own"] = bool(config.threat.agents)
    return next((reason for reason, holds in reasons.items() if holds), "")


def _reaches(config: Experiment, own: Own) -> bool:
    """Tell if a quadratic agent trains on the worst perturbation of every sample."""
    # from the sample itself all steps lead outwards; a random start may end in another corner
    table = config.attack
    if not isinstance(table, Fgsm | Pgd) or table.start != "zero":
        return False
    way = (1 if isinstance(table, Fgsm) else table.steps) * own.alpha(own.threat)
    return way >= own.threat.eps * (1 - 1e-12)


def predict_quadratic(
    config: Experiment, A: NDArray[np.float64], rounds: Sequence[float]
) -> NDArray[np.float64]:
    """The excess risk of the quadratic task, (E1) with its exact derivatives at the minimiser.

    Args:
        config: the experiment.
        A: combination matrix of the run, (K, K).
        rounds: numbers of rounds, math.inf for the limit.

    Returns:
        ER_n, (len(rounds),).
    """
    assert isinstance(config.model, Point)
    task, agents = quadratic_of(config), range(config.topology.agents)
    w_star = task.minimiser()
    return theory.excess_risk(
        find(config.strategy).given(),
        A,
        np.stack([np.diag(task.hessian_at(k, w_star)) for k in agents]),
        np.stack([task.gradient(k, w_star) for k in agents]),
        np.stack([np.diag(task.noise_covariance(k, w_star)) for k in agents]),
        config.optim.lr,
        config.data.batch,
        rounds,
        start=w_star - np.array(config.model.start),
    )


def predict_network(
    config: Experiment,
    A: NDArray[np.float64],
    images: Split,
    input_of: tuple[tuple[int, ...], int, float],
    rounds: Sequence[float],
) -> NDArray[np.float64]:
    """The excess risk of a network within `evaluate.subspace` dimensions, (E1).

    Derivatives are taken once, on the CPU, on the images of the measured risk.

    Args:
        config: the experiment.
        A: combination matrix of the run, (K, K).
        images: the images of all agents, as in `risk`.
        input_of: shape of one input, number of classes, factor that brings pixels to [0, 1].
        rounds: numbers of rounds, math.inf for the limit.

    Returns:
        ER_n, (len(rounds),).
    """
    from raydist.measure import escaping  # imported late: it takes memory in every agent

    shape, classes, scale = input_of
    cpu = torch.device("cpu")
    own = Own(config, 0)  # all agents have the same threat
    train = attack_named(config, own)

    def attack(model: nn.Module, x: Tensor, y: Tensor, *, generator: torch.Generator) -> Tensor:
        return train(model, x, y, own.threat, generator).x_adv

    clean = config.loss.name == "standard" or own.threat.eps == 0
    with one_thread():
        local = escaping.local_model(
            build_model(config, shape, classes),
            [list(batches(config, images, k, scale, cpu)) for k in range(config.topology.agents)],
            cross_entropy,
            None if clean else attack,
            config.evaluate.subspace,
            config.seed,
        )
    step = (find(config.strategy).given(), A, config.optim.lr, config.data.batch)
    return escaping.predict(local, *step, rounds)


@contextmanager
def one_thread() -> Generator[None]:
    """Compute on one thread in this context; more would sum in another order than agents."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
