"""A model as one flat vector: parameters as views of w (P,), running statistics behind them.

A message between agents is then one array, the optimiser sees one parameter, and combining is one
weighted sum.
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
        buffers: the floating-point buffers that belong to the state (BatchNorm's running mean and
            variance; not a model's constants, which are not persistent).
    """

    def __init__(self, module: nn.Module) -> None:
        """Lay out the parameters of `module` in one vector, in place."""
        self.module = module
        parameters = [p for p in module.parameters() if p.requires_grad]
        self.w = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        self.w.grad = torch.zeros_like(self.w)
        at = 0
        for p in parameters:
            here = slice(at, at + p.numel())
            p.data, p.grad = self.w.data[here].view_as(p), self.w.grad[here].view_as(p)
            at += p.numel()
        persistent = {value.data_ptr() for value in module.state_dict().values()}
        self.buffers = [
            b for b in module.buffers() if b.is_floating_point() and b.data_ptr() in persistent
        ]

    @property
    def grad(self) -> Tensor:
        """The gradient, (P,), that `backward` on the module accumulates into."""
        assert self.w.grad is not None
        return self.w.grad

    def with_buffers(self, vector: Tensor) -> Tensor:
        """A vector (P,) and behind it the running statistics: (S,)."""
        return torch.cat([vector.detach(), *(b.reshape(-1).to(vector.dtype) for b in self.buffers)])

    def load_buffers(self, tail: Tensor) -> None:
        """Set the running statistics from what stands behind the parameters in a state."""
        parts = torch.split(tail, [b.numel() for b in self.buffers])
        for buffer, values in zip(self.buffers, parts, strict=True):
            buffer.copy_(values.view_as(buffer))

    def state(self) -> Tensor:
        """Parameters and running statistics, a new tensor (S,)."""
        return self.with_buffers(self.w)

    def load(self, state: Tensor) -> None:
        """Set parameters and running statistics from a state (S,)."""
        with torch.no_grad():
            self.w.copy_(state[: self.w.numel()])
        self.load_buffers(state[self.w.numel() :])

    @contextmanager
    def holding(self, state: Tensor) -> Generator[nn.Module]:
        """The module with another state (S,) for as long as it is measured."""
        own = self.state()
        self.load(state)
        try:
            yield self.module
        finally:
            self.load(own)
