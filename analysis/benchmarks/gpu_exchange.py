"""A round of 16 agents that share a GPU, without learning: which way their messages should go.

Through the object store and packed in one actor, as the engine does it; and two ways on the device
that it has not, one actor for each agent: Ray's own CUDA IPC transport, and a board in GPU memory
whose slots every process maps (CUDA IPC), with counters of rounds in host memory.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from exchange import plan_of, seconds_a_round, started
from mute import mute
from targets import Row, row, tell
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from raydist.engine.cluster.session import ray_session
from raydist.network.combination import combine

AGENTS = 16
NEIGHBOURS = (-2, -1, 0, 1, 2)
HERE = Path(__file__).resolve().parent
TARGET = "{}, 16 agents on a GPU, {} parameters"


class Member:
    """An agent that begins with its number in every weight, and only averages."""

    def __init__(self, k: int, size: int) -> None:
        """Agent k with so many weights."""
        torch.set_num_threads(1)
        self.k, self.n = k, 0
        self.w = torch.full((size,), float(k), device="cuda")
        self.slots = [torch.empty_like(self.w) for _ in range(2)]

    def near(self) -> list[int]:
        """The neighbourhood on a ring lattice of degree 4, ascending."""
        return sorted((self.k + d) % AGENTS for d in NEIGHBOURS)

    @ray.method(tensor_transport="cuda_ipc")
    def step(self, *received: Tensor) -> Tensor:
        """A round over Ray's transport; what others sent in the round before, ascending."""
        if received:
            others = iter(received)
            heads = [self.w if l == self.k else next(others) for l in self.near()]
            combine([0.2] * 5, heads, out=self.slots[0])
            self.w.copy_(self.slots[0])
        return self.w.clone()  # it belongs to the transport until all have read it

    def share(self) -> list[Any]:
        """What others need to map this agent's slots."""
        return [reduce_tensor(slot) for slot in self.slots]  # type: ignore[no-untyped-call]

    def join(self, shared: list[list[Any]], counters: str) -> None:
        """Map the neighbours' slots."""
        self.counts = np.memmap(counters, np.int64, "r+", shape=(AGENTS, 8))
        self.board = {
            l: self.slots if l == self.k else [build(*args) for build, args in shared[l]]
            for l in self.near()
        }

    def run(self, rounds: int) -> None:
        """Rounds on the board."""
        for _ in range(rounds):
            self.n += 1
            self._wait(self.n - 1)
            self.slots[self.n % 2].copy_(self.w)
            torch.cuda.synchronize()
            self.counts[self.k, 0] = self.n
            self._wait(self.n)
            combine([0.2] * 5, [self.board[l][self.n % 2] for l in self.near()], out=self.w)
            torch.cuda.synchronize()

    def _wait(self, n: int) -> None:
        while min(self.counts[l, 0] for l in self.near()) < n:
            os.sched_yield()

    def ends(self) -> tuple[float, float]:
        """The first and the last weight."""
        return self.w[0].item(), self.w[-1].item()


def check(members: list[Any]) -> None:
    """Averaging happened: the mean stays, the spread has shrunk."""
    ends = np.array(ray.get([member.ends.remote() for member in members]))
    mean = (AGENTS - 1) / 2
    assert abs(ends.mean() - mean) < 1e-3 and np.abs(ends - mean).max() < mean / 2, ends


def new_members(size: int) -> list[Any]:
    """A process for each agent, on a sixteenth of the GPU."""
    remote: Any = ray.remote(Member)
    return [
        remote.options(num_gpus=1 / AGENTS, num_cpus=0.5).remote(k, size) for k in range(AGENTS)
    ]


def over_ray(members: list[Any], rounds: int) -> None:
    """Rounds over references that stay on the device."""
    sent: list[Any] = [member.step.remote() for member in members]
    near = [sorted({(k + d) % AGENTS for d in NEIGHBOURS} - {k}) for k in range(AGENTS)]
    for _ in range(rounds):
        sent = [m.step.remote(*[sent[l] for l in near[k]]) for k, m in enumerate(members)]
    ray.get([member.ends.remote() for member in members])


def on_board(members: list[Any], rounds: int) -> None:
    """Rounds on a board that is there."""
    ray.get([member.run.remote(rounds) for member in members])


def seconds(step: Callable[[int], object], rounds: int, turns: int) -> float:
    """Of a round, the best of some turns after one to warm up."""
    found = []
    for _ in range(turns + 1):
        began = time.perf_counter()
        step(rounds)
        found.append((time.perf_counter() - began) / rounds)
    return min(found[1:])


def by_members(size: int, rounds: int, turns: int) -> Iterator[tuple[str, float]]:
    """Both ways on the device."""
    members = new_members(size)
    yield "Ray's CUDA IPC transport", seconds(partial(over_ray, members), rounds, turns)
    check(members)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as counters:
        np.memmap(counters.name, np.int64, "w+", shape=(AGENTS, 8)).flush()
        shared = ray.get([member.share.remote() for member in members])
        ray.get([member.join.remote(shared, counters.name) for member in members])
        yield "a board in GPU memory", seconds(partial(on_board, members), rounds, turns)
    for member in members:
        ray.kill(member)


def by_engine(size: int, rounds: int, turns: int) -> Iterator[tuple[str, float]]:
    """The engine's own ways."""
    for name, exchange, each in (
        ("objects", "objects", 1),
        ("board", "board", 1),
        ("packed 1 x 16", "objects", 16),
    ):
        plan = plan_of(size, exchange, each, gpus=1 / AGENTS)
        pool = started(plan)
        ray.get([actor.__ray_call__.remote(mute) for actor in pool._actors])
        found, first = [], 1
        for _ in range(turns + 1):
            found.append(seconds_a_round(pool, first, rounds))
            first += rounds
        pool.shutdown()
        yield name, min(found[1:])


def targets(quick: bool) -> Iterator[Row]:
    """The rows as they are known; without a GPU, that there is none."""
    if not torch.cuda.is_available():
        yield row(TARGET.format("exchange", "11 M"), None, "", limit=None, note="no CUDA device")
        return
    os.environ["PYTHONPATH"] = f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    note = torch.cuda.get_device_name()
    with ray_session("local"):
        for name, size in {"0.5 M": 500_000, "11 M": 11_000_000}.items():
            for ways in (by_engine, by_members):
                for way, spent in ways(size, 10 if quick else 30, 2 if quick else 4):
                    target = TARGET.format(way, name)
                    yield row(target, 1e3 * spent, "ms per round", limit=None, note=note)


def measure(quick: bool) -> list[Row]:
    """All ways; quick: few rounds."""
    return list(targets(quick))


if __name__ == "__main__":
    tell(targets)
