"""What makes one agent's images different from the others': a fixed change of all of them."""

from torch import Tensor


def transformed(x: Tensor, rotate: float = 0.0, brightness: float = 1.0) -> Tensor:
    """Images as this agent's camera sees them.

    Args:
        x: images in [0, 1], (N, C, H, W).
        rotate: degrees, anticlockwise about the middle; what comes from outside is black.
        brightness: factor ≥ 0 on all pixels, clipped at 1.

    Returns:
        A tensor like x; x itself if nothing changes.

    Example:
        >>> import torch
        >>> transformed(torch.full((1, 1, 2, 2), 0.4), brightness=0.5).unique()
        tensor([0.2000])
    """
    if rotate:
        from torchvision.transforms.v2 import functional  # not for agents that do not rotate

        x = functional.rotate(x, rotate)
    return x if brightness == 1 else (x * brightness).clamp(max=1.0)
