"""The table [search] of a study: how points are chosen, and which trials are ended early."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from raydist.config.experiment import Experiment
from raydist.config.fields import Span, Table
from raydist.errors import InputError
from raydist.lookup import closest
from raydist.metrics import SHOWN, find


class Search(Table):
    """Choice of points, how many run at a time, and which are not worth finishing."""

    algorithm: Literal["grid", "random", "optuna"] | None = None
    """Choice of points; without it lists run in full and spaces are drawn from. random and
    optuna choose from lists too, all but the seeds."""
    samples: PositiveInt = 10
    """Points that are drawn."""
    max_concurrent: PositiveInt | None = None
    """Trials at a time; without it as many as there is room for."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws."""
    metric: str = "val_pgd10_acc"
    """Metric by which optuna and the scheduler judge."""
    mode: Literal["max", "min"] | None = None
    """Better end of the metric; without it the one of the glossary."""
    scheduler: Literal["asha", "median"] | None = None
    """Rule that ends trials early."""
    grace: Span = 0.1
    """Rounds that every trial gets, or fraction of the run."""
    reduction: Annotated[float, Field(gt=1)] = 4.0
    """Reduction of asha: 1 trial in so many goes on."""

    @property
    def better(self) -> Literal["max", "min"]:
        """The better end of the metric."""
        return self.mode or ("max" if find(self.metric).better == "high" else "min")

    @property
    def judges(self) -> bool:
        """Tell whether trials are compared while the study runs."""
        return self.algorithm == "optuna" or self.scheduler is not None

    @model_validator(mode="after")
    def _belongs(self) -> Self:
        names = sorted({*SHOWN["search"], *SHOWN["search-quadratic"]})
        if self.metric not in names:
            meant = closest(self.metric, names)
            raise ValueError(
                f'metric is "{self.metric}", expected one that trials report while they train: '
                + ", ".join(names)
                + (f": did you mean {meant}?" if meant else "")
            )
        if not self.judges and {"metric", "mode"} & self.model_fields_set:
            raise ValueError(
                'metric and mode belong to algorithm = "optuna" or to a scheduler: '
                'write scheduler = "asha"'
            )
        owners = {"grace": ("a scheduler", ["asha", "median"]), "reduction": ('"asha"', ["asha"])}
        for key, (owner, schedulers) in owners.items():
            if key in self.model_fields_set and self.scheduler not in schedulers:
                raise ValueError(f'{key} belongs to {owner}: remove it or write scheduler = "asha"')
        return self

    def check_metric(self, config: Experiment) -> None:
        """Check that trials report the metric by which they are compared.

        Args:
            config: the experiment of one of them.

        Raises:
            InputError: if it is not.
        """
        known = SHOWN["search-quadratic" if config.data.set == "quadratic" else "search"]
        if self.judges and self.metric not in known:
            raise InputError(
                f'search.metric is "{self.metric}", which data.set = "{config.data.set}" does not '
                f"report: write one of {', '.join(known)}"
            )
