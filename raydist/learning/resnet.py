"""Residual networks of depth 18 with the CIFAR stem: a 3x3 convolution, no pooling.

They take images of any size: the last stage is averaged over all its pixels. Parameters for 10
classes of RGB images: ResNet-18 11,173,962, PreAct-ResNet-18 11,172,170, SENet-18 11,260,354.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

STAGES = (64, 128, 256, 512)  # channels, before the width factor
Shape = tuple[int, int, int]


def resnet_18(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-18 (arXiv:1512.03385)."""
    first, *_, last = channels = _channels(width)
    return nn.Sequential(
        *(conv3(shape[0], first), nn.BatchNorm2d(first), nn.ReLU()),
        *_stages(PostBlock, channels),
        *pool_and_classify(last, classes),
    )


def preact_resnet_18(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Pre-activation ResNet-18 (arXiv:1603.05027) with a last BatchNorm before the pooling."""
    first, *_, last = channels = _channels(width)
    return nn.Sequential(
        conv3(shape[0], first),
        *_stages(PreActBlock, channels),
        *(nn.BatchNorm2d(last), nn.ReLU()),
        *pool_and_classify(last, classes),
    )


def senet_18(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """SENet-18 (arXiv:1709.01507): squeeze and excitation in pre-activation blocks."""
    first, *_, last = channels = _channels(width)
    return nn.Sequential(
        *(conv3(shape[0], first), nn.BatchNorm2d(first), nn.ReLU()),
        *_stages(SEBlock, channels),
        *pool_and_classify(last, classes),
    )


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the size, divided by the stride."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def pool_and_classify(inputs: int, classes: int) -> list[nn.Module]:
    """The head: the mean over all pixels, then a linear layer."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]


class PostBlock(nn.Module):
    """F(x) = conv, BN, ReLU, conv, BN; output ReLU(F(x) + shortcut(x))."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block.

        Args:
            inputs: channels of its input.
            outputs: channels of its output.
            stride: by which height and width shrink.
        """
        super().__init__()
        self.residual = nn.Sequential(
            *(conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()),
            *(conv3(outputs, outputs), nn.BatchNorm2d(outputs)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The next features, from features of shape (N, inputs, H, W)."""
        return F.relu(self.residual(x) + self.shortcut(x))


class PreActBlock(nn.Module):
    """With a = ReLU(BN(x)): output conv(ReLU(BN(conv(a)))) + x, or + conv1x1(a) on a new shape."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block.

        Args:
            inputs: channels of its input.
            outputs: channels of its output.
            stride: by which height and width shrink.
        """
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = nn.Sequential(
            *(conv3(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU()),
            conv3(outputs, outputs),
        )
        self.projection = None
        if stride != 1 or inputs != outputs:
            self.projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The next features, from features of shape (N, inputs, H, W)."""
        a = self.activate(x)
        shortcut = x if self.projection is None else self.projection(a)
        residual: torch.Tensor = self.residual(a)
        return residual + shortcut


class SEBlock(PreActBlock):
    """A pre-activation block whose residual channels are weighted by a function of their means."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Build the block; arguments as of `PreActBlock`."""
        super().__init__(inputs, outputs, stride)
        self.residual.append(Excite(outputs))


class Excite(nn.Module):
    """x · sigmoid(W2 ReLU(W1 mean(x))), with a bottleneck of 1/16 of the channels."""

    def __init__(self, channels: int) -> None:
        """Build the function of that many channels."""
        super().__init__()
        hidden = max(1, channels // 16)
        self.weight = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            *(nn.Conv2d(channels, hidden, 1), nn.ReLU()),
            *(nn.Conv2d(hidden, channels, 1), nn.Sigmoid()),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features of shape (N, channels, H, W), weighted per channel."""
        weight: torch.Tensor = self.weight(x)
        return x * weight


def _channels(width: float) -> list[int]:
    return [max(1, round(width * stage)) for stage in STAGES]


def _stages(block: Callable[[int, int, int], nn.Module], channels: list[int]) -> list[nn.Module]:
    """Two blocks for each number of channels, the first halving the size from the second on."""
    blocks = []
    inputs = channels[0]
    for stage, outputs in enumerate(channels):
        blocks += [block(inputs, outputs, 1 if stage == 0 else 2), block(outputs, outputs, 1)]
        inputs = outputs
    return blocks
