"""The pool of Ray actors: long-lived ones, each with one agent or several that are neighbours.

A round is one call per actor. A message is a NumPy vector in the object store; the actors of
neighbours get the reference as a direct argument, so weights travel along edges and never through
the driver. With a board, on one node, a call is many rounds. No restarts and no retries: Ray's own
would silently reset an agent's state. `RayPool.revive` replaces the dead, and the keeper of the run
brings all agents back to one round.
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

BATCH_SECONDS = 1.0  # of a call with a board: it costs some milliseconds, and a snapshot waits
MOST_ROUNDS = 1000
log = logging.getLogger("raydist")


class RayPool(Pool):
    """Agents as Ray actors, in the placement group of the trial or in one of their own."""

    exchange = "objects"
    _messages: dict[int, Any]
    _closed: list[Any]
    _running: list[Any]

    def __init__(self, plan: Plan, resources: Layout) -> None:
        """Start the actors of a plan, and wait until all are there.

        Args:
            plan: the run.
            resources: which agents each has, and where it goes.
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
            self.shutdown()  # nothing stays reserved
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
    def batch(self) -> int:
        """With a board, rounds of about a second."""
        return self._batch if self.exchange == "board" else 1

    def step(self, n: int, noisy: Sequence[bool] = (False,)) -> list[Any]:
        """Submit rounds, one without a board; returns references to what is measured."""
        if self.exchange == "board":
            self._join_board()
            pending = [actor.run.remote(n, list(noisy)) for actor in self._actors]
            self._running += pending
            return pending
        inboxes, self._messages = self._receive(), {}
        infos = []
        for step, edges, inbox in zip(self._steps, self._edges, inboxes, strict=True):
            replies = step.remote(n, *noisy, *inbox)
            *messages, info = replies if edges.out else [replies]
            self._messages |= zip(edges.out, messages, strict=True)
            infos.append(info)
        return infos

    def collect(self, pending: list[Any]) -> list[list[Info]]:
        """Wait for what was measured."""
        found = self._get(pending)
        if self.exchange == "objects":
            return [list(chain(*found))]
        del self._running[: len(pending)]
        seconds = max(taken for taken, _ in found)
        rounds = [list(chain(*infos)) for infos in zip(*(i for _, i in found), strict=True)]
        fitting = int(BATCH_SECONDS * len(rounds) / max(seconds, 1e-6))
        self._batch = max(1, min(fitting, 4 * len(rounds), MOST_ROUNDS))
        return rounds

    def close(self, n: int) -> None:
        """Tell all actors to combine round n."""
        for actor, inbox in zip(self._actors, self._receive(), strict=True):
            self._closed.append(actor.close.remote(n, *inbox))
        self._messages = {}

    def each(self, method: str, *args: Any, wait: bool = True) -> list[Any]:
        """Call a method of every agent, one call for each actor."""
        name = f"Actor.{method}"  # what Ray calls it
        calls = [actor.each.options(name=name).remote(method, *args) for actor in self._actors]
        if wait:
            return list(chain(*self._get(calls)))
        self._closed += calls
        return []

    def centroid(self, which: str = "now") -> Any:
        """It passes through all actors: the sum is in the order of the agents, and takes little."""
        total = None
        for actor in self._actors:
            total = actor.add.remote(total, which)
        return total

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """Bring all agents back; what stands on a board is of other rounds."""
        self._forget()
        self._closed += [actor.leave_board.remote() for actor in self._actors]
        return super().restore(n, url, checksums)

    def shutdown(self) -> None:
        """End the actors, and free what was reserved."""
        self._messages = {}
        for actor in self._actors:
            ray.kill(actor)
        if self._own_group is not None:
            remove_placement_group(self._own_group)

    def _prepare(self, plan: Plan) -> None:
        """Another run: what its agents are built from; what all have in common is stored once."""
        self._forget()
        self._batch = 1
        threads, cuda = max(1, int(self._layout.cpus)), self._layout.gpus > 0
        self._plan, self._specs = plan, plan.specs(threads, cuda)
        self._edges = edges_between(self._specs, self._layout.groups)
        self._held = ray.put(plan.held())

    def _forget(self) -> None:
        """The agents will all be at another round: what they are sending is worth nothing."""
        self._messages, self._closed, self._running, self._on_board = {}, [], [], False

    def _get_ready(self) -> None:
        """All actors are there, some of them new ones."""
        self._steps = [
            actor.step.options(num_returns=len(edges.out) + 1)
            for actor, edges in zip(self._actors, self._edges, strict=True)
        ]
        self._choose_exchange()
        self._log()

    def _choose_exchange(self) -> None:
        """As configured; "auto" is a board if all actors are on one node that has room for it."""
        self.exchange = self._plan.config.exchange
        if self.exchange == "auto":
            nodes = set(self._wait([actor.node.remote() for actor in self._actors]))
            room = self._actors[0].has_room.remote(len(self._actors), self._plan.agents)
            fits = len(nodes) == 1 and all(self._wait([room]))
            self.exchange = "board" if fits else "objects"

    def _join_board(self) -> None:
        if self._on_board:
            return
        first, *others = self._actors
        made = first.make_board.remote(len(self._actors), self._plan.agents)
        joined = [actor.join_board.remote(made, i) for i, actor in enumerate(others, 1)]
        self._wait([made, *joined])
        self._wait([first.hide_board.remote()])
        self._on_board = True

    def _log(self) -> None:
        """Say where to look for what each agent says."""
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
        """What actor i is built from."""
        group = self._layout.groups[i]
        specs = [self._specs[k] for k in group]
        return specs, [self._plan.share(k) for k in group], self._held, self._edges[i]

    def _receive(self) -> list[list[Any]]:
        """The messages that wait for each actor; none after a round was closed."""
        if not self._messages:
            return [[] for _ in self._edges]
        return [[self._messages[l] for l in edges.into] for edges in self._edges]

    def _get(self, references: Sequence[Any]) -> Any:
        """The values, after every round that was closed has ended well."""
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
