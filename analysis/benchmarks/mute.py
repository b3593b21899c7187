"""Agents that exchange and do not learn: what is left of a round is the engine's own work.

Their model is one vector. Batch, attack, gradient and optimiser are replaced by nothing; the rest
(the message, the sum of the neighbours', the infos, the records' way to the driver) stays.
"""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from raydist.engine.pool.group import Group


class Vector(nn.Module):
    """A model with so many parameters that gives the first ones as logits, whatever it sees."""

    def __init__(self, shape: tuple[int, ...], classes: int, size: int) -> None:
        """Begin at 0.

        Args:
            shape: of an image.
            classes: of the images.
            size: P.
        """
        super().__init__()
        self.classes, self.w = classes, nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        """(N, ...) -> (N, classes)."""
        return self.w[: self.classes].expand(len(x), -1)


def tree(agents: int, size: int, **tables: Any) -> dict[str, Any]:
    """An experiment on a ring lattice of degree 4 (K = 4: the complete graph).

    Args:
        agents: K.
        size: P.
        **tables: further ones.

    Returns:
        Its nested values.
    """
    ring = {"kind": "watts-strogatz", "agents": agents, "neighbours": 4, "p": 0.0}
    return {
        "topology": {"kind": "complete", "agents": agents} if agents < 6 else ring,
        "rounds": 10**6,
        "data": {"set": "digits", "batch": 1, "validation": 0.5},  # enough of both for 700 agents
        "model": {"name": "mute:Vector", "params": {"size": size}},
        "loss": {"name": "standard"},
        "threat": {"eps": 0.0},
        "attack": {"steps": 0},
        "evaluate": {"validation_images": agents, "test_images": "all", "autoattack": 0, "pgd": []},
    } | tables


def mute(group: Group) -> None:
    """Let the agents of a group learn nothing from now on."""
    for agent in group.agents:
        batch = SimpleNamespace(threat=SimpleNamespace(eps=0.0))
        local: Any = agent.local
        found = {"loss": torch.zeros(()), "grad_norm": torch.zeros(())}
        local.attack = lambda n, noisy, batch=batch: batch
        local.gradient = lambda batch, found=found: dict(found)
        local.step = lambda n: None
