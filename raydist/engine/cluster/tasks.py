"""Independent pieces of work as Ray tasks; results stream back as soon as they exist."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from raydist.engine.cluster.session import cluster_resources

Unit = TypeVar("Unit")


def spread(
    perform: Callable[[Unit], Iterator[Any]], units: Iterable[Unit], cpus: float, gpus: float
) -> Iterator[tuple[Unit, Any]]:
    """Perform all units on the cluster, as many at a time as find room.

    A unit alone determines its results, so Ray may repeat it when a node is lost.

    Args:
        perform: a function that yields the results of a unit.
        units: the units, in order of their start.
        cpus: number of CPUs, and of threads, of one unit.
        gpus: number of GPUs of one unit.

    Yields:
        (unit, result) for each result; at last (unit, None), or (unit, the error) if it failed.
    """

    def streamed(unit: Unit) -> Iterator[Any]:
        torch.set_num_threads(max(1, int(cpus)))
        yield from perform(unit)

    task = ray.remote(num_cpus=cpus, num_gpus=gpus, num_returns="streaming")(streamed)
    waiting = iter(units)
    running: dict[Any, Unit] = {}
    room = _room(cpus, gpus)
    while True:
        while len(running) < room and (unit := next(waiting, None)) is not None:
            running[task.remote(unit)] = unit
        if not running:
            return
        ready: Any  # a generator of references
        (ready, *_), _ = ray.wait(list(running), num_returns=1, fetch_local=False)
        try:
            result = ray.get(next(ready))
        except StopIteration:
            yield running.pop(ready), None
        except RayTaskError as error:
            yield running.pop(ready), error.cause or error
        except RayError as error:
            yield running.pop(ready), error
        else:
            yield running[ready], result


def _room(cpus: float, gpus: float) -> int:
    """Number of tasks that the cluster runs at once; nodes that join later take later tasks."""
    return max(1, sum(_room_on(node, cpus, gpus) for node in cluster_resources()))


def _room_on(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    wanted = {"CPU": cpus, "GPU": gpus}
    return int(min(node.get(name, 0.0) // share for name, share in wanted.items() if share > 0))
