"""Ray's errors: their meaning for a run, the dead actors, and the start of new ones."""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray
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

from raydist.engine.pool.board import Aborted
from raydist.errors import SMALLER, AgentDied, AgentError, one_line, raised

DEATHS = (RayActorError, NodeDiedError, ObjectLostError, OutOfMemoryError, WorkerCrashedError)
REPR = r"repr=(agents? \d+(?: to \d+| \([^()]*\))?)\)"  # of an actor, by `Actor.__repr__`
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between tries to place an agent: its node may be dying
ANSWER_SECONDS = 600.0  # an agent that is silent for this long counts as dead
UNAVAILABLE_SECONDS = 60.0


def agent_error(error: RayError, agents: Mapping[str, range]) -> AgentError:
    """Translate an error of Ray's.

    Args:
        error: the error of a call to an agent, possibly caused by a neighbour's error.
        agents: the agents of each actor id.

    Returns:
        AgentDied if an agent is gone, AgentError if one has raised; the message is one line.
    """
    cause: Any = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
    text = [line.strip() for line in str(cause).strip().splitlines()]
    if not isinstance(cause, DEATHS):
        names = re.findall(REPR, str(error))  # the last one raised it
        return raised(names[-1] if names else "", cause)
    group = agents.get(getattr(cause, "actor_id", None) or "", range(0))
    who = f"agent {group[0]}" if group else "an agent"
    if len(group) > 1:
        who = f"agents {group[0]} to {group[-1]}, of one actor,"
    if isinstance(cause, OutOfMemoryError) or "low on memory" in str(cause):
        return AgentDied(f"{who} died, its node was out of memory: {SMALLER}", *group)
    if isinstance(cause, RayActorError) and cause.actor_init_failed:
        return AgentError(f"{who} could not start: {_raised(str(cause))}")
    return AgentDied(f"{who} died: {' '.join(text)[:300]}", *group)


def _raised(text: str) -> str:
    """Last error in a text's traceback, its kind and its whole message, as one line."""
    last: str = re.split(r"(?m)^ *File \".*\n(?: +.*\n)*", text)[-1]
    return one_line(" ".join(last.split()))


def first_cause(error: RayError, references: Sequence[Any]) -> RayError:
    """Find the cause of errors that only report another actor's end (`board.Aborted`).

    Args:
        error: the error of one of the references.
        references: the references of calls that all end, well or not.

    Returns:
        Another error of these calls if there is one, else the same.
    """
    waiting = list(dict.fromkeys(references))  # Ray waits for each only once
    while waiting and isinstance(getattr(error, "cause", None), Aborted):
        (reference, *_), waiting = ray.wait(waiting, num_returns=1, fetch_local=False)
        try:
            ray.get(reference)
        except RayError as other:
            error = other
    return error


def gone(actors: Mapping[int, Any]) -> dict[int, RayError]:
    """Find the dead actors, once the others have finished their calls.

    Args:
        actors: the actors by number, each with a method `ping`.

    Returns:
        The dead actors' numbers, and Ray's error for each.
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


def start(
    create: Callable[[int], Any], which: Iterable[int], groups: Sequence[range]
) -> dict[int, Any]:
    """Start actors; try again after a pause, because a node may be dying.

    Args:
        create: (i) -> a new actor i.
        which: the numbers of the actors to start.
        groups: the agents of each actor.

    Returns:
        The started actor of each number.

    Raises:
        AgentError: if an actor cannot start, or dies again and again while it starts.
    """
    actors: dict[int, Any] = {}
    missing = list(which)
    for pause in (*PAUSES, None):
        actors |= {i: create(i) for i in missing}
        dead = gone({i: actors[i] for i in missing})
        for i, error in dead.items():
            ray.kill(actors[i])
            told = agent_error(error, {actors[i]._actor_id.hex(): groups[i]})
            if pause is None or not isinstance(told, AgentDied):
                raise AgentError(str(told)) from error
        missing = list(dead)
        if not missing:
            break
        time.sleep(pause or 0.0)
    return actors
