"""Needs of a trial and of a whole study, before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from raydist.engine.cluster.layout import Resources, at_once
from raydist.engine.plan import BASE_BYTES, Plan
from raydist.errors import InputError

WINDOW = 1  # rounds in flight beyond the one that is read (`engine.driver.train`)
LEAST_BYTES = 150e6  # of a process with torch; the estimate itself has BASE_BYTES, to be safe


@dataclass(frozen=True)
class Needs:
    """Needs of one trial.

    Attributes:
        agents: the number of agents K.
        actors: the number of processes that they live in, unless the pool is local.
        rounds: the rounds of its run.
        parameters: the number of parameters P of one model.
        mixing_rate: the mixing rate of its combination matrix.
        memory: the memory of one agent with its process, in bytes.
        store: the object store's bytes: K messages of P numbers in window + 2 rounds, and the
            images that all agents see.
        line: the needs in words.
    """

    agents: int
    actors: int
    rounds: int
    parameters: int
    mixing_rate: float
    memory: float
    store: float
    line: str

    def total(self, local: bool) -> float:
        """Memory of the trial, in bytes: in a process for each actor, or in one for all agents."""
        return self.agents * (self.memory - BASE_BYTES) + self._processes(local) * BASE_BYTES

    def least(self, local: bool) -> float:
        """The least memory with which the trial can run, in bytes."""
        return self.total(local) - (BASE_BYTES - LEAST_BYTES) * self._processes(local)

    def _processes(self, local: bool) -> int:
        return 1 if local else self.actors


def needs(plan: Plan) -> Needs:
    """The needs of a run of a plan."""
    item = 4 if plan.config.dtype == "float32" else 8
    held = sum(part.nbytes for split in plan.held().values() for part in split)
    return Needs(
        plan.agents,
        -(-plan.agents // plan.config.agent.per_actor),
        plan.rounds,
        plan.parameters,
        plan.mixing_rate,
        plan.agent_bytes(),
        plan.agents * item * plan.parameters * (WINDOW + 2) + held,
        plan.describe(),
    )


def check_memory(trial: Needs, nodes: Sequence[Resources], local: bool) -> None:
    """The memory of a trial is there.

    Args:
        trial: the trial's needs.
        nodes: the resources of each node.
        local: whether its agents share one process.

    Raises:
        InputError: if all nodes together (for one process: the largest) have less.
    """
    each = [node.get("memory", 0.0) for node in nodes]
    has = max(each) if local else sum(each)
    if 0 < has < trial.least(local):
        raise InputError(
            f"{trial.agents} agents need {size(trial.least(local))} of memory at least, but "
            f"{'a node' if local else 'the cluster'} has {size(has)}: write fewer agents, a "
            "smaller model or a smaller data.batch"
        )


def describe(
    trials: Sequence[tuple[Needs, Sequence[Resources]]],
    nodes: Sequence[Resources],
    count: int,
    local: bool,
) -> tuple[int, str]:
    """The line about what a study needs while it runs.

    Args:
        trials: the needs of each of its shapes, and the bundles that it reserves.
        nodes: the resources of each node.
        count: the number of trials that there may be at a time.
        local: whether the agents of a trial share one process.

    Returns:
        How many trials run at the same time at most; and a line that says so, with what the most
        demanding ones take together.
    """
    running = [(at_once(bundles, nodes, count), need, bundles) for need, bundles in trials]
    least, most = min(n for n, _, _ in running), max(n for n, _, _ in running)
    cpus = max(n * sum(b.get("CPU", 0.0) for b in bundles) for n, _, bundles in running)
    gpus = max(n * sum(b.get("GPU", 0.0) for b in bundles) for n, _, bundles in running)
    memory = max(n * need.total(local) for n, need, _ in running)
    store = 0.0 if local else max(n * need.store for n, need, _ in running)
    parts = [f"{cpus:g} of {_sum(nodes, 'CPU'):g} CPUs"]
    parts += [f"{gpus:g} of {_sum(nodes, 'GPU'):g} GPUs"] if gpus else []
    parts += [f"about {size(memory)} of {size(_sum(nodes, 'memory'))} memory"]
    if store:
        has = _sum(nodes, "object_store_memory")
        more = " (more than it holds: it will use the disk)" if 0 < has < store else ""
        parts += [f"{size(store)} in the object store{more}"]
    together = f"{least}" if least == most else f"{least} to {most}"
    return most, f"{together} at a time: {', '.join(parts)}"


def size(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.2g} MB"


def _sum(nodes: Sequence[Resources], name: str) -> float:
    return sum(node.get(name, 0.0) for node in nodes)
