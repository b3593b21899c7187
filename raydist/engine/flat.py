"""A model as one flat vector: parameters as views of w (P,), running statistics behind them.

A message between agents is then one array, the optimiser sees one parameter, and combining is one
weighted sum.
"""

from collections.abc import Generator, Sequence
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

    def state(self) -> Tensor:
        """Parameters and running statistics, a new tensor (S,)."""
        return join(self.w.detach(), self.buffers)

    def load(self, state: Tensor) -> None:
        """Set parameters and running statistics from a state (S,)."""
        with torch.no_grad():
            self.w.copy_(state[: self.w.numel()])
        spread(state[self.w.numel() :], self.buffers)

    @contextmanager
    def holding(self, state: Tensor) -> Generator[nn.Module]:
        """The module with another state (S,) for as long as it is measured."""
        own = self.state()
        self.load(state)
        try:
            yield self.module
        finally:
            self.load(own)


def join(vector: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """A vector and behind it the numbers of `tensors`, in order: one new vector."""
    return torch.cat([vector, *(t.reshape(-1).to(vector.dtype) for t in tensors)])


def spread(tail: Tensor, tensors: Sequence[Tensor]) -> None:
    """Write what `join` put behind a vector back into `tensors`."""
    parts = torch.split(tail, [t.numel() for t in tensors])
    with torch.no_grad():
        for tensor, values in zip(tensors, parts, strict=True):
            tensor.copy_(values.view_as(tensor))
