"""Settings of a sweep, and the ranges that its values are drawn from."""

import math
import random
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serin.core.config import Section

Value = bool | int | float | str


def _ordered(section: Any) -> Any:
    if section.low >= section.high:
        raise ValueError(f"low ({section.low}) must be below high ({section.high})")
    return section


class Choice(Section):
    """One of some values, each as likely."""

    type: Literal["choice"] = "choice"
    values: tuple[Value, ...] = Field(min_length=1)
    """What there is to choose from."""

    def draw(self, random_: random.Random) -> Value:
        """A value."""
        return random_.choice(self.values)


class Uniform(Section):
    """A number of a range, each as likely."""

    type: Literal["uniform"] = "uniform"
    low: float
    """Lower end."""
    high: float
    """Upper end."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        return _ordered(self)

    def draw(self, random_: random.Random) -> Value:
        """A value."""
        return random_.uniform(self.low, self.high)


class LogUniform(Section):
    """A number of a range, whose logarithm is as likely everywhere."""

    type: Literal["loguniform"] = "loguniform"
    low: float = Field(gt=0)
    """Lower end."""
    high: float
    """Upper end."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        return _ordered(self)

    def draw(self, random_: random.Random) -> Value:
        """A value."""
        return math.exp(random_.uniform(math.log(self.low), math.log(self.high)))


class IntRange(Section):
    """A whole number of a range, both ends included."""

    type: Literal["int"] = "int"
    low: int
    """Least."""
    high: int
    """Most."""

    @model_validator(mode="after")
    def _is_ordered(self) -> Self:
        return _ordered(self)

    def draw(self, random_: random.Random) -> Value:
        """A value."""
        return random_.randint(self.low, self.high)


Range = Annotated[Choice | Uniform | LogUniform | IntRange, Field(discriminator="type")]


class SweepConfig(Section):
    """Settings of a sweep."""

    space: dict[str, Range] = Field(
        default={"learning_rate": LogUniform(low=3e-4, high=1e-2), "lora_rank": Choice(values=(8, 16, 32))},
        min_length=1,
    )
    """Setting of the fine-tune stage to the values that it may take."""
    num_trials: int = Field(default=8, ge=1, le=256)
    """How many settings are tried."""
    max_concurrent: int = Field(default=1, ge=1)
    """Trials at the same time; each takes the stage's ``cpus_per_worker``."""
    trial_steps: int = Field(default=200, ge=1)
    """Optimizer steps of a trial that is not stopped before."""
    grace_steps: int = Field(default=50, ge=1)
    """Steps before a trial may be stopped, and between its validations."""
    reduction_factor: int = Field(default=3, ge=2)
    """At each rung one trial of so many goes on."""
    time_budget_s: float | None = Field(default=None, gt=0)
    """Seconds after which no trial goes on."""
    seed: int = 0
    """Decides which settings are tried."""

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        if self.grace_steps > self.trial_steps:
            raise ValueError(f"grace_steps ({self.grace_steps}) is above trial_steps ({self.trial_steps})")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that decide which trials there are and how far each may come."""
        return self.model_dump(mode="json", exclude={"max_concurrent"})
