"""What Ray's errors mean for a run, and which actors are still there."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ray
import torch
from ray.exceptions import (
    ActorUnavailableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from raydist.engine.pool import AgentDied, AgentError

DEATHS = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between tries to place an agent: its node may be dying
ANSWER_SECONDS = 600.0  # an agent that is silent for this long counts as dead
UNAVAILABLE_SECONDS = 60.0
SMALLER = (
    "write a smaller data.batch or model.width, or a larger share of a device for each agent in "
    "agent.gpus or agent.cpus"
)


def agent_error(error: RayError, agents: Mapping[str, int]) -> AgentError:
    """What an error of Ray's means.

    Args:
        error: of a call to an agent; behind it may stand the error of a neighbour.
        agents: which agent each actor id is.

    Returns:
        AgentDied if an agent is gone, AgentError if one has raised; the message is one line.
    """
    cause: Any = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    text = [line.strip() for line in str(cause).strip().splitlines()]
    if not isinstance(cause, DEATHS):
        said = f"{type(cause).__name__}: {text[-1] if text else ''}"
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in said:
            said = f"an agent ran out of memory: {SMALLER} ({said})"
        return AgentError(said)
    agent = agents.get(getattr(cause, "actor_id", None) or "")
    who = "an agent" if agent is None else f"agent {agent}"
    if isinstance(cause, OutOfMemoryError) or "low on memory" in str(cause):
        return AgentDied(f"{who} died, its node was out of memory: {SMALLER}", agent)
    if isinstance(cause, RayActorError) and cause.actor_init_failed:
        return AgentError(f"{who} could not start: {text[-1]}")
    return AgentDied(f"{who} died: {' '.join(text)[:300]}", agent)


def gone(actors: Mapping[int, Any]) -> dict[int, RayError]:
    """Which actors are dead, once the others have done all that they were told.

    Args:
        actors: of each agent; they have a method `ping`.

    Returns:
        The dead ones, and what Ray says of them.
    """
    dead: dict[int, RayError] = {}
    patience = time.monotonic() + UNAVAILABLE_SECONDS
    while actors:
        pings = {k: actor.ping.remote() for k, actor in actors.items()}
        ray.wait(list(pings.values()), num_returns=len(pings), timeout=ANSWER_SECONDS)
        unclear = {}
        for k, ping in pings.items():
            try:
                ray.get(ping, timeout=0.01)
            except ActorUnavailableError as error:
                if time.monotonic() < patience:
                    unclear[k] = actors[k]
                else:
                    dead[k] = error
            except RayError as error:
                dead[k] = error
        actors = unclear
        if actors:
            time.sleep(1.0)
    return dead


def start(create: Callable[[int], Any], agents: Iterable[int]) -> dict[int, Any]:
    """Actors that are there; a place is tried again after a pause, since its node may be dying.

    Args:
        create: (k) -> a new actor for agent k.
        agents: which.

    Returns:
        The actor of each.

    Raises:
        AgentError: if one cannot start, or dies again and again while it starts.
    """
    actors: dict[int, Any] = {}
    missing = list(agents)
    for pause in (*PAUSES, None):
        actors |= {k: create(k) for k in missing}
        dead = gone({k: actors[k] for k in missing})
        for k, error in dead.items():
            ray.kill(actors[k])
            told = agent_error(error, {actors[k]._actor_id.hex(): k})
            if pause is None or not isinstance(told, AgentDied):
                raise AgentError(str(told)) from error
        missing = list(dead)
        if not missing:
            break
        time.sleep(pause or 0.0)
    return actors
