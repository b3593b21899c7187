"""When the work of an agent was done, on the device that does it."""

import time
from itertools import pairwise

import torch


class Clock:
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
