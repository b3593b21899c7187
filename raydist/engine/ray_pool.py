"""The pool of Ray actors: one long-lived actor for each agent, on a fraction of a CPU or GPU.

A round is one call per agent. Its message is a NumPy vector in the object store; the neighbours get
the reference as a direct argument, so weights travel along edges and never through the driver. No
restarts and no retries: Ray's own would silently reset an agent's state. `RayPool.revive` replaces
the dead, and the keeper of the run brings all agents back to one round.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raydist.config import Experiment, InputError
from raydist.engine.agent import Agent, Info, Message
from raydist.engine.plan import Plan
from raydist.engine.pool import centroid_files, inboxes
from raydist.engine.ray_recover import agent_error, gone, start
from raydist.engine.spec import AgentSpec, agent_file
from raydist.engine.task import Split
from raydist.measure.masks import Masks
from raydist.measure.trained import Sums


@dataclass(frozen=True)
class Layout:
    """What the agents of a trial reserve, and where each one goes.

    Attributes:
        cpus: of one agent.
        gpus: of one agent.
        bundles: of the placement group: one per GPU for agents that share it, else one per agent.
        bundle_of: the bundle of each agent; agents with neighbouring numbers share a GPU.
    """

    cpus: float
    gpus: float
    bundles: list[dict[str, float]]
    bundle_of: list[int]


def layout(config: Experiment, cluster: Mapping[str, float]) -> Layout:
    """The resources of a trial.

    Args:
        config: the experiment; `agent.cpus` and `agent.gpus` default to an equal share of the
            cluster, at most one of each.
        cluster: total resources, as `ray.cluster_resources()`.

    Returns:
        The layout.

    Raises:
        InputError: if the cluster does not have them; says what it has.

    Example:
        >>> from raydist.config import validate
        >>> config = validate({"topology": {"kind": "ring", "agents": 4}, "rounds": 1})
        >>> layout(config, {"CPU": 2}).bundles
        [{'CPU': 0.5}, {'CPU': 0.5}, {'CPU': 0.5}, {'CPU': 0.5}]
        >>> layout(config, {"CPU": 8, "GPU": 1}).bundles
        [{'CPU': 4.0, 'GPU': 1.0}]
    """
    agents, wanted = config.topology.agents, config.agent
    has = {name: cluster.get(name, 0.0) for name in ("CPU", "GPU")}
    cpus = min(1.0, _floor(has["CPU"] / agents)) if wanted.cpus is None else wanted.cpus
    gpus = min(1.0, _floor(has["GPU"] / agents)) if wanted.gpus is None else wanted.gpus
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"agent.gpus is {gpus}, expected a fraction up to 1 or a whole number")
    if agents * cpus > has["CPU"] + 1e-6:
        raise InputError(
            f"agent.cpus = {cpus:g} for {agents} agents needs {agents * cpus:g} CPUs, but the "
            f"cluster has {has['CPU']:g}: write agent.cpus = {_floor(has['CPU'] / agents):g}"
        )
    if _gpus_needed(agents, gpus) > has["GPU"]:
        raise InputError(
            f"agent.gpus = {gpus:g} for {agents} agents needs {_gpus_needed(agents, gpus)} GPUs, "
            f"but the cluster has {has['GPU']:g}: "
            + (f"write agent.gpus = {_floor(has['GPU'] / agents):g}" if has["GPU"] else "write 0")
        )
    together = max(1, math.floor(1 / gpus + 1e-6)) if gpus > 0 else 1
    groups = [range(first, min(first + together, agents)) for first in range(0, agents, together)]
    bundles = [
        {"CPU": round(cpus * len(g), 4)} | ({"GPU": round(gpus * len(g), 4)} if gpus else {})
        for g in groups
    ]
    return Layout(cpus, gpus, bundles, [i for i, group in enumerate(groups) for _ in group])


def _gpus_needed(agents: int, gpus: float) -> int:
    """Whole GPUs: an agent's fraction cannot be split over two."""
    if gpus == 0 or gpus > 1:
        return int(agents * gpus)
    return math.ceil(agents / math.floor(1 / gpus + 1e-6))


def _floor(share: float) -> float:
    """Down to Ray's resolution of resources, and to 1/m so that m agents fill a whole one."""
    if 0 < share < 1:
        share = 1 / math.ceil(1 / share - 1e-9)
    return math.floor(share * 1e4) / 1e4


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

    def reset(self, plan: Plan) -> None:
        """As `Pool.reset`, in the same, warm, processes."""
        self._prepare(plan)
        self._replace_dead()
        self._wait([actor.reset.remote(*self._inputs(k)) for k, actor in enumerate(self._actors)])

    def revive(self) -> None:
        """As `Pool.revive`."""
        self._messages, self._closed = None, []
        self._replace_dead()

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

    def save(self, folder: Path, n: int) -> None:
        """As `Pool.save`; every agent writes its own file."""
        calls = [
            actor.save.remote(str(folder / agent_file(k))) for k, actor in enumerate(self._actors)
        ]
        calls += [
            self._actors[0].save.remote(str(folder / name), self._centroid(which))
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
