"""Where the agents of a trial go: what each reserves, and whether the nodes have room for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raydist.config import Experiment, InputError

Resources = Mapping[str, float]  # by Ray's names: "CPU", "GPU", "memory" (bytes), ...
SLACK = 1e-6  # shares such as 1/3 are rounded


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


def layout(config: Experiment, cluster: Resources | Sequence[Resources]) -> Layout:
    """The resources of a trial.

    Args:
        config: the experiment; `agent.cpus` and `agent.gpus` default to an equal share of the
            cluster, at most one of each.
        cluster: what each node has, as `ray_session.cluster_resources()`; or one node.

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
    nodes = [cluster] if isinstance(cluster, Mapping) else cluster
    agents, wanted = config.topology.agents, config.agent
    has = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
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
    found = _layout(agents, cpus, gpus)
    if place(found.bundles, nodes) is None:
        found = _smaller(found, agents, nodes, chosen=wanted.cpus is not None)
    return found


def _layout(agents: int, cpus: float, gpus: float) -> Layout:
    together = max(1, math.floor(1 / gpus + 1e-6)) if gpus > 0 else 1
    groups = [range(first, min(first + together, agents)) for first in range(0, agents, together)]
    bundles = [
        {"CPU": round(cpus * len(g), 4)} | ({"GPU": round(gpus * len(g), 4)} if gpus else {})
        for g in groups
    ]
    return Layout(cpus, gpus, bundles, [i for i, group in enumerate(groups) for _ in group])


def _smaller(refused: Layout, agents: int, nodes: Sequence[Resources], chosen: bool) -> Layout:
    """The layout with the largest share of CPUs that the nodes have room for.

    Args:
        refused: the layout that they have no room for.
        agents: K.
        nodes: what each node has.
        chosen: whether the user wrote its share.

    Returns:
        The layout.

    Raises:
        InputError: if there is none, or if the user chose another share.
    """
    shares = [*range(int(refused.cpus), 0, -1), *(_floor(1 / m) for m in range(2, 101))]
    fitting = (_layout(agents, share, refused.gpus) for share in shares if share < refused.cpus)
    found = next((each for each in fitting if place(each.bundles, nodes) is not None), None)
    if found is not None and not chosen:
        return found
    have = "; ".join(
        f"{node.get('CPU', 0):g} CPUs" + (f" {node['GPU']:g} GPUs" if node.get("GPU") else "")
        for node in nodes
    )
    gpus = f", agent.gpus = {refused.gpus:g}" if refused.gpus else ""
    raise InputError(
        f"{agents} agents with agent.cpus = {refused.cpus:g}{gpus} do not fit on the nodes, which "
        f"have {have}"
        + (f": write agent.cpus = {found.cpus:g}" if found else ": write fewer agents per GPU")
    )


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


def place(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> list[Resources] | None:
    """Put bundles on nodes, the large ones first, each on the first node that has room.

    Exact for bundles of one size, as those of a trial are but for the last.

    Args:
        bundles: each must fit on one node as a whole.
        nodes: what each node has.

    Returns:
        What is left of each node; None if a bundle found no room.

    Example:
        >>> place([{"CPU": 2}, {"CPU": 2}], [{"CPU": 3}, {"CPU": 2}])
        [{'CPU': 1}, {'CPU': 0}]
        >>> place([{"CPU": 2}, {"CPU": 2}], [{"CPU": 3}, {"CPU": 1}])
    """
    left = [dict(node) for node in nodes]
    for bundle in sorted(bundles, key=_size, reverse=True):
        room = next((node for node in left if _has(node, bundle)), None)
        if room is None:
            return None
        for name, amount in bundle.items():
            room[name] -= amount
    return list(left)


def at_once(bundles: Sequence[Resources], nodes: Sequence[Resources], limit: int) -> int:
    """How many trials run at the same time.

    Args:
        bundles: of each of them.
        nodes: what each node has.
        limit: the most that there may be.

    Returns:
        Their number.

    Example:
        >>> at_once([{"CPU": 0.25}] * 4, [{"CPU": 2}], limit=10)
        2
    """
    left: Sequence[Resources] | None = nodes
    for running in range(limit):
        left = place(bundles, left) if left is not None else None
        if left is None:
            return running
    return limit


def _size(bundle: Resources) -> list[float]:
    return [bundle.get(name, 0.0) for name in ("GPU", "CPU")]


def _has(node: Resources, bundle: Resources) -> bool:
    return all(node.get(name, 0.0) + SLACK >= amount for name, amount in bundle.items())
