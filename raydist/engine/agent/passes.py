"""How an agent's passes are computed. What is stored, summed up and sent stays in the dtype.

bf16 holds for the network's passes alone: losses, projections, weights and the optimiser's state
are float32. TF32 is a mode of GPUs for products of float32 matrices. Compiled, what lies between
products is computed in one go, and rounded once.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from raydist.config.experiment import Experiment


class Passes(nn.Module):
    """A network whose forward and backward passes are computed in bf16 or in channels_last."""

    def __init__(self, network: nn.Module, bf16: bool, channels_last: bool) -> None:
        """Wrap a network; parameters, buffers and modes are its own.

        Args:
            network: maps (N, ...) to outputs.
            bf16: whether matrix products and convolutions are those of bfloat16.
            channels_last: whether images are laid out with the channels of a pixel side by side.
        """
        super().__init__()
        self.network, self.bf16, self.channels_last = network, bf16, channels_last

    def forward(self, x: Tensor) -> Tensor:
        """The outputs in the dtype of x."""
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            outputs: Tensor = self.network(x)
        return outputs.to(x.dtype)


def computed(network: nn.Module, config: Experiment) -> nn.Module:
    """The network as an experiment computes it in training: itself, if nothing is asked for."""
    bf16 = config.precision == "bf16"
    if config.compile:
        network = cast(nn.Module, torch.compile(network, dynamic=False))
    return Passes(network, bf16, config.channels_last) if bf16 or config.channels_last else network


def unsafe_in_channels_last(network: nn.Module) -> bool:
    """Whether its gradients would be written outside their memory.

    oneDNN 3.12 does so in channels_last for the weights of strided 1x1 convolutions (seen with 2 to
    7 input channels on AVX2, whose registers hold 8 numbers; others hold 16).

    Args:
        network: of any kind.

    Returns:
        Whether it has such a convolution with fewer than 16 input channels.
    """
    return any(
        isinstance(m, nn.Conv2d)
        and tuple(m.kernel_size) == (1, 1)
        and tuple(m.stride) != (1, 1)
        and m.in_channels < 16
        for m in network.modules()
    )


@contextmanager
def tf32(allowed: bool) -> Generator[None]:
    """Meanwhile GPUs round the factors of float32 products to TF32, or do not.

    Torch's own default rounds those of convolutions.
    """
    products: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [product.allow_tf32 for product in products]
    try:
        for product in products:
            product.allow_tf32 = allowed
        yield
    finally:
        for product, value in zip(products, before, strict=True):
            product.allow_tf32 = value
