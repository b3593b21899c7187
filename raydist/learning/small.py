"""Small models for images of 4x4 and more, VGG-16, and the point of the quadratic task."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from raydist.learning.resnet import Shape, pool_and_classify

VGG_16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions) of a stage


def linear(shape: Shape, classes: int) -> nn.Module:
    """Logits W x + b of the flattened image."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def small_cnn(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Two stages of two 3x3 convolutions (16, 32), then 64 hidden units; no BatchNorm."""
    narrow, wide, hidden = _scaled(width, 16, 32, 64)
    net = nn.Sequential(
        *(nn.Conv2d(shape[0], narrow, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(narrow, narrow, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(wide * _quarter(shape), hidden), nn.ReLU()),
        nn.Linear(hidden, classes),
    )
    # Without BatchNorm, torch's own initialisation lets the signal fade from layer to layer.
    for layer in net[:-1]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return net


def lenet(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """The LeNet of arXiv:2006.08403: two 5x5 convolutions (32, 64), then 1024 hidden units."""
    narrow, wide, hidden = _scaled(width, 32, 64, 1024)
    return nn.Sequential(
        *(nn.Conv2d(shape[0], narrow, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(narrow, wide, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(wide * _quarter(shape), hidden), nn.ReLU()),
        nn.Linear(hidden, classes),
    )


class Point(nn.Module):
    """The model of the quadratic task: its parameter is a point w, its output w − x."""

    def __init__(self, start: torch.Tensor) -> None:
        """Begin at a point, (M,)."""
        super().__init__()
        self.w = nn.Parameter(start)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The differences w − x, for x of shape (N, M)."""
        return self.w - x


def point(shape: tuple[int], classes: int, start: Sequence[float] | None = None) -> nn.Module:
    """A `Point` that starts at `start`, of M numbers, default 0.

    Args:
        shape: (M,).
        classes: ignored.
        start: where w starts.

    Returns:
        The model in float64, so that a later cast to any type is exact.

    Raises:
        ValueError: `start` does not have M numbers.
    """
    w = torch.tensor([0.0] * shape[0] if start is None else list(start), dtype=torch.float64)
    if w.shape != tuple(shape):
        raise ValueError(
            f"model.start is {start}, expected {shape[0]} numbers, as many as a center has"
        )
    return Point(w)


def _scaled(width: float, *channels: int) -> list[int]:
    return [max(1, round(width * count)) for count in channels]


def _quarter(shape: Shape) -> int:
    """The number of pixels after two halvings."""
    _, height, width = shape
    pixels = (height // 4) * (width // 4)
    if pixels == 0:
        raise ValueError(f'images have {height}x{width} pixels, expected 4x4 or more: use "linear"')
    return pixels


def vgg_16(shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """VGG-16, whose max-pools round up, so that images smaller than 32x32 work too."""
    layers: list[nn.Module] = []
    inputs = shape[0]
    for channels, convolutions in VGG_16:
        outputs = max(1, round(width * channels))
        for _ in range(convolutions):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, *pool_and_classify(inputs, classes))
