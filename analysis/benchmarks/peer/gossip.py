"""gossipy: agents of one process that push their weights at random, identity training.

A round: each of the 16 agents sends its weights to one of its four neighbours, which averages them
with its own. There are no processes to cross, and a quarter of the messages.
"""

import time
from typing import Any

import torch
from gossipy.core import AntiEntropyProtocol, CreateModelMode, StaticP2PNetwork
from gossipy.data import DataDispatcher
from gossipy.model import TorchModel
from gossipy.model.handler import TorchModelHandler
from gossipy.node import GossipNode
from gossipy.simul import GossipSimulator
from serve import AGENTS, lattice, serve, start_value

TICKS = 16  # of a round


class Weights(TorchModel):
    """P weights."""

    def __init__(self, parameters: int, value: float) -> None:
        """Begin at a value.

        Args:
            parameters: P.
            value: of all of them.
        """
        super().__init__()
        self.body = torch.nn.Parameter(torch.full((parameters,), value))

    def init_weights(self) -> None:
        """They are what they are."""


class Identity(TorchModelHandler):
    """No update; what the weights must be is averaged beside them in double precision."""

    expected = 0.0

    def _update(self, data: Any) -> None:
        self.n_updates += 1

    def _merge(self, other: "Identity") -> None:
        super()._merge(other)
        self.expected = (self.expected + other.expected) / 2


class NoData(DataDispatcher):
    """There is nothing to evaluate on."""

    def __init__(self) -> None:
        """Load nothing."""
        pass

    def has_test(self) -> bool:
        """No."""
        return False


def node(agent: int, parameters: int, network: StaticP2PNetwork) -> GossipNode:
    """An agent."""
    handler = Identity(
        Weights(parameters, start_value(agent)),
        torch.optim.SGD,
        {"lr": 0.1},
        torch.nn.functional.mse_loss,
        create_model_mode=CreateModelMode.MERGE_UPDATE,
        copy_model=False,
    )
    handler.expected = start_value(agent)
    return GossipNode(agent, ((None, None), None), TICKS, handler, network)


def run(parameters: int, rounds: int) -> dict[str, Any]:
    """As `serve.serve` wants it."""
    adjacency = torch.zeros(AGENTS, AGENTS).numpy()
    for agent in range(AGENTS):
        adjacency[agent, lattice(agent)] = 1
    network = StaticP2PNetwork(AGENTS, adjacency)
    nodes = {agent: node(agent, parameters, network) for agent in range(AGENTS)}
    simulator = GossipSimulator(nodes, NoData(), TICKS, AntiEntropyProtocol.PUSH)
    simulator.init_nodes()
    simulator.start(2)
    began = time.perf_counter()
    simulator.start(rounds)
    seconds = (time.perf_counter() - began) / rounds
    handlers = [each.model_handler for each in nodes.values()]
    expected = [handler.expected for handler in handlers]
    if max(expected) - min(expected) > 0.9 * (AGENTS - 1):
        raise RuntimeError("nothing was averaged")
    error = max((h.model.body - h.expected).abs().max().item() for h in handlers)
    return {"seconds": seconds, "error": error / (AGENTS - 1)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(run)
