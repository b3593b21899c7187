"""The pool of Ray actors: one long-lived actor for each agent, on a fraction of a CPU or GPU.

A round is one call per agent. Its message is a NumPy vector in the object store; the neighbours get
the reference as a direct argument, so weights travel along edges and never through the driver. No
restarts and no retries: Ray's own would silently reset an agent's state.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from raydist.engine.agent import Agent, Info, Message
from raydist.engine.layout import Layout
from raydist.engine.plan import Plan
from raydist.engine.pool import agent_file, centroid_files, inboxes
from raydist.engine.spec import AgentSpec
from raydist.engine.task import Split
from raydist.measure.trained import Masks, Sums


class AgentError(RuntimeError):
    """An agent died or raised: says which one and why, in one line."""


class _Actor(Agent):
    """An agent in a process of its own."""

    def __init__(self, spec: AgentSpec, share: Split | None, held: dict[str, Split]) -> None:
        # What arrives is a read-only view of the object store, and is only read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        super().__init__(spec, share, held)

    def reset(self, spec: AgentSpec, share: Split | None, held: dict[str, Split]) -> None:
        """Begin another run in the same process."""
        super().__init__(spec, share, held)


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
        actor: Any = ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        inputs = self._inputs(plan)
        self._messages: list[Any] | None = None
        self._closed: list[Any] = []
        self._actors: list[Any] = [
            actor.options(
                num_cpus=resources.cpus,
                num_gpus=resources.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, bundle),
            ).remote(*each)
            for bundle, each in zip(resources.bundle_of, inputs, strict=True)
        ]
        self._wait([a.state.remote() for a in self._actors])

    def reset(self, plan: Plan) -> None:
        """Begin another run of the same shape with the same, warm, processes."""
        inputs = self._inputs(plan)
        self._wait([a.reset.remote(*i) for a, i in zip(self._actors, inputs, strict=True)])

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
        self._closed += [actor.learn_sensitivity.remote(power) for actor in self._actors]

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
        found: list[Masks] = self._get([a.evaluate.remote(*centroids) for a in self._actors])
        return found

    def save(self, folder: Path) -> None:
        """As `Pool.save`; every agent writes its own file."""
        calls = [
            actor.save.remote(str(folder / agent_file(k))) for k, actor in enumerate(self._actors)
        ]
        calls += [
            self._actors[0].save.remote(str(folder / name), self._centroid(which))
            for name, which in centroid_files(self._specs[0].config).items()
        ]
        self._get(calls)

    def states(self) -> list[Message]:
        """As `Pool.states`."""
        states: list[Message] = self._get([actor.state.remote() for actor in self._actors])
        return states

    def shutdown(self) -> None:
        """As `Pool.shutdown`."""
        self._messages = None
        for actor in self._actors:
            ray.kill(actor)
        if self._own_group is not None:
            remove_placement_group(self._own_group)

    def _inputs(self, plan: Plan) -> list[tuple[AgentSpec, Split | None, Any]]:
        """What each agent is built from; the common splits are in the object store once."""
        self._messages, self._closed = None, []
        threads, cuda = max(1, int(self._layout.cpus)), self._layout.gpus > 0
        self._specs = plan.specs(threads, cuda)
        held = ray.put(plan.held())
        return [(spec, plan.share(spec.agent), held) for spec in self._specs]

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
            raise AgentError(self._explain(error)) from error
        return values

    def _explain(self, error: BaseException) -> str:
        """Which agent failed, and how."""
        cause = getattr(error, "cause", None) or error
        dead = getattr(cause, "actor_id", None)
        who = [k for k, actor in enumerate(self._actors) if actor._actor_id.hex() == dead]
        lines = str(cause).strip().splitlines()
        if who:
            return f"agent {who[0]} died: {' '.join(line.strip() for line in lines)[:300]}"
        return f"{type(cause).__name__}: {lines[-1].strip() if lines else ''}"
