"""Code that is not ours: a model, loss or attack that the experiment names as "module:function".

It may draw from global randomness and put weights or gradients elsewhere. Ours does neither, so
that nothing is done, and spent, for it.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from raydist.config.experiment import Experiment
from raydist.seeding import Purpose, drawing
from raydist.vector import FlatModel


def is_foreign(config: Experiment) -> bool:
    """Whether the model, the loss or the attack of an experiment is not ours."""
    return any(":" in table.name for table in (config.model, config.loss, config.attack))


def drawn(
    config: Experiment, purpose: Purpose, agent: int, n: int, device: torch.device
) -> AbstractContextManager[None]:
    """Meanwhile what a foreign model or loss draws is a function of the arguments.

    Args:
        config: the experiment.
        purpose: what the passes are for.
        agent: the agent k, or the first of the images that are measured.
        n: the round.
        device: where the passes are computed.

    Returns:
        What is to be entered.
    """
    if not is_foreign(config):
        return nullcontext()
    return drawing(purpose, config.seed, agent, n, device)


class Border:
    """What is done wherever an agent's local step passes through foreign code."""

    def __init__(self, config: Experiment, agent: int, flat: FlatModel) -> None:
        """The model `flat` of agent `agent`."""
        self._config, self._agent, self._flat = config, agent, flat
        self._foreign = is_foreign(config)

    def bind(self) -> None:
        """The weights and gradients of the model are in its vector, wherever they were put."""
        if self._foreign:
            self._flat.bind()

    @contextmanager
    def passing(self, purpose: Purpose, n: int) -> Generator[None]:
        """As `drawn`, in round n; then `bind`."""
        with drawn(self._config, purpose, self._agent, n, self._flat.w.device):
            yield
        self.bind()
