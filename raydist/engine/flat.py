"""A model as one flat vector: parameters as views of w (P,), running statistics behind them.

The optimiser then sees one parameter, and combining is one weighted sum.
"""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class FlatModel:
    """A model whose parameters are views of one vector.

    Attributes:
        module: the model itself.
        w: all parameters, (P,), with its gradient in `w.grad`.
        statistics: the floating-point buffers that belong to the state (BatchNorm's running mean
            and variance; not a model's constants, which are not persistent), behind one another.
    """

    def __init__(self, module: nn.Module) -> None:
        """Lay out parameters and statistics of `module` in one vector, in place."""
        self.module = module
        parameters = [p for p in module.parameters() if p.requires_grad]
        persistent = {value.data_ptr() for value in module.state_dict().values()}
        buffers = [
            b for b in module.buffers() if b.is_floating_point() and b.data_ptr() in persistent
        ]
        size, dtype = sum(p.numel() for p in parameters), parameters[0].dtype
        self._whole = torch.cat([t.detach().reshape(-1).to(dtype) for t in parameters + buffers])
        self.w = nn.Parameter(self._whole[:size])
        self.w.grad = torch.zeros_like(self.w)
        self.statistics = self._whole[size:]
        at = 0
        for p in parameters:
            here = slice(at, at + p.numel())
            p.data, p.grad = self.w.data[here].view_as(p), self.w.grad[here].view_as(p)
            at += p.numel()
        for b in buffers:
            b.data = self._whole[at : at + b.numel()].view_as(b)
            at += b.numel()

    @property
    def grad(self) -> Tensor:
        """The gradient, (P,), that `backward` on the module accumulates into."""
        assert self.w.grad is not None
        return self.w.grad

    def state(self) -> Tensor:
        """Parameters and running statistics, a new tensor (S,)."""
        return self._whole.clone()

    def load(self, state: Tensor) -> None:
        """Set parameters and running statistics from a state (S,)."""
        self._whole.copy_(state)

    @contextmanager
    def holding(self, state: Tensor) -> Generator[nn.Module]:
        """The module with another state (S,) for as long as it is measured."""
        own = self.state()
        self.load(state)
        try:
            yield self.module
        finally:
            self.load(own)
