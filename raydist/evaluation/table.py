"""From the ledger of a trial to numbers with names, and to one row for each image."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raydist.adversary.threat import ThreatModel
from raydist.evaluation.ledger import Entry, Ledger
from raydist.evaluation.request import Request
from raydist.evaluation.subject import Subject
from raydist.evaluation.units import (
    CLEAN,
    GAPS,
    MASKING,
    Ask,
    asks,
    budget,
    large,
    left_out,
    limit,
    single,
)
from raydist.measure import accuracy, attacks, masking
from raydist.measure.verdict import STANDARD, Mask, fraction

Numbers = dict[str, float | str]


def numbers(subject: Subject, model: str, request: Request, ledger: Ledger) -> Numbers:
    """Everything that is known of what was asked of a model, by name.

    Args:
        subject: the trial.
        model: the model's name.
        request: what was asked.
        ledger: what is known.

    Returns:
        Accuracies in [0, 1], the masking verdict, W₂ numbers, curvature, scans.
    """
    weights, threat = subject.digest(model), request.threat(subject.config)
    view = View(subject, request, ledger, weights)
    found: Numbers = {"evaluation_images": float(limit(subject, request, "test"))}
    found |= _accuracies(view, asks(subject, request), threat)
    for name in GAPS:
        values = view.values(f"{budget('test', threat)}/{name}")
        if values is not None:
            found[name if name in ("fosc", "fosc_relative") else "zero_gradient_share"] = float(
                values.mean()
            )
    if "masking" in request.parts and threat.eps > 0:
        found |= _masking(view, threat, found)
    reasons = left_out(subject, request)
    if reasons:
        found["left_out"] = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    flags = sorted(ledger.flags(weights))
    if flags:
        found["evaluation_flags"] = ", ".join(flags)
    return found | _distributional(view, threat, found.get("clean_acc")) | _single(view, model)


class View:
    """The ledger, as arrays over the images that a request asks for."""

    def __init__(self, subject: Subject, request: Request, ledger: Ledger, weights: str) -> None:
        """Look at what is known of some weights.

        Args:
            subject: the trial.
            request: what was asked.
            ledger: what is known.
            weights: digest of the model's weights.
        """
        self.subject, self.request, self.ledger, self.weights = subject, request, ledger, weights

    def values(self, measure: str) -> NDArray[np.float64] | None:
        """A number for each test image; None unless all are known."""
        known = self.ledger.images(self.weights, measure)
        images = range(limit(self.subject, self.request, "test"))
        if not all(i in known for i in images):
            return None
        return np.array([known[i] for i in images], dtype=np.float64)

    def mask(self, ask: Ask, standing: Mask | None = None) -> Mask | None:
        """Which images stay right under an attack; None unless that is known of all.

        Args:
            ask: the attack.
            standing: the images that it had to see; None: all that are right without attack.

        Returns:
            (N,), False for the others.
        """
        images = limit(self.subject, self.request, ask.split)
        clean = self.ledger.images(self.weights, f"{ask.split}/{CLEAN}")
        if not all(i in clean for i in range(images)):
            return None
        if standing is None:
            standing = np.array([clean[i] for i in range(images)], dtype=np.bool_)
        if ask.attack == CLEAN:
            return standing
        known = self.ledger.images(self.weights, ask.measure)
        if not all(int(i) in known for i in np.flatnonzero(standing)):
            return None
        kept: Mask = np.array([bool(known.get(i, False)) for i in range(images)])
        return standing & kept


def _accuracies(view: View, asked: Sequence[Ask], threat: ThreatModel) -> Numbers:
    """Accuracy under each attack alone, and what the members of the ensemble leave."""
    found: Numbers = {}
    for split in ("test", "validation"):
        prefix = "val_" if split == "validation" else ""
        right = view.mask(Ask(split, CLEAN, threat))
        if right is None or (split != "test" and all(ask.split != split for ask in asked)):
            continue
        found[f"{prefix}clean_acc"] = fraction(right)
        masks: list[Mask] = []
        left: Mask | None = right
        members = []
        for ask in (ask for ask in asked if ask.split == split and ask.threat == threat):
            mask = view.mask(ask, left if ask.cascade else None)
            if ask.cascade:
                left = mask
            if mask is None:
                continue
            masks.append(mask)
            members += [ask.attack] if ask.cascade else []
            found[prefix + _column(ask)] = fraction(mask)
        if tuple(members) == STANDARD and left is not None:
            found[f"{prefix}autoattack_acc"] = fraction(left)
            found[f"{prefix}autoattack_images"] = float(len(right))
        usual = found.get(f"{prefix}pgd10_acc")
        if masks and isinstance(usual, float):
            found[f"{prefix}overestimation"] = usual - fraction(np.logical_and.reduce(masks))
    return found


def _column(ask: Ask) -> str:
    """An attack's column: of what it leaves in the cascade, or of what it does alone."""
    name = attacks.column(ask.attack)
    if ask.cascade or ask.attack not in ("apgd-t", "fab", "fab-t", "square"):
        return name  # APGD-CE comes first in the cascade: both are the same
    return "square5000_acc" if ask.attack == "square" else name.removesuffix("_acc") + "_alone_acc"


def _masking(view: View, threat: ThreatModel, found: Numbers) -> Numbers:
    """The verdict of the masking checks, and the numbers that they alone need."""
    wanted = {attacks.column(name): Ask("test", name, threat) for name in MASKING}
    wanted["pgd10_2eps_acc"] = Ask("test", "pgd10", ThreatModel(threat.norm, 2 * threat.eps))
    wanted["pgd10_large_eps_acc"] = Ask("test", "pgd10", large(view.subject, threat))
    masks = {name: view.mask(ask) for name, ask in wanted.items()}
    more: Numbers = {name: fraction(mask) for name, mask in masks.items() if mask is not None}
    measured = {n: value for n, value in (found | more).items() if isinstance(value, float)}
    measured.pop("overestimation", None)  # of whatever was asked: the check takes its own
    judged = masking.verdict(measured, limit(view.subject, view.request, "test"))
    more["masking"] = judged.word
    if judged.missing:
        more["masking_unchecked"] = ", ".join(judged.missing)
    return more


def _distributional(view: View, threat: ThreatModel, clean: float | str | None) -> Numbers:
    """W₂ accuracies and losses."""
    request = view.request
    if "w2" not in request.parts or threat.eps == 0:
        return {}
    found: Numbers = {}
    images, delta = limit(view.subject, request, "test"), request.delta or threat.eps
    found |= view.ledger.value(view.weights, f"test/{threat.norm}/{delta:.6g}/w2/{images}") or {}
    radii = view.values(f"test/{threat.norm}/radius")
    if radii is not None:
        found["w2_acc"] = accuracy.w2_accuracy(radii, delta)
        found["radius_median"] = float(np.median(radii))
        if "w_pgd_acc" in found and isinstance(clean, float) and clean > 0:
            found["w2_ratio"] = min(float(found["w2_acc"]), float(found["w_pgd_acc"])) / clean
    return found


def _single(view: View, model: str) -> Numbers:
    """Curvature and scans: the numbers among their results."""
    found: Numbers = {}
    threat = view.request.threat(view.subject.config)
    barriers: list[float] = []
    for measure, task, args in single(view.subject, model, view.request):
        value = view.ledger.value(view.weights, measure)
        if value is None:
            continue
        prefix = "clean_" if args.get("loss") == CLEAN and threat.eps > 0 else ""
        if task == "trace":
            found[f"{prefix}hessian_trace"] = value["mean"]
            found[f"{prefix}hessian_trace_error"] = value["error"]
        elif task == "top":
            found[f"{prefix}hessian_top"] = value[0]
        elif task == "geometry":
            found |= value
        elif task == "path":
            barriers.append(value["barrier"])
    if barriers:
        found["barrier"] = max(barriers)
    return found


def images_frame(subject: Subject, models: Iterable[str], ledger: Ledger) -> pd.DataFrame:
    """One row for each model and test image of which something is known.

    Args:
        subject: the trial.
        models: names of models.
        ledger: what is known.

    Returns:
        Columns `model`, `image`, `label`, and one for each measure: "clean", the attacks with
        their budget (True: still right; missing: not tried), FOSC, radius.
    """
    labels = subject.split("test")[1]
    frames = []
    for model in models:
        columns = {
            measure.removeprefix("test/"): pd.Series(known, dtype=object)
            for measure, known in ledger.all_images(subject.digest(model)).items()
            if measure.startswith("test/")
        }
        frame = pd.DataFrame(columns).sort_index().convert_dtypes()
        frame.insert(0, "model", model)
        frame.insert(1, "image", frame.index)
        frame.insert(2, "label", labels[frame.index])
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def from_trial(subject: Subject, weights: str) -> list[Entry]:
    """What the end of the trial already measured of its centroid, as entries.

    Args:
        subject: the trial.
        weights: digest of the centroid's weights.

    Returns:
        The entries; none if the trial kept no verdicts on images.
    """
    file = subject.folder / "images.parquet"
    if not file.exists():
        return []
    frame = pd.read_parquet(file)
    threat = ThreatModel(subject.config.threat.norm, subject.config.threat.eps)
    where, images = budget("test", threat), frame["image"].tolist()
    entries = [Entry(weights, f"test/{CLEAN}", frame["clean"].tolist(), images)]
    for name in (str(column) for column in frame if str(column).startswith("pgd")):
        entries.append(Entry(weights, f"{where}/{name}", frame[name].tolist(), images))
    if "broken_by" in frame and subject.data.classes >= 4:
        order = [CLEAN, *STANDARD, "none"]
        tried = frame[frame["broken_by"].isin(order)]
        place = tried["broken_by"].map(order.index)
        for position, name in enumerate(STANDARD, start=1):
            seen = tried[place >= position]
            kept = (place[place >= position] > position).tolist()
            entries.append(Entry(weights, f"{where}/{name}", kept, seen["image"].tolist()))
    return entries
