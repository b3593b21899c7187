"""The last record of a run: numbers and verdicts of its models."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from raydist.engine.agent import verdicts
from raydist.engine.checks import one_line
from raydist.engine.plan import Plan
from raydist.engine.pool.pool import Pool
from raydist.errors import AgentDied
from raydist.measure.columns import CLEAN, ENSEMBLE, Known, over_agents
from raydist.metrics import counted
from raydist.results.record import Outcome, Record
from raydist.storage import agent_file


def last_record(
    pool: Pool,
    plan: Plan,
    record: Record,
    outcome: Outcome,
    watched: dict[str, float | str],
    theory: dict[float, float],
    test: bool = True,
) -> Record:
    """Make the record that ends a run: its final numbers and the verdict on each test image.

    Args:
        pool: the agents; the record's round is closed and no round is submitted.
        plan: the run.
        record: the record of the last round.
        outcome: the outcome of the run.
        watched: the columns of `Watch.summary`.
        theory: the predictions of `Plan.theory`.
        test: True to judge the test images.

    Returns:
        The record.
    """
    known, models = record.numbers, dict[str, Known]()
    kept = ("disagreement", "distance", "excess_risk", *record.predicted, *record.centroid)
    final: dict[str, float | str] = {"train_loss": known["loss"], **watched}
    final |= {name: known[name] for name in kept if name in known}
    held = [name for name in record.centroid if name.startswith("val_")]
    final |= {counted(name): float(plan.validated) for name in held}
    if plan.config.exchange == "auto":
        final["exchange_chosen"] = pool.exchange
    if math.inf in theory:
        final["excess_risk_limit"] = theory[math.inf]
    if plan.data is None and plan.theory_missing:  # the quadratic task has it unasked
        final["excess_risk_theory_missing"] = plan.theory_missing
    if test and plan.data is not None and outcome.status != "diverged":
        failed: dict[str, str] = {}
        for judged in _judged(pool, failed, "", "now"):
            final |= verdicts.summary(judged)
            models["centroid"] = judged.known
        for model, (name, which) in _besides(plan, outcome).items():
            for judged in _judged(pool, failed, f"{name} ", *which):
                besides = verdicts.summary(judged)
                final |= {f"{name}_{key}": value for key, value in besides.items()}
                models[model] = judged.known
        if plan.config.evaluate.agents:
            own = [judged.known for judged in _judged(pool, failed, "agents' ")]
            final |= over_agents(own) if own else {}
            models |= {Path(agent_file(k)).stem: of for k, of in enumerate(own)}
        if failed:
            final["unmeasured"] = "; ".join(f"{name}: {why}" for name, why in failed.items())
    images = images_frame(models, plan.data.test[1]) if models and plan.data is not None else None
    return replace(record, outcome=outcome, final=final, images=images)


def _judged(pool: Pool, failed: dict[str, str], whose: str, *which: str) -> list[verdicts.Verdicts]:
    """Judge test images by `Pool.evaluate`; note failures, because a trained run is worth more.

    Args:
        pool: the agents.
        failed: name of a measurement -> why it failed; this function adds to it.
        whose: the prefix of such a name.
        which: the states to judge, as in `Pool.evaluate`.

    Returns:
        The verdicts on all images together; without `which` those of each agent; an empty list if
        all failed.

    Raises:
        AgentDied: if an agent dies; the run then goes on from its last snapshot.
    """
    try:
        parts = pool.evaluate(*which)
        found = [verdicts.merge(parts)] if which else parts
    except AgentDied:
        raise
    except Exception as error:
        failed[f"{whose}test images"] = one_line(error)
        return []
    for judged in found:
        failed |= {f"{whose}{name}": why for name, why in judged.failed.items()}
    return found


def _besides(plan: Plan, outcome: Outcome) -> dict[str, tuple[str, list[str]]]:
    """Models judged beside the last centroid: its average, the ensemble of its snapshots.

    Args:
        plan: the run.
        outcome: the outcome of the run.

    Returns:
        Model -> the prefix of its numbers, and the agents' states that make it up.
    """
    found: dict[str, tuple[str, list[str]]] = {}
    if plan.config.average is not None:
        found["average"] = plan.config.average.name, ["average"]
    periods = plan.times.ended(outcome.round)
    if plan.config.periods and periods > 1:
        found["ensemble"] = "ensemble", [f"snapshot-{i}" for i in range(periods)]
    return found


def images_frame(models: Mapping[str, Known], labels: NDArray[np.int64]) -> pd.DataFrame:
    """Table with one row for each model and test image.

    Args:
        models: name of a model -> verdicts on the images.
        labels: the labels of the whole test split.

    Returns:
        Columns `model`, `image`, `label`, `clean`, `pgd10`, ... (True: still right; missing: not
        tried), and `broken_by`: "clean" if it was wrong without attack, the member of AutoAttack
        that broke it, "none", or missing if the ensemble was not tried; `fosc` and other values;
        `flags`, the attacks' warnings about the model.
    """
    frames = [_images_of(model, known, labels) for model, known in models.items()]
    return pd.concat(frames, ignore_index=True)


def _images_of(model: str, known: Known, labels: NDArray[np.int64]) -> pd.DataFrame:
    tables = {name: pd.Series(of, dtype="boolean") for name, of in known.right.items()}
    tables |= {name: pd.Series(of, dtype="float64") for name, of in known.values.items()}
    frame = pd.DataFrame(tables).sort_index()
    frame.insert(0, "model", model)
    frame.insert(1, "image", frame.index)
    frame.insert(2, "label", labels[frame.index])
    if ENSEMBLE in known.right:
        frame["broken_by"] = pd.Series(
            {i: _broken_by(i, known) for i in known.right[ENSEMBLE]}, dtype="string"
        )
    return frame.assign(flags=", ".join(sorted(known.flags)))


def _broken_by(image: int, known: Known) -> str:
    """Name of the first attack that broke an image: "clean", or a member of the ensemble."""
    tried = ((name, known.right[name].get(image)) for name in (CLEAN, *known.members))
    return next((name for name, right in tried if right is False), "none")
