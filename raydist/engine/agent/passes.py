"""How an agent's passes are computed: precision, CUDA graphs, streams, timers.

What is stored, summed up and sent stays in the dtype. bf16 holds for the network's passes alone:
losses, projections, weights and the optimiser's state are float32. TF32 is a mode of GPUs for
products of float32 matrices. Compiled, what lies between products is computed in one go, and
rounded once.

A pass through a small network is hundreds of kernels, which a fast GPU computes sooner than Python
launches them, so that they are recorded once as a CUDA graph and then launched together. A function
that draws from global randomness is not recorded: what it drew on the CPU would be the same in
every replay, and what it draws on the GPU would follow a counter that all replays of a process
share, whatever queue they are in. Queues (streams) let agents work side by side, because the batch
of one does not fill a large GPU.
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
            network: maps (N, ...) to outputs.
            bf16: whether matrix products and convolutions are those of bfloat16.
            channels_last: whether images are laid out with the channels of a pixel side by side.
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
    """The network as an experiment computes it in training: itself, if nothing is asked for."""
    bf16 = config.precision == "bf16"
    if config.compile:
        network = cast(nn.Module, torch.compile(network, dynamic=False))
    return Passes(network, bf16, config.channels_last) if bf16 or config.channels_last else network


def unsafe_in_channels_last(network: nn.Module) -> bool:
    """Whether its gradients would be written outside their memory.

    oneDNN 3.12 does so in channels_last for the weights of strided 1x1 convolutions (seen with 2 to
    7 input channels on AVX2, whose registers hold 8 numbers; others hold 16).

    Args:
        network: of any kind.

    Returns:
        Whether it has such a convolution with fewer than 16 input channels.
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
    """Meanwhile GPUs round the factors of float32 products to TF32, or do not.

    Torch's own default rounds those of convolutions.
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
    """Moments between pieces of work.

    A GPU works behind the Python code: its moments are marks in its queue, for which nothing
    waits until they are asked for.
    """

    def __init__(self, device: torch.device) -> None:
        """The first moment is now."""
        self._cuda = device.type == "cuda"
        self._marks: list[float | torch.cuda.Event] = []
        self.mark()

    def mark(self) -> None:
        """The end of a piece of work, and the beginning of the next one."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """How long each piece took, once all are done."""
        return [_between(*ends) for ends in pairwise(self._marks)]

    def total(self) -> float:
        """From the first moment to the last one, in seconds, once all is done."""
        return sum(self.seconds())


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000
    assert not isinstance(end, torch.cuda.Event)
    return end - start


class Streams:
    """Queues for the agents of a process, which take turns; on a CPU, nothing."""

    def __init__(self, device: torch.device) -> None:
        """The queues of a device."""
        self._streams = _streams(device) if device.type == "cuda" else []

    def lane(self, i: int) -> AbstractContextManager[None]:
        """What is asked of the device meanwhile is done behind all that was asked before in lane i.

        Args:
            i: whose; every LANES-th has the same.

        Returns:
            The lane, to be entered.
        """
        return _within(self._streams[i % LANES]) if self._streams else NO_LANE

    def join(self) -> None:
        """What is asked from now on is done after all that was asked in any lane."""
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)


@contextmanager
def _within(stream: torch.cuda.Stream) -> Generator[None]:
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield


@cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    """The same ones in every run of a process: what is recorded in one keeps memory for it."""
    return [torch.cuda.Stream(device) for _ in range(LANES)]  # type: ignore[no-untyped-call]


class _Recording(NamedTuple):
    """A graph, where it reads its inputs and where its result will lie."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    result: Tensor


class CudaGraph:
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
