"""Queues of a GPU in which agents work side by side: the batch of one does not fill a large GPU."""

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

import torch

LANES = 2  # more gave less on an H200, with PreAct ResNet-18 and batches of 128


class Lanes:
    """Queues for the agents of a process, which take turns; on a CPU, nothing."""

    def __init__(self, device: torch.device) -> None:
        """The queues of a device."""
        self._streams = _streams(device) if device.type == "cuda" else []

    @contextmanager
    def lane(self, i: int) -> Generator[None]:
        """What is asked of the device meanwhile is done behind all that was asked before in lane i.

        Args:
            i: whose; every LANES-th has the same.

        Yields:
            Nothing.
        """
        if not self._streams:
            yield
            return
        own, here = self._streams[i % LANES], torch.cuda.current_stream()
        own.wait_stream(here)
        with torch.cuda.stream(own):
            yield

    def join(self) -> None:
        """What is asked from now on is done after all that was asked in any lane."""
        for stream in self._streams:
            torch.cuda.current_stream().wait_stream(stream)


@cache
def _streams(device: torch.device) -> list[torch.cuda.Stream]:
    """The same ones in every run of a process: what is recorded in one keeps memory for it."""
    return [torch.cuda.Stream(device) for _ in range(LANES)]  # type: ignore[no-untyped-call]
