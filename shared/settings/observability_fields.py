"""Settings of the metrics, the log and the traces."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

MetricsNames = Literal["headrace", "vllm", "both"]


class ObservabilityFields(BaseModel):
    """Settings of the metrics, the log and the traces."""

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
    otel_endpoint: str | None = Field(
        None,
        pattern=r"^https?://[^\s@?#]+$",
        description="URL of the OpenTelemetry collector to which traces are exported, by OTLP over HTTP, such as "
        "http://localhost:4318; headers, TLS and limits are set by OpenTelemetry's own variables, OTEL_…; default: "
        "no traces",
    )
    otel_service_name: str = Field(
        "headrace",
        min_length=1,
        max_length=100,
        description="name in the traces; the processes are called NAME-api, NAME-worker and NAME-tasks",
    )
    otel_sample_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="fraction of the traces that begin here to export; a caller's trace is exported if the caller "
        "samples it; default: as OTEL_TRACES_SAMPLER says, or all",
    )
