"""Code that is not ours: a model, loss or attack that the experiment names as "module:function".

Such code may draw from global randomness and may move weights or gradients. Our own code does
neither, so it pays for no protection.
"""

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from raydist.config.experiment import Experiment
from raydist.seeding import Purpose, drawing
from raydist.vector import FlatModel


def is_foreign(config: Experiment) -> bool:
    """Tell if the model, the loss or the attack of an experiment is not ours."""
    return any(":" in table.name for table in (config.model, config.loss, config.attack))


def drawn(
    config: Experiment, purpose: Purpose, agent: int, n: int, device: torch.device
) -> AbstractContextManager[None]:
    """Seed the draws of a foreign model or loss by the arguments, inside this context.

    Args:
        config: the experiment.
        purpose: the purpose of the passes.
        agent: the agent k, or the first of the images that are measured.
        n: the round.
        device: the device of the passes.

    Returns:
        The context to enter.
    """
    if not is_foreign(config):
        return nullcontext()
    return drawing(purpose, config.seed, agent, n, device)


class Border:
    """Protection around each pass of an agent's local step through foreign code."""

    def __init__(self, config: Experiment, agent: int, flat: FlatModel) -> None:
        """Remember the agent and its model `flat`."""
        self._config, self._agent, self._flat = config, agent, flat
        self._foreign = is_foreign(config)

    def bind(self) -> None:
        """Bring weights and gradients back into the model's vector, wherever they were put."""
        if self._foreign:
            self._flat.bind()

    @contextmanager
    def passing(self, purpose: Purpose, n: int) -> Generator[None]:
        """Seed draws in round n, as `drawn`, inside this context; call `bind` at its end."""
        with drawn(self._config, purpose, self._agent, n, self._flat.w.device):
            yield
        self.bind()
