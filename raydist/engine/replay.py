"""A function of tensors as a CUDA graph: its kernels are recorded once and then launched together.

A pass through a small network is hundreds of kernels, which a fast GPU computes sooner than Python
launches them. The kernels that are replayed are those that were recorded, on other numbers.

A function that draws from global randomness is not recorded: what it drew on the CPU would be the
same in every replay, and what it draws on the GPU would follow a counter that all replays of a
process share, whatever queue they are in.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raydist.seeding import global_state, restore, same_state

WARM_UPS = 2  # libraries choose their kernels in the first calls, which cannot be recorded


class _Recording(NamedTuple):
    """A graph, where it reads its inputs and where its result will lie."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    result: Tensor


class Replay:
    """A function of CUDA tensors, recorded at its first call for inputs of a shape.

    One that draws is called each time instead. Whatever else it reads or writes (weights,
    statistics, gradients) has to stay where it is in memory, and its Python code has to do the
    same in every call: it is run no more.
    """

    def __init__(
        self, function: Callable[..., Tensor], changes: Callable[[], Iterable[Tensor]] = tuple
    ) -> None:
        """Nothing is recorded yet.

        Args:
            function: of tensors, which gives a tensor and waits for nothing on the device.
            changes: tells the other tensors that it writes; recording leaves them as they are.
        """
        self._function, self._changes = function, changes
        self._recordings: dict[Any, _Recording | None] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result, a new tensor."""
        kind = tuple((each.shape, each.dtype, each.stride()) for each in inputs)
        if kind not in self._recordings:
            self._recordings[kind] = self._record([each.detach().clone() for each in inputs])
        recording = self._recordings[kind]
        if recording is None:
            return self._function(*inputs)
        graph, places, result = recording
        for place, value in zip(places, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return result.clone()  # before another graph writes to the same memory

    def _record(self, inputs: list[Tensor]) -> _Recording | None:
        """The function's recording; None if it draws."""
        kept = [(each, each.clone()) for each in self._changes()]
        before = global_state("cuda")
        here = torch.cuda.current_stream()
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._function(*inputs)
        here.wait_stream(aside)
        with torch.no_grad():
            for each, value in kept:
                each.copy_(value)
        drawn = not same_state(before, global_state("cuda"))
        restore(before, "cuda")  # the call that is due draws what it would have drawn
        if drawn:
            return None
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=_memory(here).pool()):
            result = self._function(*inputs)
        return _Recording(graph, inputs, result)


@cache
def _memory(stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph:
    """Of a graph that stays: what those of this queue compute in, one after the other."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(1, device="cuda")
    return graph
