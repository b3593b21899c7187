"""What an agent is told when it starts."""

from dataclasses import dataclass

from raydist.adversary.schedule import Timetable
from raydist.config.experiment import Experiment


@dataclass(frozen=True)
class AgentSpec:
    """What an agent is told when it starts.

    Attributes:
        agent: its number k in 0..K-1.
        config: the experiment.
        neighbours: the l of its neighbourhood N_k in ascending order, k among them unless a_kk = 0.
        weights: the a_lk in the same order.
        listeners: how many others hear it; on a directed graph not those that it hears.
        times: length, epochs and periods of the run.
        shape: of one input, (C, H, W).
        classes: number of classes.
        scale: what brings stored pixels to [0, 1].
        threads: CPU threads that it may use.
        cuda: whether it computes on a GPU.
        title: what messages call it: "agent 3", or "agent 3 (Paris)" on a graph with names.
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
        """The neighbours but k itself."""
        return tuple(l for l in self.neighbours if l != self.agent)
