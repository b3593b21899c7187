"""A model as one flat vector: parameters as views of w (P,), running statistics behind them.

The optimiser then sees one parameter, and combining is one weighted sum.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Place(NamedTuple):
    """Where a tensor lies in the vector, and how."""

    here: slice
    shape: torch.Size
    channels_last: bool

    def seen(self, vector: Tensor) -> Tensor:
        """The tensor, as a view of the vector."""
        if not self.channels_last:
            return vector[self.here].view(self.shape)
        out, channels, height, width = self.shape
        return vector[self.here].view(out, height, width, channels).permute(0, 3, 1, 2)


class FlatModel:
    """A model whose parameters are views of one vector.

    Attributes:
        module: the model itself.
        w: all parameters, (P,), with its gradient in `w.grad`.
        whole: the state itself, parameters and statistics as they lie, (S,).
        statistics: the floating-point buffers that belong to the state (BatchNorm's running mean
            and variance; not a model's constants, which are not persistent), behind one another.
    """

    def __init__(self, module: nn.Module, channels_last: bool = False) -> None:
        """Lay out parameters and statistics of a module in one vector, in place.

        Args:
            module: the model.
            channels_last: whether the numbers of a kernel lie as (out, height, width, in), which
                passes over images that are laid out so would else bring about each time.
        """
        self.module = module
        parameters = [p for p in module.parameters() if p.requires_grad]
        persistent = {value.data_ptr() for value in module.state_dict().values()}
        buffers = [
            b for b in module.buffers() if b.is_floating_point() and b.data_ptr() in persistent
        ]
        size, dtype = sum(p.numel() for p in parameters), parameters[0].dtype
        self._places, at = [], 0
        for t in [*parameters, *buffers]:
            last = channels_last and t.ndim == 4
            self._places.append(_Place(slice(at, at + t.numel()), t.shape, last))
            at += t.numel()
        self.whole = torch.empty(at, dtype=dtype, device=parameters[0].device)
        self.w = nn.Parameter(self.whole[:size])
        self.w.grad = torch.zeros_like(self.w)
        self.statistics = self.whole[size:]
        for place, t in zip(self._places, [*parameters, *buffers], strict=True):
            t.data = place.seen(self.whole).copy_(t.detach())
        for place, p in zip(self._places, parameters, strict=False):
            p.grad = place.seen(self.w.grad)

    @property
    def grad(self) -> Tensor:
        """The gradient, (P,), that `backward` on the module accumulates into."""
        assert self.w.grad is not None
        return self.w.grad

    def in_order(self, vector: Tensor) -> Tensor:
        """A gradient (P,) or state (S,) tensor by tensor in the model's own order, a new one."""
        places = [place for place in self._places if place.here.stop <= vector.numel()]
        return torch.cat([place.seen(vector).reshape(-1) for place in places])

    def state(self) -> Tensor:
        """Parameters and running statistics as they lie, a new tensor (S,)."""
        return self.whole.clone()

    def load(self, state: Tensor) -> None:
        """Set parameters and running statistics from a state (S,)."""
        self.whole.copy_(state)

    @contextmanager
    def holding(self, state: Tensor) -> Generator[nn.Module]:
        """The module with another state (S,) for as long as it is measured."""
        own = self.state()
        self.load(state)
        try:
            yield self.module
        finally:
            self.load(own)
