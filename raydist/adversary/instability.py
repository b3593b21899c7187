"""Instability of adversarial training: its signs, its episodes, and its remedy.

Training by TRADES can become unstable: robustness against PGD is then overestimated. FOSC jumps,
and on the training images the accuracy under attack rises above the clean one. Some runs heal by
themselves. The remedy is Gaussian noise on the inputs in the first ten rounds of an epoch, whenever
FOSC was too high at the end of the epoch before (arXiv:2410.07675).

One measurement has `signs`; a history of "has signs" is a list of flags. `persistent` flags stop a
run, one flag asks for the remedy, and `episodes` are what the flags tell in the end.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from raydist.adversary.fosc import unstable

Sign = Literal["fosc_absolute", "fosc_relative", "adv_above_clean"]
How = Literal["std", "variance"]


def signs(
    fosc: Sequence[float],
    train_clean: Sequence[float] = (),
    train_adv: Sequence[float] = (),
    *,
    threshold: float | None = None,
    relative: float | None = None,
    warmup: int = 0,
) -> set[Sign]:
    """The signs of instability in the last measurement, given those before it.

    - "fosc_absolute": FOSC is above `threshold`, or not finite.
    - "fosc_relative": FOSC is above `relative` times its running median, or not finite.
    - "adv_above_clean": training accuracy under attack is above the clean one. Each must be
      counted on its own: where only images that are right without attack count as right under
      attack, this cannot happen.

    Args:
        fosc: FOSC, one per measurement, oldest first.
        train_clean: clean accuracy on training images, one per measurement; none: no such sign.
        train_adv: accuracy under the training attack on the same images.
        threshold: absolute level of FOSC, ≥ 0; None: no such sign.
        relative: factor on the median of the FOSC before, > 0; None: no such sign.
        warmup: measurements that never show a sign, ≥ 0.

    Returns:
        The signs; empty for a stable run.

    Raises:
        ValueError: the two accuracies differ in number, or a setting is out of its range.

    Example:
        >>> sorted(signs([0.1, 0.1, 0.9], [0.5, 0.5, 0.5], [0.3, 0.3, 0.6], threshold=0.5))
        ['adv_above_clean', 'fosc_absolute']
    """
    if len(train_clean) != len(train_adv):
        raise ValueError(
            f"train_clean has {len(train_clean)} measurements and train_adv {len(train_adv)},"
            " expected the same number: give both for each measurement"
        )
    found: set[Sign] = set()
    if threshold is not None and unstable(fosc, threshold=threshold, warmup=warmup):
        found.add("fosc_absolute")
    if relative is not None and unstable(fosc, relative=relative, warmup=warmup):
        found.add("fosc_relative")
    if len(train_adv) > warmup and train_adv[-1] > train_clean[-1]:
        found.add("adv_above_clean")
    return found


def persistent(flags: Sequence[bool], patience: int) -> bool:
    """Whether each of the last `patience` measurements was flagged: time to stop.

    Args:
        flags: whether each measurement showed a sign, oldest first.
        patience: consecutive measurements needed, ≥ 1.

    Returns:
        True if all of them are flagged, and there are that many.

    Raises:
        ValueError: patience is below 1.
    """
    if patience < 1:
        raise ValueError(f"patience is {patience}, expected an integer >= 1: write 3")
    return len(flags) >= patience and all(flags[-patience:])


@dataclass(frozen=True)
class Episode:
    """A time of instability.

    Attributes:
        onset_round: the first measured round with a sign.
        recovery_round: the first measured round after it without one; None: it lasts to the end.
        by: "remedy" if the remedy was applied in between, "alone" if not (the run healed itself),
            "" without recovery.
    """

    onset_round: int
    recovery_round: int | None
    by: Literal["alone", "remedy", ""]


def episodes(
    rounds: Sequence[int], flags: Sequence[bool], remedied: Collection[int] = ()
) -> list[Episode]:
    """The times of instability in a run.

    A measurement in round n is of the state after n updates, so that the rounds that can end an
    episode are those past its onset up to its recovery.

    Args:
        rounds: the measured rounds, increasing.
        flags: whether each of them showed a sign.
        remedied: the rounds, measured or not, in which the remedy was applied.

    Returns:
        The episodes, in their order; only the last one can be without recovery.

    Raises:
        ValueError: rounds are out of order, or not as many as flags.

    Example:
        >>> episodes([10, 20, 30], [False, True, False])
        [Episode(onset_round=20, recovery_round=30, by='alone')]
    """
    if len(rounds) != len(flags) or any(n >= later for n, later in pairwise(rounds)):
        raise ValueError(
            f"rounds is {list(rounds)} with {len(flags)} flags, expected increasing rounds, one"
            " for each flag: write [10, 20] with [False, True]"
        )
    found, onset = list[Episode](), None
    for n, flag in zip(rounds, flags, strict=True):
        if flag and onset is None:
            onset = n
        elif not flag and onset is not None:
            helped = any(onset < remedy <= n for remedy in remedied)
            found.append(Episode(onset, n, "remedy" if helped else "alone"))
            onset = None
    return found if onset is None else [*found, Episode(onset, None, "")]


def remedy_rounds(epoch_rounds: int, after_round: int, batches: int = 10) -> range:
    """The first rounds of the epoch that follows a measurement: when noise is added to the inputs.

    Epoch e = 0, 1, ... consists of the rounds e E + 1, ..., (e + 1) E.

    Args:
        epoch_rounds: rounds E of an epoch, ≥ 1.
        after_round: the round n ≥ 0 after which FOSC was too high; at the end of an epoch, the
            next one follows at once.
        batches: rounds with noise, ≥ 1; at most the whole epoch.

    Returns:
        The rounds, all above n.

    Raises:
        ValueError: a number is out of its range.

    Example:
        >>> remedy_rounds(100, after_round=200), remedy_rounds(100, after_round=201)
        (range(201, 211), range(301, 311))
    """
    if epoch_rounds < 1 or after_round < 0 or batches < 1:
        raise ValueError(
            f"epoch_rounds is {epoch_rounds}, after_round {after_round}, batches {batches},"
            " expected epoch_rounds >= 1, after_round >= 0, batches >= 1: write batches = 10"
        )
    begin = -(-after_round // epoch_rounds) * epoch_rounds + 1
    return range(begin, begin + min(batches, epoch_rounds))


def add_gaussian(
    x: Tensor,
    amount: float = 0.1,
    how: How = "std",
    *,
    generator: torch.Generator,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Inputs with Gaussian noise, clipped to the box: x + N(0, σ² I), before they are attacked.

    Args:
        x: points, (N, ...).
        amount: of noise, ≥ 0: the 0.1 of the paper's N(0, 0.1).
        how: whether the amount is the standard deviation σ, "std", or "variance", σ²; the paper
            leaves it open.
        generator: source of the noise; on x's device it costs no transfer.
        bounds: (low, high), the range of one coordinate.

    Returns:
        The noisy points, (N, ...), new.

    Raises:
        ValueError: amount is negative or not finite, or how is unknown.
    """
    if not (math.isfinite(amount) and amount >= 0):
        raise ValueError(f"amount is {amount}, expected a finite number >= 0: write 0.1")
    if how not in get_args(How):
        raise ValueError(f'how is {how!r}, expected one of: write "std" or "variance"')
    sigma = amount if how == "std" else math.sqrt(amount)
    noise = torch.randn(x.shape, generator=generator, device=generator.device, dtype=x.dtype)
    return (x + sigma * noise.to(x.device)).clamp(*bounds)


def catastrophic_overfitting(fgsm_acc: float, pgd_acc: float, gap: float = 0.2) -> bool:
    """Whether training with one-step attacks has learnt to fool them (arXiv:2001.03994).

    Args:
        fgsm_acc: accuracy under FGSM, in [0, 1], on the same images as
        pgd_acc: accuracy under PGD, in [0, 1].
        gap: what an honest model stays below; a few points are usual.

    Returns:
        True if the one-step attack looks weaker by more than the gap.

    Example:
        >>> catastrophic_overfitting(0.8, 0.0), catastrophic_overfitting(0.5, 0.45)
        (True, False)
    """
    return fgsm_acc - pgd_acc > gap
