"""A worker of a data-parallel run without Ray: the test is the first one, this file the others."""

import json
import sys

import torch.distributed as dist

from raydist.config.experiment import validate
from raydist.engine.driver import complete
from raydist.engine.plan import make_plan
from raydist.engine.pool.data_parallel import ParallelPool


def work(store, rank, workers, trees):
    """The results of some experiments."""
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=workers)
    try:
        plans = [make_plan(validate(tree)) for tree in trees]
        return [complete(plan, ParallelPool(plan), None) for plan in plans]
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
