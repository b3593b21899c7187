"""Wide residual networks, WRN-d-k (arXiv:1605.07146): depth d = 6 n + 4, widening factor k.

Parameters for 10 classes of RGB images: WRN-16-4 2,748,890, WRN-28-10 36,479,194, WRN-34-10
46,160,474. They take images of any size.
"""

from torch import nn

from raydist.learning.resnet import PreActBlock, Shape, conv3, pool_and_classify


def wide_resnet(
    depth: int, factor: int, shape: Shape, classes: int, width: float = 1.0
) -> nn.Module:
    """Three stages of n pre-activation blocks, of 16k, 32k and 64k channels.

    Args:
        depth: d = 6 n + 4.
        factor: k.
        shape: (C, H, W) of an image.
        classes: number of classes.
        width: multiplies the channels, those of the stem too.

    Returns:
        The model, initialised as in the paper's code: normal, variance 2 / (9 · channels out).
    """
    stem = max(1, round(16 * width))
    layers: list[nn.Module] = [conv3(shape[0], stem)]
    inputs = stem
    for stage in range(3):
        outputs = max(1, round(16 * factor * width * 2**stage))
        for block in range((depth - 4) // 6):
            layers.append(PreActBlock(inputs, outputs, 2 if stage > 0 and block == 0 else 1))
            inputs = outputs
    layers += [nn.BatchNorm2d(inputs), nn.ReLU(), *pool_and_classify(inputs, classes)]
    model = nn.Sequential(*layers)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
    return model
