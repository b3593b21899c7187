"""Decent-DP: 16 processes with gloo, identity training.

python decent.py [SCHEDULE]

Decent-DP lets an agent talk in one group a step, so it has no graph in which each combines with
four neighbours at once. "rows": groups of four, rows and columns of a 4 x 4 grid in turn, by
all-reduce. "pairs": the four matchings of the ring lattice of degree 4, one a step; four steps are
a round of that graph. "ring": its own ring, one neighbour a step. It mixes with what was sent a
step before, behind the gradient.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from decent_dp.ddp import DecentralizedDataParallel
from decent_dp.topo import Edge, Topology, TopologyReg
from serve import AGENTS, serve, start_value
from torch import Tensor, nn

WARM = 3
ROWS = [
    [list(range(4 * i, 4 * i + 4)) for i in range(4)],
    [list(range(i, 16, 4)) for i in range(4)],
]
PAIRS = [
    [[i, (i + 1) % AGENTS] for i in range(0, AGENTS, 2)],
    [[i, (i + 1) % AGENTS] for i in range(1, AGENTS, 2)],
    [[i, (i + 2) % AGENTS] for i in range(AGENTS) if i % 4 < 2],
    [[i, (i + 2) % AGENTS] for i in range(AGENTS) if i % 4 >= 2],
]
SCHEDULES = {
    "rows": (ROWS, 1),
    "pairs": (PAIRS, 4),
    "ring": (PAIRS[:2], 1),
}  # groups, steps a round


class Scheduled(Topology):
    """Groups by turns, uniform weights."""

    def __init__(self, groups: list[list[list[int]]]) -> None:
        """Take the groups of each turn.

        Args:
            groups: turn by turn; the ranks of each group.
        """
        self._turns = groups
        super().__init__(AGENTS)

    def _get_topo_edges(self) -> list[list[Edge]]:
        return [[Edge(sorted(group), 1 / len(group)) for group in turn] for turn in self._turns]


class Weights(nn.Module):
    """P weights; the gradient of the output is 0."""

    def __init__(self, parameters: int) -> None:
        """Begin at 0."""
        super().__init__()
        self.body = nn.Parameter(torch.zeros(parameters))

    def forward(self) -> Tensor:
        """Zero."""
        return self.body[0] * 0


class Identity(torch.optim.SGD):
    """No step."""

    def step(self, closure: Any = None) -> Any:
        """Nothing."""


def run(parameters: int, rounds: int, schedule: str) -> dict[str, Any]:
    """Time rounds on all ranks.

    Args:
        parameters: P.
        rounds: to be timed.
        schedule: which groups.

    Returns:
        As `serve.serve` wants it.
    """
    groups, steps = SCHEDULES[schedule]
    rank = dist.get_rank()
    model = DecentralizedDataParallel(
        Weights(parameters),
        lambda named: Identity([p for _, p in named], lr=1.0),
        topology="scheduled",
        _local_world_size=AGENTS,
    )
    (body,) = model.parameters()
    with torch.no_grad():
        body.fill_(start_value(rank))
    for n in range(steps * (WARM + rounds)):
        if n == steps * WARM:
            dist.barrier()
            began = time.perf_counter()
        model().backward()
    dist.barrier()
    seconds = (time.perf_counter() - began) / rounds
    for work in model._comm_ops:
        work.wait()
    extremes: list[Any] = [None] * AGENTS
    dist.all_gather_object(extremes, (body.min().item(), body.max().item()))
    expected = replayed(groups, steps * (WARM + rounds))
    error = np.abs(np.array(extremes) - expected[:, None]).max() / (AGENTS - 1)
    return {"seconds": seconds, "error": float(error)}


def replayed(groups: list[list[list[int]]], steps: int) -> np.ndarray:
    """What the agents' weights must be: no mixing in step 1, and the turn of step 2 falls out."""
    values = np.array([start_value(k) for k in range(AGENTS)])
    for turn in [1, *range(3, steps + 1)]:
        for group in groups[turn % len(groups)]:
            values[group] = values[group].mean()
    return values


def main(rank: int, meeting: str, schedule: str) -> None:
    """Rank 0 is told what to do and tells the others."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=AGENTS)
    once = Scheduled(SCHEDULES[schedule][0])  # its process groups serve every run
    TopologyReg.registry["scheduled"] = lambda local: once

    def everywhere(parameters: int, rounds: int) -> dict[str, Any]:
        dist.broadcast_object_list([(parameters, rounds)], src=0)
        return run(parameters, rounds, schedule)

    if rank == 0:
        serve(everywhere)
        dist.broadcast_object_list([None], src=0)
    else:
        while True:
            told: list[Any] = [None]
            dist.broadcast_object_list(told, src=0)
            if told[0] is None:
                break
            parameters, rounds = told[0]
            run(parameters, rounds, schedule)
    dist.destroy_process_group()


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) > 1 else "rows"
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    fork = multiprocessing.get_context("fork")  # torch is imported once
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"{folder}/meeting"
        others = [
            fork.Process(target=main, args=(rank, meeting, wanted), daemon=True)
            for rank in range(1, AGENTS)
        ]
        for other in others:
            other.start()
        main(0, meeting, wanted)
        for other in others:
            other.join()
