"""Computation of an agent's passes: precision, CUDA graphs, streams, timers.

Stored, summed and sent values keep the dtype. bf16 applies to the network's passes alone: losses,
projections, weights and the optimiser's state are float32. TF32 is a mode of GPUs for products of
float32 matrices. Compilation fuses the operations between products, and rounds their result once.

A pass through a small network is hundreds of kernels, which a fast GPU computes sooner than Python
launches them. So they are recorded once as a CUDA graph and then launched together. A function
that draws from global randomness is not recorded, because its CPU draws would be the same in every
replay, and its GPU draws would follow a counter that all replays of a process share, whatever
their stream. Streams let agents work side by side, because one agent's batch does not fill a large
GPU.
"""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from raydist.config.experiment import Experiment
from raydist.seeding import global_state, restore, same_state

NO_LANE = nullcontext()
LANES = 2  # more gave less on an H200, with PreAct ResNet-18 and batches of 128
WARM_UPS = 2  # libraries choose their kernels in the first calls, which cannot be recorded


class Passes(nn.Module):
    """A network whose forward and backward passes are computed in bf16 or in channels_last."""

    def __init__(self, network: nn.Module, bf16: bool, channels_last: bool) -> None:
        """Wrap a network; parameters, buffers and modes are its own.

        Args:
            network: a module from (N, ...) to outputs.
            bf16: True to compute matrix products and convolutions in bfloat16.
            channels_last: True to store the channels of a pixel side by side.
        """
        super().__init__()
        self.network, self.bf16, self.channels_last = network, bf16, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """The outputs in the dtype of x."""
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            outputs: Tensor = self.network(x)
        return outputs.to(x.dtype)


def computed(network: nn.Module, config: Experiment) -> nn.Module:
    """Wrap the network for the experiment's precision; return it unchanged if none is set."""
    bf16 = config.precision == "bf16"
    if config.compile:
        network = cast(nn.Module, torch.compile(network, dynamic=False))
    return Passes(network, bf16, config.channels_last) if bf16 or config.channels_last else network


def unsafe_in_channels_last(network: nn.Module) -> bool:
    """Tell if channels_last would write a network's gradients outside their memory.

    oneDNN 3.12 does so in channels_last for the weights of strided 1x1 convolutions (seen with 2 to
    7 input channels on AVX2, whose registers hold 8 numbers; others hold 16).

    Args:
        network: any network.

    Returns:
        True if it has such a convolution with fewer than 16 input channels.
    """
    return any(
        isinstance(m, nn.Conv2d)
        and tuple(m.kernel_size) == (1, 1)
        and tuple(m.stride) != (1, 1)
        and m.in_channels < 16
        for m in network.modules()
    )


@contextmanager
def tf32(allowed: bool) -> Generator[None]:
    """Allow or forbid TF32 factors in float32 products on GPUs, inside this context.

    Torch's own default allows them in convolutions.
    """
    products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [product.allow_tf32 for product in products]
    try:
        for product in products:
            product.allow_tf32 = allowed
        yield
    finally:
        for product, value in zip(products, before, strict=True):
            product.allow_tf32 = value


class Timer:
    """A clock of consecutive pieces of work.

    A GPU lags behind the Python code. Its times are therefore events in its stream, and nothing
    waits for them until they are read.
    """

    def __init__(self, device: torch.device) -> None:
        """Begin the first piece of work now."""
        self._cuda = device.type == "cuda"
        self._marks: list[float | torch.cuda.Event] = []
        self.mark()

    def mark(self) -> None:
        """End a piece of work, and begin the next one."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Wait until all pieces are done; return the seconds of each."""
        return [_between(*ends) for ends in pairwise(self._marks)]

    def total(self) -> float:
        """Wait until all pieces are done; return the seconds from first to last mark."""
        return sum(self.seconds())


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    assert not isinstance(end, torch.cuda.Event)
    return end - start


class Streams:
    """CUDA streams that the agents of a process use in turn; none on a CPU."""

    def __init__(self, device: torch.device) -> None:
        """Open the streams of a device."""
        self._streams = _streams(device) if device.type == "cuda" else []

    def lane(self, i: int) -> AbstractContextManager[None]:
        """Queue the kernels launched inside this context on stream i.

        Args:
            i: the agent's number; agents whose numbers differ by LANES share a stream.

        Returns:
            The context to enter.
        """
        return _within(self._streams[i % LANES]) if self._streams else NO_LANE

    def join(self) -> None:
        """Let kernels launched from now on run after those of all streams."""
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _within(stream: torch.cuda.Stream) -> Generator[None]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


@cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    """Streams of a device, the same in every run, because recordings keep memory for each."""
    return [torch.cuda.Stream(device) for _ in range(LANES)]  # type: ignore[no-untyped-call]


class _Recording(NamedTuple):
    """A graph, the tensors it reads its inputs from, and the tensor it writes its result to."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    result: Tensor


class CudaGraph:
    """A function of CUDA tensors, recorded at its first call for inputs of a shape.

    A function that draws random numbers is called each time instead. All other tensors that the
    function reads or writes (weights, statistics, gradients) must keep their place in memory, and
    its Python code must do the same in every call, because a replay does not run it.
    """

    def __init__(
        self, function: Callable[..., Tensor], changes: Callable[[], Iterable[Tensor]] = tuple
    ) -> None:
        """Keep the function; its first call records it.

        Args:
            function: a function from tensors to a tensor that never waits for the device.
            changes: a function that lists the other tensors written; recording restores them.
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
        """Record the function; return None if it draws random numbers."""
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
    """A graph kept alive so that all graphs of a stream share its memory pool, in turn."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.zeros(1, device="cuda")
    return graph
