"""Checks at the door: report before a run starts the errors that would end it midway."""

import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from raydist.adversary.schedule import Timetable
from raydist.config.adversary import OwnAttack
from raydist.config.experiment import Experiment
from raydist.config.fields import UserTable, fields_in
from raydist.config.training import Pictures, Point, Quadratic
from raydist.engine.agent.own import Own
from raydist.engine.agent.risk import unpredictable
from raydist.engine.agent.task import quadratic_of, rate_named
from raydist.errors import AgentError, InputError
from raydist.learning import optim
from raydist.learning.data import Data
from raydist.measure import attacks

P = ParamSpec("P")
T = TypeVar("T")


def checked(where: str, build: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `build`; turn its errors into one line that names the table at fault.

    Args:
        where: the table.
        build: the function to call, which may raise.
        *args: arguments of `build`.
        **kwargs: keyword arguments of `build`.

    Returns:
        The result of `build`.

    Raises:
        InputError: in place of any error of `build`, because that may be the user's own code.
    """
    try:
        return build(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raise InputError(_with_key(where, one_line(error))) from error


def one_line(error: BaseException) -> str:
    """Text of an error, with its type unless our own checks raise that type."""
    text = " ".join(str(error).split())
    ours = text and isinstance(error, ValueError | FileNotFoundError | AgentError)
    return text if ours else f"{type(error).__name__}: {text}".removesuffix(": ")


def _with_key(table: str, line: str) -> str:
    """Prefix a line with the table, unless it begins with one of its keys or with the table."""
    if line.startswith((f"{table}.", f"{table} ")):
        return line
    fields = fields_in(getattr(Experiment.model_fields.get(table), "annotation", None))
    begin = re.match(r'(\w+)(\[| is | has | have | ")', line)
    return f"{table}{'.' if begin and begin[1] in fields else ': '}{line}"


def input_of(config: Experiment, data: Data | None) -> tuple[tuple[int, ...], int, float]:
    """Shape of one input, number of classes, factor that brings stored pixels to [0, 1]."""
    if data is None:
        assert isinstance(config.data, Quadratic)
        return (len((config.data.centers or [[]])[0]),), 0, 1.0
    return data.shape, data.classes, data.scale


def check_quadratic(config: Experiment) -> None:
    """Check the quadratic task: one center per agent, exact worst perturbations.

    Args:
        config: the experiment.

    Raises:
        InputError: if the parts do not fit together.
    """
    assert isinstance(config.data, Quadratic) and isinstance(config.model, Point)
    agents, centers = config.topology.agents, config.data.centers
    if centers and len(centers) != agents:
        raise InputError(
            f"data.centers has {len(centers)} points for topology.agents = {agents}: write one "
            "center per agent"
        )
    task = checked("data", quadratic_of, config)
    size = task.centers.shape[1]
    if config.model.start is not None and len(config.model.start) != size:
        raise InputError(
            f"model.start has {len(config.model.start)} numbers, expected {size}, as many as each "
            "of data.centers"
        )
    for threat in (Own(config, k).threat for k in range(agents)):
        if threat.norm != "linf" and threat.eps > 0:
            raise InputError(
                f'threat.norm is "{threat.norm}", expected "linf" for data.set = "quadratic"'
            )
    for key, used in {
        "awp": config.awp.gamma > 0,
        "telemetry": config.telemetry.every > 0,
        "average": config.average is not None,
        "attack.name": config.attack.name == "kl_pgd",
        "precision": config.precision != "float32",
        "channels_last": config.channels_last,
        "compile": config.compile,
        "cuda_graphs": config.cuda_graphs,
        "evaluate.excess_risk": config.evaluate.excess_risk > 0,  # it is reported anyway
        "evaluate.subspace": config.evaluate.subspace > 0,
    }.items():
        if used:
            raise InputError(f'{key} is for images, not for data.set = "quadratic": remove it')
    if config.stop.fosc and config.stop.fosc.on == "validation":
        raise InputError(
            'stop.fosc is measured on validation images, which data.set = "quadratic" has not: '
            "remove it"
        )


def check_images(config: Experiment, data: Data, share: int) -> None:
    """Check that batches, validation and evaluation of an image task fit the data.

    Args:
        config: the experiment.
        data: the images.
        share: number of training images of the agent with the fewest.

    Raises:
        InputError: if they do not.
    """
    assert isinstance(config.data, Pictures)
    batch, agents = config.data.batch, config.topology.agents
    if batch > share:
        raise InputError(
            f"data.batch is {batch}, but an agent's share is {share} of {len(data.train[1])} "
            f"training images (topology.agents = {agents}): write data.batch = {max(share, 1)} "
            "or less"
        )
    if len(data.validation[1]) < agents:
        raise InputError(
            f"data.validation = {config.data.validation}, or a split of one's own, gives "
            f"{len(data.validation[1])} validation images for {agents} agents: write a larger one"
        )
    for key in ("validation_images", "test_images"):
        images = getattr(config.evaluate, key)
        if isinstance(images, int) and images < agents:
            raise InputError(f"evaluate.{key} is {images}, expected {agents} or more")
    rule = config.stop.fosc
    if isinstance(config.attack, OwnAttack) and rule is not None and rule.on == "train":
        raise InputError(
            f'stop.fosc.on is "train", but attack "{config.attack.name}" leaves no gradient there: '
            'write on = "validation"'
        )
    for name in config.evaluate.attacks:
        checked("evaluate.attacks", attacks.parse, name)
    norm = config.threat.norm
    skipped = attacks.skipped(config.evaluate.attacks, data.classes, data.shape, norm)
    for name, why in skipped.items():
        raise InputError(f'evaluate.attacks names "{name}", but {why}: leave it out')
    if data.classes < 2:
        raise InputError(
            f'data.set "{config.data.set}" has one class, and nothing to tell apart: expected 2 or '
            "more"
        )
    for why in attacks.skipped(["square"], data.classes, data.shape, norm).values():
        if config.evaluate.autoattack != 0:
            raise InputError(
                f"evaluate.autoattack has a part, Square, that cannot run: {why}: write "
                'evaluate.autoattack = 0, or threat.norm = "linf"'
            )
    if config.loss.name == "wasserstein" and data.classes < 3:
        raise InputError(
            f'loss.name = "wasserstein" attacks with ReDLR, which needs 3 classes: data.set '
            f'"{config.data.set}" has {data.classes}'
        )
    _check_excess_risk(config, share)
    if config.dtype != "float32" and config.evaluate.autoattack != 0:
        raise InputError(
            f'evaluate.autoattack needs dtype = "float32", not "{config.dtype}": '
            "write evaluate.autoattack = 0"
        )


def check_own(config: Experiment, times: Timetable) -> None:
    """Check that the user's own optimiser and schedules fulfil the agents' contract.

    Args:
        config: the experiment.
        times: length, epochs and periods of the run.

    Raises:
        InputError: if they do not.
    """
    checked("optim", optim.try_out, **config.optim.options())
    rounds = sorted({1 + n * (times.rounds - 1) // 100 for n in range(101)})
    if isinstance(config.optim.schedule, UserTable):
        for n in rounds:
            checked("optim.schedule", rate_named(config), times.progress(n))
    if isinstance(config.threat.schedule, UserTable):
        for n in rounds:
            checked("threat.schedule", Own(config, 0).in_round, n, times)


def _check_excess_risk(config: Experiment, share: int) -> None:
    """Check that images, loss and steps suit the excess risk and its prediction."""
    images, agents = config.evaluate.excess_risk, config.topology.agents
    if images and not agents <= images <= agents * share:
        raise InputError(
            f"evaluate.excess_risk is {images}, expected 0, or {agents} to {agents * share} images "
            f"for topology.agents = {agents} with {share} images or more each"
        )
    if images and config.loss.name == "wasserstein":
        raise InputError(
            'evaluate.excess_risk is for losses of single images, not for loss.name = "wasserstein"'
            ": write evaluate.excess_risk = 0"
        )
    if config.evaluate.subspace == 0:
        return
    if images == 0:
        raise InputError(
            "evaluate.subspace predicts the excess risk, but evaluate.excess_risk is 0: write "
            "evaluate.excess_risk = 512"
        )
    if config.loss.name not in ("standard", "pgd_at") or unpredictable(config):
        raise InputError(
            "evaluate.subspace predicts plain SGD (no momentum, weight decay, awp or schedules, "
            'one threat for all) on loss.name = "standard" or "pgd_at": write evaluate.subspace = 0'
        )
