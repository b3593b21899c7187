"""Instability of adversarial training: its signs, its episodes, and its remedy.

Training by TRADES can become unstable: robustness against PGD is then overestimated. FOSC jumps,
and on the training images the accuracy under attack rises above the clean one. Some runs heal by
themselves. The remedy is Gaussian noise on the inputs in the first ten rounds of an epoch, whenever
FOSC was too high at the end of the epoch before (arXiv:2410.07675).

A `Chronicle` judges the measurements of one run as they come: each has signs or is calm. What was
calm is what the next one is compared with, so that an instability never becomes its own measure.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Sign = Literal["fosc_absolute", "fosc_relative", "adv_above_clean"]
How = Literal["std", "variance"]

REFERENCE = 1000  # calm measurements that are remembered: the latest


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
    recovery_round: int | None = None
    by: Literal["alone", "remedy", ""] = ""


class Chronicle:
    """The measurements of a run, one after the other, and its times of instability.

    What is kept does not grow with the run.

    Attributes:
        count: the number of times of instability there were.
        first: the first of them; None if there was none.
        last: the last of them, the only one that can be without recovery.
        in_a_row: the number of measurements, up to the last one, that all showed a sign: from
            some number on it is time to stop.

    Example:
        >>> run = Chronicle(relative=4.0)
        >>> [sorted(run.judge(n, fosc)) for n, fosc in enumerate([0.1, 0.1, 0.6, 0.6, 0.1])][2:]
        [['fosc_relative'], ['fosc_relative'], []]
        >>> run.count, run.first
        (1, Episode(onset_round=2, recovery_round=4, by='alone'))
    """

    def __init__(
        self, *, threshold: float | None = None, relative: float | None = None, warmup: int = 0
    ) -> None:
        """Begin with no measurement.

        Args:
            threshold: absolute level of FOSC, ≥ 0, tied to data and loss; None: no such sign.
            relative: factor on the reference, > 0, such as 3 to 5; None: no such sign.
            warmup: measurements that count as calm whatever they are, ≥ 0.

        Raises:
            ValueError: a number is out of its range.
        """
        if threshold is not None and not threshold >= 0:
            raise ValueError(f"threshold is {threshold}, expected a number >= 0: write 0.5")
        if relative is not None and not relative > 0:
            raise ValueError(f"relative is {relative}, expected a factor > 0: write 4.0")
        if warmup < 0:
            raise ValueError(f"warmup is {warmup}, expected an integer >= 0: write 3")
        self._threshold, self._relative, self._warmup = threshold, relative, warmup
        self.count = 0
        self.first: Episode | None = None
        self.last: Episode | None = None
        self.in_a_row, self._seen, self._helped = 0, 0, False
        self._calm: deque[float] = deque(maxlen=REFERENCE)

    def judge(
        self, n: int, fosc: float, clean: float = math.nan, adversarial: float = math.nan
    ) -> set[Sign]:
        """Take in the measurement of the state after round n; its signs, none for a calm one.

        - "fosc_absolute": FOSC is above `threshold`, or not finite.
        - "fosc_relative": FOSC is above `relative` times the reference, the median of the calm
          measurements before it (none: no comparison), or not finite.
        - "adv_above_clean": training accuracy under attack is above the clean one. Each must be
          counted on its own: where only images that are right without attack count as right under
          attack, this cannot happen.

        Args:
            n: the round, above the ones before.
            fosc: FOSC.
            clean: clean accuracy on training images; NaN: not measured.
            adversarial: accuracy under the training attack on the same images.

        Returns:
            The signs.
        """
        found: set[Sign] = set()
        if self._seen >= self._warmup:
            finite = math.isfinite(fosc)
            if self._threshold is not None and not (finite and fosc <= self._threshold):
                found.add("fosc_absolute")
            if self._relative is not None and not (finite and fosc <= self._limit()):
                found.add("fosc_relative")
            if adversarial > clean:
                found.add("adv_above_clean")
        self._seen += 1
        if not found and math.isfinite(fosc):
            self._calm.append(fosc)
        self._take_down(n, bool(found))
        return found

    def remedied(self) -> None:
        """The remedy was applied in a round since the last measurement.

        A measurement in round n is of the state after n updates: what ends an episode are the
        rounds past its onset, up to its recovery.
        """
        self._helped = True

    def dump(self) -> dict[str, Any]:
        """The state as JSON has it."""
        return {
            "count": self.count,
            "first": self.first and asdict(self.first),
            "last": self.last and asdict(self.last),
            "in_a_row": self.in_a_row,
            "seen": self._seen,
            "helped": self._helped,
            "calm": [*self._calm],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `dump` gave."""
        self.count = state["count"]
        self.first, self.last = (
            state[which] and Episode(**state[which]) for which in ("first", "last")
        )
        self.in_a_row, self._seen = state["in_a_row"], state["seen"]
        self._helped = state["helped"]
        self._calm = deque(state["calm"], maxlen=REFERENCE)

    def _limit(self) -> float:
        """The highest FOSC without the relative sign."""
        assert self._relative is not None
        return self._relative * median(self._calm) if self._calm else math.inf

    def _take_down(self, n: int, flag: bool) -> None:
        """An episode begins, goes on or ends."""
        if flag and self.in_a_row == 0:
            self.count, self.last, self._helped = self.count + 1, Episode(n), False
        elif not flag and self.in_a_row > 0:
            by: Literal["alone", "remedy"] = "remedy" if self._helped else "alone"
            assert self.last is not None
            self.last = replace(self.last, recovery_round=n, by=by)
        if self.count == 1:
            self.first = self.last
        self.in_a_row = self.in_a_row + 1 if flag else 0


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
        amount: the amount of noise, ≥ 0: the 0.1 of the paper's N(0, 0.1).
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
    """Detect that training with one-step attacks has learnt to fool them (arXiv:2001.03994).

    Args:
        fgsm_acc: accuracy under FGSM, in [0, 1], on the same images as
        pgd_acc: accuracy under PGD, in [0, 1].
        gap: the bound below which an honest model stays; a few points are usual.

    Returns:
        True if the one-step attack looks weaker by more than the gap.

    Example:
        >>> catastrophic_overfitting(0.8, 0.0), catastrophic_overfitting(0.5, 0.45)
        (True, False)
    """
    return fgsm_acc - pgd_acc > gap
