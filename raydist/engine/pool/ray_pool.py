"""The pool of Ray actors: long-lived ones, each with one agent or several that are neighbours.

A round is one call per actor. A message is a NumPy vector in the object store; the actors of
neighbours get the reference as a direct argument, so weights travel along edges and never through
the driver. With a board, on one node, one call covers many rounds. Ray's restarts and retries are
off, because they would silently reset an agent's state. `RayPool.revive` replaces dead actors, and
the run's recovery brings all agents back to one round.
"""

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raydist.engine.agent.agent import Info
from raydist.engine.agent.spec import AgentSpec
from raydist.engine.agent.task import Split
from raydist.engine.cluster.layout import Layout
from raydist.engine.plan import Plan
from raydist.engine.pool.edges import Edges, edges_between
from raydist.engine.pool.pool import Pool
from raydist.engine.pool.ray_actor import Actor
from raydist.engine.pool.ray_errors import agent_error, first_cause, gone, start
from raydist.engine.pool.ray_exchange import EXCHANGES, Exchange

log = logging.getLogger("raydist")


class RayPool(Pool):
    """Agents as Ray actors, in the placement group of the trial or in one of their own."""

    _exchange: Exchange
    _closed: list[Any]
    _running: list[Any]

    def __init__(self, plan: Plan, resources: Layout) -> None:
        """Start the actors of a plan, and wait until all are there.

        Args:
            plan: the run.
            resources: the agents and the place of each actor.
        """
        self._layout = resources
        group = ray.util.get_current_placement_group()
        self._own_group: PlacementGroup | None = None
        if group is None:
            group = self._own_group = placement_group(resources.bundles, resources.strategy)
            ray.get(group.ready())
        self._group: PlacementGroup = group
        self._prepare(plan)
        self._actors: list[Any] = []
        try:
            everyone = range(len(resources.groups))
            self._actors += start(self._create, everyone, resources.groups).values()
            self._get_ready()
        except BaseException:
            self.shutdown()  # frees the reservation
            raise

    def reset(self, plan: Plan) -> None:
        """Begin another run in the same, warm, processes."""
        self._prepare(plan)
        self._replace_dead()
        self._wait([actor.reset.remote(*self._inputs(i)) for i, actor in enumerate(self._actors)])
        self._get_ready()

    def revive(self) -> None:
        """Replace the dead actors."""
        self._forget()
        self._replace_dead()
        self._get_ready()

    @property
    def exchange(self) -> str:
        """Way in which messages travel between actors: "objects" or "board"."""
        return self._exchange.name

    @property
    def batch(self) -> int:
        """Number of rounds preferred per call: about a second of rounds with a board."""
        return self._exchange.batch

    def step(self, n: int, noisy: Sequence[bool] = (False,)) -> list[Any]:
        """Submit rounds, one without a board; return references to the measurements."""
        pending = self._exchange.step(n, noisy)
        self._running += pending
        return pending

    def collect(self, pending: list[Any]) -> list[list[Info]]:
        """Wait for the measurements."""
        found = self._get(pending)
        del self._running[: len(pending)]
        return self._exchange.collect(found)

    def close(self, n: int) -> None:
        """Tell all actors to combine round n."""
        self._closed += self._exchange.close(n)

    def each(self, method: str, *args: Any, wait: bool = True) -> list[Any]:
        """Call a method of every agent, one call for each actor."""
        name = f"Actor.{method}"  # Ray's name of the call
        calls = [actor.each.options(name=name).remote(method, *args) for actor in self._actors]
        if wait:
            return list(chain(*self._get(calls)))
        self._closed += calls
        return []

    def centroid(self, which: str = "now") -> Any:
        """Pass a sum through all actors, to keep the agents' order and to need little memory."""
        total = None
        for actor in self._actors:
            total = actor.add.remote(total, which)
        return total

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """Bring all agents back to a snapshot; forget messages, which are of other rounds."""
        self._forget()
        self._use(type(self._exchange))
        return super().restore(n, url, checksums)

    def shutdown(self) -> None:
        """End the actors, and free the reserved resources."""
        for actor in self._actors:
            ray.kill(actor)
        if self._own_group is not None:
            remove_placement_group(self._own_group)

    def _prepare(self, plan: Plan) -> None:
        """Prepare the inputs of a run's agents; store the common inputs once."""
        self._forget()
        threads, cuda = max(1, int(self._layout.cpus)), self._layout.gpus > 0
        self._plan, self._specs = plan, plan.specs(threads, cuda)
        self._edges = edges_between(self._specs, self._layout.groups)
        self._held = ray.put(plan.held())

    def _forget(self) -> None:
        """Forget submitted calls, because all agents will be at another round."""
        self._closed, self._running = [], []

    def _get_ready(self) -> None:
        """Choose the exchange and log the places, after actors started."""
        self._choose_exchange()
        self._log()

    def _choose_exchange(self) -> None:
        """Use the configured exchange; "auto" is a board if one node has all actors and room."""
        name = self._plan.config.exchange
        if name == "auto":
            nodes = set(self._wait([actor.node.remote() for actor in self._actors]))
            room = self._actors[0].has_room.remote(len(self._actors))
            fits = len(nodes) == 1 and all(self._wait([room]))
            name = "board" if fits else "objects"
        self._use(EXCHANGES[name])

    def _use(self, kind: type[Exchange]) -> None:
        """Use an exchange of this kind from now on, with no round submitted."""
        self._exchange = kind(self._actors, self._edges, self._wait)

    def _log(self) -> None:
        """Log the file that holds each agent's output."""
        places = self._wait([actor.where.remote() for actor in self._actors])
        log.info("%d agents\n%s", len(places), "\n".join(places))

    def _replace_dead(self) -> None:
        dead = gone(dict(enumerate(self._actors)))
        for i in dead:
            ray.kill(self._actors[i])
        for i, actor in start(self._create, dead, self._layout.groups).items():
            self._actors[i] = actor

    def _create(self, i: int) -> Any:
        """A new actor i, in its own bundle."""
        actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(Actor)
        place = PlacementGroupSchedulingStrategy(self._group, self._layout.bundle_of[i])
        cpus, gpus = self._layout.reserved(i)
        return actor.options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy=place).remote(
            *self._inputs(i)
        )

    def _inputs(self, i: int) -> tuple[list[AgentSpec], list[Split | None], Any, Edges]:
        """Constructor arguments of actor i."""
        group = self._layout.groups[i]
        specs = [self._specs[k] for k in group]
        return specs, [self._plan.share(k) for k in group], self._held, self._edges[i]

    def _get(self, references: Sequence[Any]) -> Any:
        """Return the values of references, after all closed rounds have ended well."""
        closed, self._closed = self._closed, []
        return self._wait([*references, *closed])[: len(references)]

    def _wait(self, references: Sequence[Any]) -> list[Any]:
        try:
            values: list[Any] = ray.get(list(references))
        except RayError as error:
            ids = [actor._actor_id.hex() for actor in self._actors]
            groups = dict(zip(ids, self._layout.groups, strict=True))
            told = [*references, *self._running]  # some actors are further than others
            raise agent_error(first_cause(error, told), groups) from error
        return values
