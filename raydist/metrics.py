"""Every number that raydist reports: name, heading, unit, better end and meaning.

Tables, pictures, progress, Prometheus, search, the masking checks and the README's glossary read
this file. A name may stand for a family: `<steps>` is filled in, what stands in [brackets] may be
missing, and `<name>` is any other column, whose heading, unit and better end it takes over.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

VALUES = {
    "steps": r"[1-9]\d*",
    "restarts": r"[1-9]\d*",
    "queries": r"[1-9]\d*",
    "step": r"\d*_?\d+",
    "how": "mean|worst|best",
    "average": "ema|swa|average",
    "norm": "linf|l2|l1",
    "eps": r"[\d.e-]+",
    "name": ".+",
    "number": ".+",  # a name, or one without its _acc
}


@dataclass(frozen=True)
class Metric:
    """One column, or a family of them.

    Attributes:
        name: the column's name.
        heading: the words for it in tables and pictures.
        unit: "%" for shares that are shown in percent; "" for plain numbers and text.
        better: "high", "low", or "" where neither end is.
        meaning: one sentence.
        attack: the kind of attack, for an accuracy under one attack.
        ascends: the loss that the attack ascends: "ce", "dlr", "margin"; else what it minimises.
        alone: whether the attack saw every image, not only those that the ensemble's members
            before it left.
        budget: the attack's budget, "" for the one that was asked for.
        given: values of the family's `<...>` in the name that was looked up.
    """

    name: str
    heading: str
    unit: str
    better: str
    meaning: str
    attack: str = ""
    ascends: str = ""
    alone: bool = True
    budget: str = ""
    given: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The heading with the unit."""
        return f"{self.heading} {self.unit}".strip()


# fmt: off
METRICS = (
    # of each round
    Metric("loss", "loss", "", "low", "Training loss of the attacked batch."),
    Metric("train_loss", "train loss", "", "low", "`loss` of the last round."),
    Metric("grad_norm", "gradient", "", "low", "Norm of the gradient of the training loss; in an evaluation that of the attacked cross-entropy on training images."),
    Metric("grad_norm_clean", "clean gradient", "", "low", "Norm of the gradient of the clean cross-entropy on training images."),
    Metric("grad_norm_ce", "CE gradient", "", "", "Norm of the gradient of TRADES' clean term on a batch."),
    Metric("grad_norm_kl", "KL gradient", "", "", "Norm of the gradient of TRADES' KL term, without β, on a batch."),
    Metric("grad_cosine", "gradient cosine", "", "high", "Cosine of the gradients on one batch before and after the agent's own step."),
    Metric("stepwise_cosine", "stepwise cosine", "", "high", "Mean cosine of the input gradients at successive points of PGD: near 1 for a smooth loss."),
    Metric("train_clean_acc", "train clean", "%", "high", "Share of a training batch that is right without attack."),
    Metric("train_adv_acc", "train attacked", "%", "high", "Share of a training batch's attacked points that are right, whether or not the clean ones are."),
    Metric("lr", "μ", "", "", "Learning rate of the round."),
    Metric("eps", "ε", "", "", "Budget of the training attack in the round, as a fraction of the pixel range."),
    Metric("delta", "δ", "", "", "W₂ budget of distributional training in the round."),
    Metric("passes", "passes", "", "", "How often the agent has seen its share of the data."),
    Metric("seconds_attack", "attack", "s", "low", "Seconds of the round in which an agent attacked its batch."),
    Metric("seconds_adapt", "adapt", "s", "low", "Seconds of the round in which an agent took its gradient and its own step."),
    Metric("seconds_combine", "combine", "s", "low", "Seconds of the round in which an agent combined what it received."),
    Metric("bytes_sent", "sent", "bytes", "low", "Size of what an agent sent in the round, to all its neighbours together."),
    Metric("unstable", "unstable", "", "low", "1 where a measurement has a sign of instability, else 0."),
    # on validation images, of the centroid
    Metric("val_loss", "val. loss", "", "low", "Clean cross-entropy on validation images."),
    Metric("val_clean_acc", "val. clean", "%", "high", "Share of validation images that are right without attack."),
    Metric("val_fgsm_acc", "val. FGSM", "%", "high", "Share of validation images that stay right under FGSM."),
    Metric("val_pgd10_acc", "val. PGD-10", "%", "high", "Share of validation images that stay right under PGD-10."),
    Metric("val_fosc", "val. FOSC", "", "low", "`fosc` at the last point of PGD-10 on validation images, of the centroid."),
    Metric("val_fosc_box", "val. FOSC in the box", "", "low", "`val_fosc` on the ball cut by the pixel range."),
    Metric("val_fosc_relative", "val. relative FOSC", "", "low", "`val_fosc_box` divided by ε‖g‖_*: free of the scale of the loss."),
    # accuracies on test images, in the order of bars in a picture
    Metric("clean_acc", "clean", "%", "high", "Share of the centroid's test images that are right without attack."),
    Metric("fgsm_acc", "FGSM", "%", "high", "What stays right under FGSM, one step of length ε.", attack="fgsm", ascends="ce"),
    Metric("pgd<steps>[x<restarts>][_step_<step>]_acc", "PGD-<steps>[×<restarts>][, step <step>]", "%", "high", "What stays right under PGD on the cross-entropy with so many steps, random restarts, and step length (ε / 4 unless it is named).", attack="pgd", ascends="ce"),
    Metric("pgd<steps>[x<restarts>][_step_<step>]_margin_acc", "PGD-<steps>[×<restarts>][, step <step>] on the margin", "%", "high", "What stays right under PGD on the margin instead.", attack="pgd", ascends="margin"),
    Metric("pgd10_2eps_acc", "PGD-10 at 2 ε", "%", "high", "What stays right under PGD-10 with twice the budget.", attack="pgd", ascends="ce", budget="2 ε"),
    Metric("pgd10_large_eps_acc", "PGD-10 at any ε", "%", "", "What stays right under PGD-10 in a ball that holds every image: about chance, unless gradients are masked.", attack="pgd", ascends="ce", budget="any"),
    Metric("apgd_ce_acc", "APGD-CE", "%", "high", "What stays right under APGD on the cross-entropy.", attack="apgd", ascends="ce"),
    Metric("apgd_dlr_acc", "APGD-DLR", "%", "high", "What stays right under APGD on the DLR loss.", attack="apgd", ascends="dlr"),
    Metric("apgd_t_acc", "APGD-T", "%", "high", "What AutoAttack leaves after its second member, APGD on targets.", attack="apgd", ascends="dlr", alone=False),
    Metric("apgd_t_alone_acc", "APGD-T alone", "%", "high", "What stays right under APGD on targets, given every image.", attack="apgd", ascends="dlr"),
    Metric("fab_acc", "FAB", "%", "high", "What the ensemble leaves after FAB, which looks for the nearest other label.", attack="fab", ascends="distance", alone=False),
    Metric("fab_t_acc", "FAB-T", "%", "high", "What AutoAttack leaves after its third member, FAB on targets.", attack="fab", ascends="distance", alone=False),
    Metric("fab_alone_acc", "FAB alone", "%", "high", "What stays right under FAB, given every image.", attack="fab", ascends="distance"),
    Metric("fab_t_alone_acc", "FAB-T alone", "%", "high", "What stays right under FAB on targets, given every image.", attack="fab", ascends="distance"),
    Metric("square<queries>_acc", "Square, <queries> queries", "%", "high", "What stays right under Square, which sees no gradient, with so many queries.", attack="square", ascends="margin"),
    Metric("square_acc", "Square", "%", "high", "What the ensemble leaves after Square, its last member.", attack="square", ascends="margin", alone=False),
    Metric("autoattack_acc", "AutoAttack", "%", "high", "What stays right under all four members of AutoAttack.", attack="autoattack", ascends="several"),
    Metric("w_pgd_acc", "W-PGD", "%", "high", "Accuracy under a W₂ budget that all images share: the lowest over W-PGD's points."),
    Metric("w2_acc", "W₂", "%", "high", "Accuracy under the same budget when it is spent on the images of the smallest radii first."),
    # whether they can be trusted
    Metric("overestimation", "overestimation", "%", "low", "PGD-10 accuracy minus what stands against all attacks, on their common images; only where an attack on another loss than cross-entropy was run."),
    Metric("zero_gradient_share", "zero gradients", "%", "low", "Share of images whose input gradient is exactly 0."),
    Metric("fosc", "FOSC", "", "low", "ε‖g‖_* − ⟨x′ − x, g⟩ with the input gradient g, 0 where the attack has converged: in rounds of the training attack, at the point of its last gradient and for its own loss; in final numbers of the cross-entropy at the last point of PGD-10 on test images."),
    Metric("test_fosc", "test FOSC", "", "low", "`fosc` of the final numbers in Ray Tune's files, where that of the rounds has its name."),
    Metric("fosc_relative", "relative FOSC", "", "low", "`fosc` on the ball cut by the pixel range, divided by ε‖g‖_*: free of the scale of the loss."),
    Metric("masking", "masking", "", "", "`trusted`, `unchecked`, or the signs of masked gradients, warnings of the attacks among them."),
    Metric("masking_unchecked", "unchecked", "", "", "The checks for which a number is missing, or so few images are there that a gap of 20 points would be no sign (a gap of accuracies needs 81)."),
    Metric("autoattack_flags", "flags", "", "", "What the attacks themselves warned of."),
    # the network of agents
    Metric("disagreement", "disagr.", "", "low", "(1/K) Σ ‖w_k − w_c‖², the mean squared distance of the agents' weights from their centroid."),
    Metric("distance", "distance", "", "", "‖w_k − w_0‖ of the agents' weights from their start."),
    Metric("distance_from_start", "distance from start", "", "", "Distance of a model's weights from the start of the run."),
    Metric("mixing_rate", "mixing rate", "", "low", "Second largest eigenvalue modulus of A: how slowly agents agree."),
    Metric("sensitivity", "Υ", "", "low", "Υ, the root mean square of the dual norm of the loss' input gradient: in rounds over all agents' training images, in an evaluation over test images."),
    Metric("excess_risk", "excess risk", "", "low", "(1/K) Σ J(w_k) − J(w*), mean over the agents."),
    Metric("excess_risk_theory", "theory", "", "", "What theory predicts of `excess_risk`; of the quadratic task in closed form."),
    Metric("excess_risk_limit", "limit", "", "", "The same prediction for n → ∞."),
    Metric("excess_risk_theory_missing", "no theory", "", "", "Why theory is not about this run."),
    Metric("centroid_excess_risk", "excess risk of the centroid", "", "low", "J(w_c) − J(w*) of the centroid."),
    # W₂ budget and curvature
    Metric("w2_ratio", "W₂ ratio", "", "high", "R_δ, the lower of `w_pgd_acc` and `w2_acc` divided by the clean accuracy."),
    Metric("w2_loss", "V(δ)", "", "low", "V(δ), the worst mean loss under the W₂ budget, from below, by W-PGD."),
    Metric("w2_loss_first_order", "V(0) + δΥ", "", "low", "V(0) + δ Υ, its first-order approximation."),
    Metric("radius_median", "median radius", "", "high", "Median distance of a test image to the nearest other label that attacks find, 0 or less if it is wrong."),
    Metric("hessian_trace", "Hessian trace", "", "low", "Trace of the Hessian of the training loss at frozen adversarial points."),
    Metric("hessian_top", "top eigenvalue", "", "low", "Largest eigenvalue of that Hessian."),
    Metric("clean_hessian_trace", "clean Hessian trace", "", "low", "Trace of the Hessian of the clean loss."),
    Metric("clean_hessian_top", "clean top eigenvalue", "", "low", "Largest eigenvalue of the clean loss' Hessian."),
    Metric("barrier", "barrier", "", "low", "Largest rise of the robust loss on a line between agents or to the centroid."),
    # how the run went
    Metric("seconds", "", "s", "low", "Wall seconds of the run, snapshots and restarts included."),
    Metric("seconds_lost", "lost", "s", "low", "Seconds of work that deaths have cost."),
    Metric("recoveries", "recoveries", "", "low", "How often the run went on after a death."),
    Metric("status", "status", "", "", "completed, stopped, diverged, failed or unfinished."),
    Metric("stop_reason", "reason", "", "", "Why the run ended early."),
    Metric("stop_round", "stopped at", "", "", "The round with which it ended early."),
    Metric("rounds_run", "rounds run", "", "", "How many rounds were run."),
    Metric("round", "round", "", "", "The round that a report is of; 0 is the start."),
    Metric("rounds", "rounds", "", "", "How many rounds were asked for."),
    Metric("unstable_episodes", "episodes", "", "low", "How often the run became unstable."),
    Metric("onset_round", "onset", "", "", "The round in which the first episode began."),
    Metric("recovery_round", "recovered at", "", "", "The round in which the first episode ended."),
    Metric("recovered_by", "recovered by", "", "", "`alone` or `remedy`: how the first episode ended."),
    Metric("catastrophic_overfitting_round", "overfitting at", "", "", "The first round in which one-step training fools its own attack: FGSM is much weaker than PGD-10 on validation images."),
    Metric("exchange_chosen", "exchange", "", "", "What `exchange = \"auto\"` chose."),
    Metric("centroid_digest", "digest", "", "", "What identifies the centroid's weights and the images."),
    Metric("objective", "objective", "", "", "`search.metric`, by which trials are compared; of a diverged run a very bad number."),
    Metric("unmeasured", "unmeasured", "", "", "What could not be measured at the end of the run, and why."),
    Metric("left_out", "left out", "", "", "The attacks that cannot run on these images or classes, and why."),
    Metric("error", "error", "", "", "Why a trial failed or a model could not be measured."),
    Metric("log", "log", "", "", "Where a failed trial's traceback lies."),
    Metric("trial", "trial", "", "", "Name of the trial's folder."),
    Metric("model", "model", "", "", "Which of its models: centroid, agent-000, average, ensemble, start."),
    Metric("seeds", "seeds", "", "", "How many trials a row is the mean of."),
    Metric("evaluation_images", "images", "", "", "How many test images an evaluation was asked to take."),
    # families
    Metric("<name>@<norm>:<eps>", "<name> at <norm> <eps>", "<name>", "<name>", "The same at another budget than the trial's own."),
    Metric("val_<name>", "val. <name>", "<name>", "<name>", "The same on validation images."),
    Metric("agents_<how>_<name>", "<how> <name>", "<name>", "<name>", "Mean, worst or best over the agents instead of the centroid's."),
    Metric("<average>_<name>", "<average> <name>", "<name>", "<name>", "The same of the averaged model."),
    Metric("ensemble_<name>", "ensemble <name>", "<name>", "<name>", "The same of the ensemble of snapshots."),
    Metric("start_<name>", "start <name>", "<name>", "<name>", "The same of the model at the start of the run."),
    Metric("<number>_images", "images", "", "", "How many images a number is of, drawn evenly over the labels; of `masking` the fewest of a check that the verdict rests on (those with a sign, else all that were made)."),
    Metric("<number>_probes", "probes", "", "", "How many random probes a number is the mean of."),
    Metric("<number>_error", "± <name>", "<name>", "low", "Standard error of a number."),
    Metric("<number>_sd", "s.d. of <name>", "<name>", "", "Standard deviation over the seeds."),
    Metric("<number>_seeds", "seeds", "", "", "How many seeds a number is of, where some have none or one of another number of images."),
)
# fmt: on

# The columns that stand where only a few have room, in this order.
SHOWN = {
    # the final table of a study
    "table": (
        *("clean_acc", "pgd20_acc", "autoattack_acc", "fosc", "disagreement"),
        *("excess_risk", "excess_risk_theory", "seconds", "status"),
    ),
    # the table of an evaluation of many trials
    "evaluation": (
        *("clean_acc", "pgd10_acc", "pgd20_acc", "autoattack_acc", "masking", "fosc"),
        "hessian_trace",
    ),
    # told above, below or beside a table instead of in a row
    "note": ("trial", "model", "autoattack_flags", "masking_unchecked", "left_out", "error"),
    "progress": ("loss", "val_clean_acc", "val_pgd10_acc", "val_fosc", "excess_risk"),
    "end": ("clean_acc", "pgd20_acc", "autoattack_acc"),
    "prometheus": ("fosc", "val_fosc", "disagreement", "recoveries"),
    "robust": ("autoattack_acc", "pgd20_acc", "pgd10_acc"),  # the strongest that there is
    # What every trial reports whenever its state is measured. Test images are not among it:
    # whoever chooses trials by them has no unseen ones left.
    "search": (
        *("val_pgd10_acc", "val_clean_acc", "val_fgsm_acc", "val_loss"),
        *("val_fosc", "val_fosc_box", "val_fosc_relative"),
        *("loss", "fosc", "grad_norm", "disagreement", "distance"),
    ),
    "search-quadratic": ("excess_risk", "loss", "grad_norm", "disagreement", "distance"),
}
COUNTS = ("_images", "_probes")  # what a number is of
BESIDE = (*COUNTS, "_error")  # columns that say more of another one
SUFFIXES = ("_acc", *BESIDE, "_unchecked", "_flags")


@cache
def find(name: str) -> Metric:
    """Look up a column.

    Args:
        name: the column's name.

    Returns:
        The metric, of a family with its texts filled in; with an empty `meaning` if it is no
        column of ours.

    Example:
        >>> find("agents_worst_pgd50x5_acc").title, find("mine").title
        ('worst PGD-50×5 %', 'mine')
    """
    for metric in METRICS:
        match = _pattern(metric.name).fullmatch(name)
        if match is None:
            continue
        given = {key: value for key, value in match.groupdict().items() if value}
        inner = given.get("name") or given.get("number")
        if inner is None:
            return _filled(metric, given, metric)
        of = find(inner)
        if not of.meaning and "number" in given:
            of = find(f"{inner}_acc")
        if of.meaning:
            return _filled(metric, given, of)
    return Metric(name, name, "", "", "")


@cache
def _pattern(name: str) -> re.Pattern[str]:
    """Expression that matches the columns of a family."""
    text = name.replace("[", "(?:").replace("]", ")?")
    return re.compile(re.sub(r"<(\w+)>", lambda key: f"(?P<{key[1]}>{VALUES[key[1]]})", text))


def _filled(metric: Metric, given: Mapping[str, str], of: Metric) -> Metric:
    """Fill in the texts of a family's line, for a column of the metric `of`."""

    def filled(text: str, inner: str) -> str:
        optional = r"\[([^\]]*<(\w+)>[^\]]*)\]"
        there = re.sub(optional, lambda part: part[1] if part[2] in given else "", text)
        return re.sub(r"<(\w+)>", lambda key: {**given, "name": inner}[key[1]], there)

    return replace(
        metric,
        heading=filled(metric.heading, of.heading),
        unit=filled(metric.unit, of.unit),
        better=filled(metric.better, of.better),
        given=given,
    )


def order(name: str) -> int:
    """Place of a column in `METRICS`; unknown ones come last."""
    names = [metric.name for metric in METRICS]
    return names.index(find(name).name) if find(name).meaning else len(names)


def base(name: str) -> str:
    """Name of the number that a column belongs to: `pgd10` of `pgd10_acc` and `pgd10_images`."""
    name, at, budget = name.partition("@")
    for suffix in SUFFIXES:
        name = name.removesuffix(suffix)
    return name + at + budget


def counted(name: str) -> str:
    """Column that counts the images of a number: `pgd10_images` of `pgd10_acc`."""
    return f"{base(name)}_images"
