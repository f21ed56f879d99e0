"""Settings of what scales workers, and of the machines that are taken away from them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

SpotCloud = Literal["off", "aws", "gcp", "azure"]


class ScalingFields(BaseModel):
    """Settings of scaling to and from zero, and of spot machines."""

    scalable_models: str = Field(
        "",
        description="models that may have no worker, separated by commas: their requests wait in the queue until "
        "an autoscaler has started one, and `/ready` does not ask for workers of the default model",
    )
    scaler_auth: bool = Field(
        True,
        description="with `auth`, require an admin key for the scaler of KEDA on the gRPC port; false: anyone who "
        "reaches the port may see how many requests wait",
    )
    spot_notices: SpotCloud = Field(
        "off",
        description="cloud whose metadata service a worker watches for the notice that its machine will be taken "
        "away; it then hands its answers over at once and ends",
    )
    spot_notices_url: str | None = Field(
        None,
        pattern=r"^https?://[^/?#@]+$",
        description="address of the metadata service, without a path; default: that of the cloud",
    )
