"""Plan of a run: its preparation before the first round, and every check possible by then.

A plan holds graph, matrix, data, shares and specs. `make_plan` raises `InputError` with one line
for anything that cannot work, so a sweep makes all its plans before it starts a trial.
"""

import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import networkx as nx
import numpy as np
from numpy.typing import NDArray

from raydist.adversary.schedule import Timetable
from raydist.config.adversary import Wasserstein
from raydist.config.experiment import Experiment
from raydist.config.fields import in_rounds
from raydist.engine.agent import risk
from raydist.engine.agent.spec import AgentSpec
from raydist.engine.agent.task import Split
from raydist.engine.checks import check_own, checked, input_of
from raydist.engine.probe import probe, probe_key
from raydist.engine.source import Source, source_of
from raydist.errors import InputError
from raydist.learning import data as datasets
from raydist.network import topology, weights
from raydist.network.strategy import find
from raydist.results.identity import checkpoint_of, named_files
from raydist.seeding import Purpose, drawing
from raydist.storage import Storage

BASE_BYTES = 350e6  # a process that has imported torch (its CUDA build), measured


@dataclass(frozen=True)
class Plan:
    """One run, ready to start.

    Attributes:
        config: the experiment.
        graph: the topology, nodes 0..K-1.
        A: the strategy's combination matrix, (K, K), columns sum to 1; not always the graph's.
        mixing_rate: the mixing rate of A.
        rounds: the length of the run.
        source: the data from which the agents learn.
        parameters: P, the number of parameters of one model.
        activations: count of numbers that one sample's forward pass keeps for the backward pass.
    """

    config: Experiment
    graph: nx.Graph | nx.DiGraph
    A: NDArray[np.float64]
    mixing_rate: float
    rounds: int
    source: Source
    parameters: int
    activations: int

    @cached_property
    def contents(self) -> dict[str, str]:
        """Digests of the content of the files and images that the experiment names, by key."""
        return named_files(self.config) | self.source.contents

    @property
    def data(self) -> datasets.Data | None:
        """The images; None for the quadratic task."""
        return self.source.data

    @property
    def shares(self) -> list[NDArray[np.int64]]:
        """Each agent's positions in the training set."""
        return self.source.shares

    @property
    def agents(self) -> int:
        """Number of agents K."""
        return self.config.topology.agents

    @property
    def every(self) -> int:
        """Rounds between two measurements of the state."""
        return in_rounds(self.config.evaluate.every, self.rounds)

    @property
    def epoch(self) -> int:
        """Rounds in a pass over the mean share."""
        return self.source.epoch

    @property
    def times(self) -> Timetable:
        """Length, epochs and periods of the run."""
        return Timetable(self.rounds, self.epoch, self.config.periods)

    def measured(self, n: int) -> bool:
        """Tell if the state after round n is measured."""
        return n % self.every == 0 or n == self.rounds

    @property
    def validated(self) -> int:
        """Number of validation images of a measurement."""
        return min(self.source.validation_images, self.config.evaluate.validation_images)

    def sensed(self, n: int) -> bool:
        """Tell if the network's sensitivity is taken after round n, at the start of an epoch."""
        return self._sensitive and n % self.epoch == 0

    @property
    def _sensitive(self) -> bool:
        """Tell if the sensitivity sets each batch's part of the budget."""
        loss = self.config.loss
        return isinstance(loss, Wasserstein) and loss.order != "inf"

    def next_barrier(self, n: int) -> int:
        """First round from n on that all agents must finish before the next one begins."""
        periods = [self.every] + ([self.epoch] if self._sensitive else [])
        return min(self.rounds, *(-(-n // period) * period for period in periods))

    def specs(self, threads: int, cuda: bool) -> list[AgentSpec]:
        """Specification of each agent; arguments as in `AgentSpec`."""
        config = self.config
        if start := checkpoint_of(config):  # agents may run in another folder
            file = str(Path(start).expanduser().absolute())
            model = config.model.model_copy(update={"checkpoint": file})
            config = config.model_copy(update={"model": model})
        shape, classes, scale = input_of(self.config, self.data)
        return [
            AgentSpec(
                agent=k,
                config=config,
                neighbours=tuple(int(l) for l in np.flatnonzero(column)),
                weights=tuple(float(a) for a in column[np.flatnonzero(column)]),
                listeners=int(np.count_nonzero(np.delete(self.A[k], k))),
                times=self.times,
                shape=shape,
                classes=classes,
                scale=scale,
                threads=threads,
                cuda=cuda,
                title=topology.title(self.graph, k),
            )
            for k, column in enumerate(self.A.T)
        ]

    def share(self, k: int) -> Split | None:
        """The private training images and labels of agent k."""
        return self.source.share(k)

    def held(self) -> dict[str, Split]:
        """The splits that all agents may see."""
        return self.source.held()

    def agent_bytes(self) -> float:
        """Estimate of an agent's memory: process, weights and their copies, share, activations."""
        item = 4 if self.config.dtype == "float32" else 8
        copies = 5 + (
            getattr(self.config.optim, "momentum", 0) > 0
        )  # w, gradient, sent, message, w before
        return (
            BASE_BYTES
            + self.source.agent_bytes
            + item * (copies * self.parameters + self.activations * self.config.data.batch)
        )

    def describe(self) -> str:
        """Description of the run's needs, in one line."""
        return (
            f"{self.agents} agents ({self.config.topology.kind}, mixing rate "
            f"{self.mixing_rate:.4f}), {self.parameters:,} parameters, {self.rounds} rounds, "
            f"about {self.agent_bytes() / 1e6:,.0f} MB per agent"
        )

    @property
    def theory_missing(self) -> str:
        """Reason why the excess risk of this run is not predicted, or ""."""
        return risk.unpredictable(self.config)

    def theory(self) -> dict[float, float]:
        """Predicted excess risk of every measured round and, at math.inf, in the limit, (E1).

        Returns:
            Round -> ER_n; empty if the theory does not apply or was not asked for.
        """
        rounds = [*filter(self.measured, range(self.rounds + 1)), math.inf]
        if self.theory_missing:
            return {}
        return self.source.theory(self.A, rounds)


def make_plan(
    config: Experiment,
    probed: dict[str, tuple[int, int]] | None = None,
    images: datasets.Data | None = None,
) -> Plan:
    """Prepare a run.

    Args:
        config: the experiment.
        probed: results of `probe` by key, from earlier plans; this function adds to them.
        images: the images of the data set, if at hand; default: read them.

    Returns:
        The plan.

    Raises:
        InputError: if anything cannot work; its one line says why and what to write instead.
    """
    if config.snapshot.path is not None:
        checked("snapshot.path", Storage, config.snapshot.path)
    graph = checked("topology", _graph, config)
    with drawing(Purpose.IN_CODE, config.topology.seed):
        A = checked("topology", weights.build, config.topology.weights, graph)
    checked("topology", weights.check, A, graph)
    given, A = A, checked("strategy", _combined, config.strategy, A)
    if A is given and weights.unused(config.topology.weights, graph):
        warnings.warn(
            f'the edge weights of topology "{config.topology.kind}" are not used: write '
            'topology.weights = "edge-weights" to combine with them',
            stacklevel=2,
        )
    source = source_of(config, images)
    key, probed = probe_key(config), {} if probed is None else probed
    if key not in probed:
        probed[key] = probe(config, source.data)
    parameters, activations = probed[key]
    if config.evaluate.subspace > parameters:
        raise InputError(
            f"evaluate.subspace is {config.evaluate.subspace}, expected at most {parameters}, the "
            "model's parameters: write 10"
        )
    rounds = config.rounds or max(1, round((config.epochs or 0) * source.epoch))
    rate = weights.mixing_rate(A)
    plan = Plan(config, graph, A, rate, rounds, source, parameters, activations)
    check_own(config, plan.times)
    ends = [0, *plan.times.ends]
    if sorted(set(ends)) != ends:
        raise InputError(
            f"periods is {config.periods}, expected fractions of {rounds} rounds that lie a "
            "round apart: remove some"
        )
    rule = config.stop.fosc
    if rule is not None and rule.adv_above_clean:
        period = 1 if rule.on == "train" else plan.every
        if config.telemetry.every == 0 or period % config.telemetry.every:
            raise InputError(
                "stop.fosc.adv_above_clean needs the training accuracies of every measurement: "
                f"write telemetry = {{ every = {period} }}"
            )
    return plan


def _combined(name: str, A: NDArray[np.float64]) -> NDArray[np.float64]:
    """The matrix that a strategy combines with."""
    found = find(name).matrix(A)
    if ":" in name:
        found = np.asarray(found, dtype=np.float64)
        weights.check(found)
    return found


def _graph(config: Experiment) -> nx.Graph | nx.DiGraph:
    table = config.topology
    with drawing(Purpose.IN_CODE, table.seed):
        graph = topology.build(table.kind, table.agents, table.seed, **(table.model_extra or {}))
    topology.check_connected(graph)
    return graph
