"""fluke: gossip among agents of one process, identity training.

A round: each of the 16 agents takes the mean of what it was sent and sends its weights to one of
its four neighbours. There are no processes to cross, and a quarter of the messages.
"""

import time
from typing import Any

import networkx as nx
import torch
from fluke import DDict, FlukeENV
from fluke.algorithms.decentralized import GossipDFL, Topology
from fluke.algorithms.decentralized.client import GossipClient
from fluke.config import OptimizerConfigurator
from fluke.data import FastDataLoader
from serve import AGENTS, lattice, serve, start_value
from torch import Tensor, nn


class Weights(nn.Module):
    """P weights."""

    def __init__(self, parameters: int, value: float) -> None:
        """Begin at a value.

        Args:
            parameters: P.
            value: of all of them.
        """
        super().__init__()
        self.body = nn.Parameter(torch.full((parameters,), value))

    def forward(self, x: Tensor) -> Tensor:
        """Not used."""
        return x


class Identity(GossipClient):
    """No fit; every mean is compared with one that is taken beside it."""

    error, merged = 0.0, 0

    def fit(self, override_local_epochs: int = 0) -> float:
        """Nothing."""
        return 0.0

    def _apply_policy(self, messages: list[Any]) -> tuple[nn.Module, int]:
        chosen, updates = super()._apply_policy(messages)
        latest = {message.sender: message.payload for message in messages}  # of each sender
        expected = sum(float(each.body[-1].detach()) for each in latest.values()) / len(latest)
        self.error = max(self.error, abs(float(chosen.body[-1].detach()) - expected))
        self.merged += 1
        return chosen, updates


def run(parameters: int, rounds: int) -> dict[str, Any]:
    """As `serve.serve` wants it."""
    data = FastDataLoader(torch.zeros(1, 1), torch.zeros(1), num_labels=1, batch_size=1)
    clients = [
        Identity(
            agent,
            Weights(parameters, start_value(agent)),
            lattice(agent),
            data,
            None,
            OptimizerConfigurator(DDict(name="SGD", lr=0.1), DDict(name="StepLR", step_size=1)),
            nn.MSELoss(),
            local_epochs=1,
            policy="aggregate",
        )
        for agent in range(AGENTS)
    ]
    graph = nx.Graph([(k, l) for k in range(AGENTS) for l in lattice(k)])
    gossip = GossipDFL(AGENTS, None, DDict(), Topology(graph), clients=clients)
    gossip.finalize = lambda: None  # it closes the cache, and evaluates
    gossip.run(2)
    began = time.perf_counter()
    gossip.run(rounds)
    seconds = (time.perf_counter() - began) / rounds
    values = [client.model.body.detach() for client in clients]
    means = [value.mean().item() for value in values]
    if max(means) - min(means) > 0.9 * (AGENTS - 1) or not all(c.merged for c in clients):
        raise RuntimeError("nothing was averaged")
    uneven = max(float(v.max() - v.min()) for v in values)
    error = max(uneven, *(client.error for client in clients)) / (AGENTS - 1)
    FlukeENV().close_cache()
    return {"seconds": seconds, "error": error}


if __name__ == "__main__":
    torch.set_num_threads(1)
    FlukeENV().set_eval_cfg(pre_fit=False, post_fit=False, locals=False, server=False)
    serve(run)
