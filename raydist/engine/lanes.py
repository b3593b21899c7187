"""Queues of a GPU in which agents work side by side: the batch of one does not fill a large GPU."""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

NO_LANE = nullcontext()
LANES = 2  # more gave less on an H200, with PreAct ResNet-18 and batches of 128


class Lanes:
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
