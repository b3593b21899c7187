"""The driver: rounds as a generator of records. It never touches a weight."""

import math
from collections import deque
from collections.abc import Iterator

import numpy as np

from raydist.adversary.fosc import unstable
from raydist.engine.plan import Plan
from raydist.engine.pool import Pending, Pool
from raydist.measure import trained
from raydist.record import Outcome, Record, images_frame

FORMS = {"published": "val_fosc", "box": "val_fosc_box", "relative": "val_fosc_relative"}


def train(pool: Pool, plan: Plan) -> Iterator[Record]:
    """Run a plan on a pool.

    One round more than the one that is being read is in flight, so that agents need not wait for
    the driver. Every `plan.every` rounds the state itself is measured, and no round is submitted
    until that is done: a rule that stops the run sees exactly the state that it judges.

    Args:
        pool: agents at round 0.
        plan: the run.

    Yields:
        A record for round 0 and for each round after it; the last one holds the outcome.
    """
    theory, history = plan.theory(), list[float]()
    rule = plan.config.stop.fosc
    ahead = 0 if rule and rule.on == "train" else 1
    record = _measured(pool, plan, 0, [], theory)
    in_flight: deque[tuple[int, Pending]] = deque()
    submitted = 0
    for n in range(1, plan.rounds + 1):
        yield record
        while submitted < min(n + ahead, _next_barrier(plan, n)):
            submitted += 1
            in_flight.append((submitted, pool.step(submitted)))
        infos = pool.collect(in_flight.popleft()[1])
        record = Record(n, infos)
        if n == _next_barrier(plan, n):
            pool.close(n)
            record = _measured(pool, plan, n, infos, theory)
        outcome = _outcome(plan, record, history)
        if outcome is not None:
            for _, pending in in_flight:
                pool.collect(pending)
            if n != _next_barrier(plan, n):
                pool.close(submitted)
                if outcome.status != "diverged":
                    record = _measured(pool, plan, n, infos, theory)
            yield _last(pool, plan, record, outcome)
            return


def _next_barrier(plan: Plan, n: int) -> int:
    """The first round from n on whose state is measured."""
    return min(-(-n // plan.every) * plan.every, plan.rounds)


def _measured(
    pool: Pool, plan: Plan, n: int, infos: list[dict[str, float]], theory: dict[int, float]
) -> Record:
    """The record of a closed round, with what is known of the state after it."""
    found = pool.measure(n)
    agents = [info | own for info, (own, _) in zip(infos or [{}] * len(found), found, strict=True)]
    centroid: dict[str, float] = {}
    if plan.data is not None:
        centroid = trained.add([sums for _, sums in found])
    if n in theory:
        centroid["excess_risk_theory"] = theory[n]
    return Record(n, agents, centroid)


def _outcome(plan: Plan, record: Record, history: list[float]) -> Outcome | None:
    """Whether the run ends with this record, and how; remembers the measured FOSC."""
    n, rule = record.round, plan.config.stop.fosc
    watched = ("loss", "grad_norm", "distance", "val_loss")
    for k, info in enumerate([*record.agents, record.centroid]):
        bad = [name for name in watched if not math.isfinite(info.get(name, 0.0))]
        if bad:
            who = f"agent {k}" if k < len(record.agents) else "the centroid"
            return Outcome("diverged", f"{bad[0]} of {who} is {info[bad[0]]} in round {n}", n)
    if rule is not None:
        measured = record.mean.get("fosc") if rule.on == "train" else None
        if rule.on == "validation":
            measured = record.centroid.get(FORMS[rule.form])
        if measured is not None:
            history.append(measured)
            limits = rule.model_dump(include={"threshold", "relative", "patience", "warmup"})
            if unstable(history, **limits):
                return Outcome(
                    "stopped",
                    f"FOSC on {rule.on} is {measured:.4g} in round {n}, too high for "
                    f"{rule.patience} measurements in a row",
                    n,
                )
    return Outcome("completed", "", n) if n == plan.rounds else None


def _last(pool: Pool, plan: Plan, record: Record, outcome: Outcome) -> Record:
    """The record that ends a run: its final numbers and the verdict on each test image."""
    mean, images = record.mean, None
    kept = ("disagreement", "distance", "excess_risk")
    final: dict[str, float | str] = {name: mean[name] for name in kept if name in mean}
    final |= {"train_loss": mean["loss"], **record.centroid}
    if plan.data is not None and outcome.status != "diverged":
        masks = trained.merge(pool.evaluate(own=False))
        final |= trained.summary(masks)
        images = images_frame(masks, plan.data.test[1])
        if plan.config.average is not None:
            averaged = trained.summary(trained.merge(pool.evaluate(own=False, averaged=True)))
            final |= {f"{plan.config.average.name}_{key}": v for key, v in averaged.items()}
        if plan.config.evaluate.agents:
            final |= _over_agents([trained.summary(own) for own in pool.evaluate(own=True)])
    return Record(record.round, record.agents, record.centroid, outcome, final, images)


def _over_agents(found: list[dict[str, float | str]]) -> dict[str, float | str]:
    """Mean, worst and best over the agents of every accuracy."""
    summary: dict[str, float | str] = {}
    for name in (name for name in found[0] if name.endswith("_acc")):
        values = [float(own[name]) for own in found]
        for how, value in (
            ("mean", np.mean(values)),
            ("worst", min(values)),
            ("best", max(values)),
        ):
            summary[f"agents_{how}_{name}"] = float(value)
    return summary
