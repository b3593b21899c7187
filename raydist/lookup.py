"""The known name that a misspelt one was meant to be; a wrong guess is worse than none."""

from collections.abc import Iterable
from difflib import get_close_matches

ALIKE = 0.75  # "trade" and "trades" are, "epsilon" and "precision" are not
# What other tools call it; not to be found by the spelling.
ELSEWHERE = {
    "bfloat16": "bf16",
    "batch_size": "batch",
    "batchsize": "batch",
    "bs": "batch",
    "dataset": "set",
    "epsilon": "eps",
    "learning_rate": "lr",
    "n_epochs": "epochs",
    "num_agents": "agents",
    "num_epochs": "epochs",
    "optimiser": "optim",
    "optimizer": "optim",
    "step_size": "alpha",
    "val": "validation",
    "valid": "validation",
    "wd": "weight_decay",
}


def closest(written: str, known: Iterable[str]) -> str | None:
    """The known name that was meant, None where none is close.

    Args:
        written: what the user wrote.
        known: the names that there are.

    Returns:
        One of them: the same but for case, hyphens and underscores; what other tools call so; or
        one of nearly the same letters, of two equally close ones that with the same initial.

    Example:
        >>> closest("resnet18", ["resnet-18", "vgg-16"]), closest("epsilon", ["precision"])
        ('resnet-18', None)
    """
    names = {_bare(name): name for name in known}
    for name in names:
        if same(written, name):
            return names[name]
    bare = _bare(written)
    close = get_close_matches(bare, names, cutoff=ALIKE)
    best = min(close, key=lambda name: name[:1] != bare[:1], default=None)
    return None if best is None else names[best]


def same(written: str, name: str) -> bool:
    """Whether a name is the same but for case, hyphens and underscores, or so called elsewhere."""
    return _bare(name) in (_bare(written), _bare(ELSEWHERE.get(written.lower(), "")))


def _bare(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
