"""The pool of Ray actors: one long-lived actor for each agent, on a fraction of a CPU or GPU.

A round is one call per agent. Its message is a NumPy vector in the object store; the neighbours get
the reference as a direct argument, so weights travel along edges and never through the driver. No
restarts and no retries: Ray's own would silently reset an agent's state. `RayPool.revive` replaces
the dead, and the keeper of the run brings all agents back to one round.
"""

import logging
import os
import warnings
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util import get_node_ip_address
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raydist.engine.agent import Agent, Info, Message
from raydist.engine.layout import Layout
from raydist.engine.plan import Plan
from raydist.engine.pool import centroid_files, inboxes
from raydist.engine.ray_recover import agent_error, gone, start
from raydist.engine.spec import AgentSpec, agent_file
from raydist.engine.task import Split
from raydist.measure.masks import Masks
from raydist.measure.trained import Sums

log = logging.getLogger("raydist")


class _Actor(Agent):
    """An agent in a process of its own."""

    def __init__(self, spec: AgentSpec, share: Split | None, held: dict[str, Split]) -> None:
        # What arrives is a read-only view of the object store, and is only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        super().__init__(spec, share, held)

    def reset(self, spec: AgentSpec, share: Split | None, held: dict[str, Split]) -> None:
        """Begin another run in the same process."""
        self.shards.settle()
        super().__init__(spec, share, held)

    def __repr__(self) -> str:
        """What Ray's logs and dashboard call it."""
        return f"agent {self.spec.agent}"

    def where(self) -> str:
        """The process that it is, and the file in which Ray keeps what it says."""
        node: str = get_node_ip_address()  # type: ignore[no-untyped-call]
        said = os.path.realpath("/proc/self/fd/2")
        return f"{self!r} is process {os.getpid()} on {node}, what it says is in {said}"

    def ping(self) -> None:
        """Nothing: who answers is there, and has done all that it was told before."""

    def snapshot(self, n: int, url: str) -> None:
        """As `Shards.write`."""
        self.shards.write(n, url)

    def settle(self) -> None:
        """As `Shards.settle`."""
        self.shards.settle()

    def restore(self, n: int, url: str, sha256: str) -> str:
        """As `Shards.restore`."""
        return self.shards.restore(n, url, sha256)


class RayPool:
    """Agents as Ray actors, in the placement group of the trial or in one of their own."""

    def __init__(self, plan: Plan, resources: Layout) -> None:
        """Start one actor for each agent of a plan, and wait until all are there.

        Args:
            plan: the run.
            resources: where each agent goes.
        """
        self._layout = resources
        group = ray.util.get_current_placement_group()
        self._own_group: PlacementGroup | None = None
        if group is None:
            group = self._own_group = placement_group(resources.bundles)
            ray.get(group.ready())
        self._group: PlacementGroup = group
        self._messages: list[Any] | None = None
        self._closed: list[Any] = []
        self._prepare(plan)
        self._actors: list[Any] = [*start(self._create, range(plan.agents)).values()]
        self._log()

    def reset(self, plan: Plan) -> None:
        """As `Pool.reset`, in the same, warm, processes."""
        self._prepare(plan)
        self._replace_dead()
        self._wait([actor.reset.remote(*self._inputs(k)) for k, actor in enumerate(self._actors)])
        self._log()

    def revive(self) -> None:
        """As `Pool.revive`."""
        self._messages, self._closed = None, []
        self._replace_dead()
        self._log()

    def step(self, n: int, noisy: bool = False) -> list[Any]:
        """As `Pool.step`; returns references to what the agents measure."""
        replies = [
            actor.step.options(num_returns=2).remote(n, noisy, *inbox)
            for actor, inbox in zip(self._actors, self._receive(), strict=True)
        ]
        self._messages = [message for message, _ in replies]
        return [info for _, info in replies]

    def collect(self, pending: list[Any]) -> list[Info]:
        """As `Pool.collect`."""
        infos: list[Info] = self._get(pending)
        return infos

    def close(self, n: int) -> None:
        """As `Pool.close`."""
        for actor, inbox in zip(self._actors, self._receive(), strict=True):
            self._closed.append(actor.combine.remote(n, *inbox))

    def learn_sensitivity(self, n: int) -> None:
        """As `Pool.learn_sensitivity`."""
        powers = [actor.power.remote(n) for actor in self._actors]
        power = self._actors[0].add_power.remote(*powers)
        self._closed += [a.learn_sensitivity.remote(power) for a in self._actors]

    def measure(self, n: int) -> list[tuple[Info, Sums]]:
        """As `Pool.measure`."""
        centroid = self._centroid()
        found: list[tuple[Info, Sums]] = self._get(
            [actor.measure.remote(n, centroid) for actor in self._actors]
        )
        return found

    def evaluate(self, *which: str) -> list[Masks]:
        """As `Pool.evaluate`."""
        centroids = [self._centroid(each) for each in which]
        calls = [actor.evaluate.remote(*centroids) for actor in self._actors]
        found: list[Masks] = self._get(calls)
        return found

    def save(self, folder: str, n: int) -> None:
        """As `Pool.save`; every agent writes its own file."""
        calls = [actor.save.remote(folder, agent_file(k)) for k, actor in enumerate(self._actors)]
        calls += [
            self._actors[0].save.remote(folder, name, self._centroid(which))
            for name, which in centroid_files(self._specs[0], n).items()
        ]
        self._get(calls)

    def snapshot(self, n: int, url: str) -> None:
        """As `Pool.snapshot`; every agent writes its own file."""
        self._closed += [actor.snapshot.remote(n, url) for actor in self._actors]

    def settle(self) -> None:
        """As `Pool.settle`."""
        self._get([actor.settle.remote() for actor in self._actors])

    def restore(self, n: int, url: str, checksums: Sequence[str]) -> list[str]:
        """As `Pool.restore`; every agent reads its own file."""
        self._messages, self._closed = None, []
        each = zip(self._actors, checksums, strict=True)
        return self._wait([actor.restore.remote(n, url, sha256) for actor, sha256 in each])

    def states(self) -> list[Message]:
        """As `Pool.states`."""
        states: list[Message] = self._get([a.state.remote() for a in self._actors])
        return states

    def shutdown(self) -> None:
        """As `Pool.shutdown`."""
        self._messages = None
        for actor in self._actors:
            ray.kill(actor)
        if self._own_group is not None:
            remove_placement_group(self._own_group)

    def _prepare(self, plan: Plan) -> None:
        """Another run: what its agents are built from; the common splits are stored once."""
        self._messages, self._closed = None, []
        threads, cuda = max(1, int(self._layout.cpus)), self._layout.gpus > 0
        self._plan, self._specs = plan, plan.specs(threads, cuda)
        self._held = ray.put(plan.held())

    def _log(self) -> None:
        """Say where to look for what each agent says."""
        places = self._wait([actor.where.remote() for actor in self._actors])
        log.info("%d agents\n%s", len(places), "\n".join(places))

    def _replace_dead(self) -> None:
        dead = gone(dict(enumerate(self._actors)))
        for k in dead:
            ray.kill(self._actors[k])
        for k, actor in start(self._create, dead).items():
            self._actors[k] = actor

    def _create(self, k: int) -> Any:
        """A new actor for agent k, in the agent's own bundle."""
        actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        place = PlacementGroupSchedulingStrategy(self._group, self._layout.bundle_of[k])
        return actor.options(
            num_cpus=self._layout.cpus, num_gpus=self._layout.gpus, scheduling_strategy=place
        ).remote(*self._inputs(k))

    def _inputs(self, k: int) -> tuple[AgentSpec, Split | None, Any]:
        """What agent k is built from."""
        return self._specs[k], self._plan.share(k), self._held

    def _centroid(self, which: str = "now") -> Any:
        states = [actor.state.remote(which) for actor in self._actors]
        return self._actors[0].mean.remote(*states)

    def _receive(self) -> list[list[Any]]:
        messages, self._messages = self._messages, None
        return [[] for _ in self._specs] if messages is None else inboxes(self._specs, messages)

    def _get(self, references: Sequence[Any]) -> Any:
        """The values, after every round that was closed has ended well."""
        closed, self._closed = self._closed, []
        return self._wait([*references, *closed])[: len(references)]

    def _wait(self, references: Sequence[Any]) -> list[Any]:
        try:
            values: list[Any] = ray.get(list(references))
        except RayError as error:
            ids = {actor._actor_id.hex(): k for k, actor in enumerate(self._actors)}
            raise agent_error(error, ids) from error
        return values
