"""Settings of the metrics and the log."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

MetricsNames = Literal["headrace", "vllm", "both"]


class ObservabilityFields(BaseModel):
    """Settings of the metrics and the log."""

    metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of a worker's /metrics, on `host`; 0 picks a free one; `headrace up` gives the worker of "
        "`model_repository` the next one if it starts another worker too; default: no such port",
    )
    tasks_metrics_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of the batch runner's /metrics, on `host`; 0 picks a free one; default: no such port",
    )
    metrics_names: MetricsNames = Field(
        "headrace",
        description="names of a worker's metrics: Headrace's, those of vLLM, for dashboards and autoscalers made "
        "for it, or both",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="lowest level that is logged"
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto means console on a terminal and json elsewhere"
    )
