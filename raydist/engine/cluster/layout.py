"""Layout of a trial on the nodes: resources and place of each agent, and a check for room."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raydist.config.experiment import Experiment
from raydist.errors import InputError

Resources = Mapping[str, float]  # by Ray's names: "CPU", "GPU", "memory" (bytes), ...
SLACK = 1e-6  # shares such as 1/3 are rounded


@dataclass(frozen=True)
class Layout:
    """Resources that the agents of a trial reserve, and the place of each.

    Attributes:
        groups: the agents of each actor, which have neighbouring numbers.
        cpus: number of CPUs of one agent.
        gpus: number of GPUs of one agent.
        bundles: the placement group's bundles: one per GPU that actors share, else one per actor.
        bundle_of: the bundle of each actor; actors with neighbouring agents share a GPU.
        strategy: the placement group's strategy, by Ray's names.
    """

    groups: list[range]
    cpus: float
    gpus: float
    bundles: list[dict[str, float]]
    bundle_of: list[int]
    strategy: str = "PACK"

    def reserved(self, i: int) -> tuple[float, float]:
        """CPUs and GPUs of actor i, summed over its agents."""
        agents = len(self.groups[i])
        return round(agents * self.cpus, 4), round(agents * self.gpus, 4)


def layout(config: Experiment, cluster: Resources | Sequence[Resources]) -> Layout:
    """Lay out the resources of a trial.

    Args:
        config: the experiment; `agent.cpus` and `agent.gpus` default to an equal share of the
            cluster, at most one of each for an actor.
        cluster: resources of each node, as `session.cluster_resources()`; or of one node.

    Returns:
        The layout.

    Raises:
        InputError: if the cluster lacks the resources; the message lists those it has.

    Example:
        >>> from raydist.config.experiment import validate
        >>> config = validate({"topology": {"kind": "ring", "agents": 4}, "rounds": 1})
        >>> layout(config, {"CPU": 2}).bundles
        [{'CPU': 0.5}, {'CPU': 0.5}, {'CPU': 0.5}, {'CPU': 0.5}]
        >>> layout(config, {"CPU": 8, "GPU": 1}).bundles
        [{'CPU': 4.0, 'GPU': 1.0}]
    """
    nodes = [cluster] if isinstance(cluster, Mapping) else cluster
    if config.exchange == "board":
        return _on_one_node(config, nodes)
    agents, wanted = config.topology.agents, config.agent
    each = min(wanted.per_actor, agents)
    actors = -(-agents // each)
    has = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    cpus, gpus = (
        _equal_share(has[name], actors, each) if share is None else share
        for name, share in (("CPU", wanted.cpus), ("GPU", wanted.gpus))
    )
    if gpus > 1 and gpus != int(gpus):
        raise InputError(f"agent.gpus is {gpus}, expected a fraction up to 1 or a whole number")
    if each > 1 and each * gpus > 1 + SLACK:
        raise InputError(
            f"agent.gpus = {gpus:g} for agent.per_actor = {each} is more than one GPU for an "
            f"actor: write agent.gpus = {_floor(1 / each):g}"
        )
    if agents * cpus > has["CPU"] + 1e-6:
        raise InputError(
            f"agent.cpus = {cpus:g} for {agents} agents needs {agents * cpus:g} CPUs, but the "
            f"cluster has {has['CPU']:g}: write agent.cpus = {_floor(has['CPU'] / agents):g}"
        )
    needed = _gpus_needed(actors, each * gpus)
    if needed > has["GPU"]:
        raise InputError(
            f"agent.gpus = {gpus:g} for {agents} agents needs {needed} GPUs, but the cluster has "
            f"{has['GPU']:g}: write "
            + (f"agent.gpus = {_equal_share(has['GPU'], actors, each):g}" if has["GPU"] else "0")
        )
    groups = [range(first, min(first + each, agents)) for first in range(0, agents, each)]
    found = _layout(groups, cpus, gpus)
    if place(found.bundles, nodes) is None:
        found = _smaller(found, nodes, chosen=wanted.cpus is not None)
    return found


def _on_one_node(config: Experiment, nodes: Sequence[Resources]) -> Layout:
    """The layout on the largest node."""
    anywhere = config.model_copy(update={"exchange": "objects"})
    try:
        found = layout(anywhere, max(nodes, key=_size))
    except InputError as error:
        if len(nodes) == 1:
            raise
        raise InputError(
            f'exchange = "board" needs all agents on one node: {error}; or write exchange = "auto"'
        ) from None
    return replace(found, strategy="STRICT_PACK")


def _layout(groups: list[range], cpus: float, gpus: float) -> Layout:
    """Build a layout in which actors that together fill a GPU share a bundle."""
    share = gpus * len(groups[0])
    together = max(1, math.floor(1 / share + 1e-6)) if gpus > 0 else 1
    bundles = []
    for first in range(0, len(groups), together):
        agents = sum(map(len, groups[first : first + together]))
        gpu = {"GPU": round(gpus * agents, 4)} if gpus else {}
        bundles.append({"CPU": round(cpus * agents, 4)} | gpu)
    return Layout(groups, cpus, gpus, bundles, [i // together for i in range(len(groups))])


def _smaller(refused: Layout, nodes: Sequence[Resources], chosen: bool) -> Layout:
    """Find the layout with the largest share of CPUs for which the nodes have room.

    Args:
        refused: the layout for which the nodes lack room.
        nodes: resources of each node.
        chosen: True if the user wrote the share of CPUs.

    Returns:
        The layout.

    Raises:
        InputError: if no layout fits, or if the user chose another share.
    """
    groups = refused.groups
    shares = [*range(int(refused.cpus), 0, -1), *(_floor(1 / m) for m in range(2, 101))]
    fitting = (_layout(groups, share, refused.gpus) for share in shares if share < refused.cpus)
    found = next((each for each in fitting if place(each.bundles, nodes) is not None), None)
    if found is not None and not chosen:
        return found
    have = "; ".join(
        f"{node.get('CPU', 0):g} CPUs" + (f" {node['GPU']:g} GPUs" if node.get("GPU") else "")
        for node in nodes
    )
    gpus = f", agent.gpus = {refused.gpus:g}" if refused.gpus else ""
    raise InputError(
        f"{groups[-1][-1] + 1} agents with agent.cpus = {refused.cpus:g}{gpus} do not fit on the "
        f"nodes, which have {have}"
        + (f": write agent.cpus = {found.cpus:g}" if found else ": write fewer agents per GPU")
    )


def _gpus_needed(actors: int, gpus: float) -> int:
    """Number of whole GPUs, because an actor's fraction cannot be split over two."""
    if gpus == 0 or gpus > 1:
        return int(actors * gpus)
    return math.ceil(actors / math.floor(1 / gpus + 1e-6))


def _equal_share(has: float, actors: int, each: int) -> float:
    """Share of an agent if `actors` of `each` agents divide `has`; at most one per actor."""
    return math.floor(_floor(min(1.0, has / actors)) / each * 1e4 + SLACK) / 1e4


def _floor(share: float) -> float:
    """Round down to Ray's resolution, and to 1/m so that m agents fill a whole one."""
    if 0 < share < 1:
        share = 1 / math.ceil(1 / share - 1e-9)
    return math.floor(share * 1e4) / 1e4


def place(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> list[Resources] | None:
    """Put bundles on nodes, the large ones first, each on the first node that has room.

    Exact for bundles of one size, and a trial's bundles have one size except the last.

    Args:
        bundles: the bundles, each of which must fit on one node as a whole.
        nodes: resources of each node.

    Returns:
        Resources left on each node; None if a bundle found no room.

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
    """Number of trials that run at the same time.

    Args:
        bundles: the bundles of each trial.
        nodes: resources of each node.
        limit: the largest number allowed.

    Returns:
        The number of trials.

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
