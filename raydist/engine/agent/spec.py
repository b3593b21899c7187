"""The specification of an agent, sent to it when it starts."""

from dataclasses import dataclass

from raydist.adversary.schedule import Timetable
from raydist.config.experiment import Experiment


@dataclass(frozen=True)
class AgentSpec:
    """An agent's number, place in the graph, experiment and means.

    Attributes:
        agent: the agent's number k in 0..K-1.
        config: the experiment.
        neighbours: the neighbourhood N_k in ascending order, with k itself unless a_kk = 0.
        weights: the a_lk in the same order.
        listeners: number of others that receive from k; on a directed graph not its neighbours.
        times: length, epochs and periods of the run.
        shape: shape of one input, (C, H, W).
        classes: number of classes.
        scale: the factor that brings stored pixels to [0, 1].
        threads: number of CPU threads that the agent may use.
        cuda: True if the agent computes on a GPU.
        title: the agent's name in messages: "agent 3", or "agent 3 (Paris)" on a named graph.
    """

    agent: int
    config: Experiment
    neighbours: tuple[int, ...]
    weights: tuple[float, ...]
    listeners: int
    times: Timetable
    shape: tuple[int, ...]
    classes: int
    scale: float
    threads: int
    cuda: bool
    title: str

    @property
    def others(self) -> tuple[int, ...]:
        """The neighbours without k itself."""
        return tuple(l for l in self.neighbours if l != self.agent)
