"""VGG networks (arXiv:1409.1556) with BatchNorm and one linear layer, as used on CIFAR.

VGG-16 has 14,728,266 parameters for 10 classes of RGB images.
"""

from torch import nn

from raydist.learning.resnet import Shape, pool_and_classify

VGG_16 = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # (channels, convolutions) of a stage


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
