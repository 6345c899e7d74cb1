"""Query of a prediction: what is asked, and which parts go together."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, Field, model_validator

from flops_fit_ray.service.state import views

Flops = Annotated[float | None, Field(ge=1, le=views.MAX_BUDGET)]
MetricName = Annotated[str, Field(max_length=100)]


class PredictQuery(BaseModel):
    """Question to a fit: one of `budget`, `loss` and, with `served`, `as_good_as`."""

    budget: Flops = Field(None, description="C in FLOPs; with `served` that of training and serving")
    loss: float | None = Field(None, gt=0, le=views.MAX_LOSS, description="nats, to be reached for the fewest FLOPs")
    as_good_as: Flops = Field(None, description="C whose loss by training alone is to be reached")
    unique: Flops = Field(None, description="distinct tokens, where the best D would be more")
    served: Flops = Field(None, description="tokens that the model will serve")
    price: float | None = Field(
        None, gt=0, le=views.MAX_BUDGET, description="of a FLOP in serving, in FLOPs of training"
    )
    max_params: Flops = Field(None, description="the largest N that may be")
    metric: list[MetricName] = Field([], max_length=8, description="of the runs, to be predicted from the loss, too")
    low: float | None = Field(None, description="bound of a share, with `high`; by default 0 and 1")
    high: float | None = None
    chance: float | None = Field(None, description="value of a share by guessing; by default it is fitted")

    @model_validator(mode="after")
    def _go_together(self) -> Self:
        faults = []
        if [self.budget, self.loss, self.as_good_as].count(None) != 2:
            faults.append("give one of budget, loss and (with served) as_good_as")
        if self.unique is not None and (self.budget is None or self.served is not None or self.metric):
            faults.append("unique goes with budget alone")
        if self.served is None and (self.price is not None or self.as_good_as is not None):
            faults.append("price and as_good_as go with served")
        if self.max_params is not None and (self.budget is None or self.served or self.unique or self.metric):
            faults.append("max_params goes with budget alone")
        if self.served is not None and self.metric:
            faults.append("metric does not go with served")
        if not self.metric and [self.low, self.high, self.chance].count(None) != 3:
            faults.append("low, high and chance go with metric")
        if (self.low is None) != (self.high is None):
            faults.append("give low and high, or neither")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def words(self) -> list[str]:
        """Return NAME=VALUE for all that is given, as the fit worker takes it."""
        given = self.model_dump(exclude_none=True, exclude={"metric"})
        return [*(f"{name}={value!r}" for name, value in given.items()), *(f"metric={one}" for one in self.metric)]
