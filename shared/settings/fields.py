"""The settings of all processes, frozen and checked.

`headrace config show` and docs/settings.md are generated from the descriptions.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from shared.plans import Plans, Windows
from shared.settings.engine_fields import EngineFields
from shared.settings.health_fields import HealthFields
from shared.settings.length_fields import LengthFields
from shared.settings.lora_fields import LoraFields
from shared.settings.observability_fields import ObservabilityFields
from shared.settings.repository_fields import RepositoryFields
from shared.settings.routing_fields import RoutingFields
from shared.settings.runtime_fields import RuntimeFields
from shared.settings.startup_fields import StartupFields

NO_MODEL = "none"  # value of `model` if only the models of the repository are served


def user_folder(variable: str, fallback: str) -> Path:
    """Return Headrace's folder in the XDG base folder named by `variable`."""
    return Path(os.environ.get(variable) or Path.home() / fallback) / "headrace"


class Settings(
    ObservabilityFields,
    StartupFields,
    HealthFields,
    RoutingFields,
    LengthFields,
    RepositoryFields,
    LoraFields,
    EngineFields,
    RuntimeFields,
):
    """Settings of all processes; each process reads those that it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address that the API listens on")
    port: int = Field(8000, ge=0, le=65535, description="port that the API listens on; 0 picks a free one")
    admin_host: str = Field("127.0.0.1", description="address that the admin port listens on")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of the API's /metrics and administration; 0 picks a free one; default: no such port",
    )
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="port of the gRPC API, on `host`; 0 picks a free one; default: no gRPC"
    )
    grpc_reflection: bool | None = Field(
        None,
        description="serve the definition of the gRPC service to anyone (reflection); default: only without `auth`",
    )
    reuse_port: bool = Field(
        False, description="let several API processes listen on one port, for restarts without a gap"
    )
    workers: int = Field(1, ge=0, le=64, description="worker processes that `headrace up` starts")

    auth: bool = Field(
        False, description="require an API key or a token; without it, only loopback addresses are served"
    )
    insecure: bool = Field(False, description="allow listening on other addresses than loopback without `auth`")
    key_pepper: SecretStr = Field(
        SecretStr(""),
        description="secret that is part of every key's digest, at least 32 characters; default: generated "
        "once, in `data_dir`",
    )
    key_life: float = Field(
        4,
        gt=0,
        le=3600,
        description="how long a looked-up key is cached, in seconds; a revoked key keeps working for at most "
        "this long",
    )
    database_url: SecretStr | None = Field(
        None,
        description="database of API keys and usage, sqlite:// or postgresql://; default: SQLite in `data_dir`",
    )
    jwt_jwks: str | None = Field(
        None,
        description="https URL or file of the key set (JWKS) that signs accepted JWTs; needs `auth`",
    )
    jwt_issuer: str = Field("", description="`iss` that a JWT must have")
    jwt_audience: str = Field("", description="`aud` that a JWT must have")
    jwt_algorithms: str = Field(
        "RS256,ES256,EdDSA", description="accepted signature algorithms, separated by commas"
    )
    jwt_require_nbf: bool = Field(False, description="refuse JWTs without `nbf`; `exp` is always required")
    jwt_leeway: float = Field(0, ge=0, le=300, description="tolerated clock difference in seconds")
    jwt_tenant_claim: str = Field("tenant", min_length=1, description="claim that names the tenant")
    jwt_scope_claim: str = Field("scope", min_length=1, description="claim that lists the scopes, as headrace:…")
    jwt_plan_claim: str = Field("plan", min_length=1, description="claim that names the plan")

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis or Valkey server that holds queues and answers"
    )
    redis_timeout: float = Field(1.5, gt=0, le=30, description="seconds to wait for Redis before answering 503")
    data_dir: Path = Field(
        default_factory=lambda: user_folder("XDG_DATA_HOME", ".local/share"),
        description="folder for the data of the embedded Valkey",
    )
    cache_dir: Path = Field(
        default_factory=lambda: user_folder("XDG_CACHE_HOME", ".cache"),
        description="folder for converted models and compiled kernels",
    )
    appendfsync: Literal["always", "everysec", "no"] = Field(
        "everysec", description="fsync mode of the embedded Valkey; decides what a crash of the machine may lose"
    )

    model: str = Field(
        "smollm2",
        min_length=1,
        description="model folder, GGUF file, Hugging Face id, smollm2 or all-minilm-l6-v2; none: only the models "
        "of `model_repository`, which is the default if that is set",
    )
    served_model_name: str | None = Field(None, description="model name for clients; default: derived from `model`")
    any_model_name: bool = Field(
        False,
        description="serve requests with any `model`, or without one, by the served model; no effect while several "
        "models are served",
    )
    embedding_model: str | None = Field(
        None,
        min_length=1,
        description="second model, for embeddings, that `headrace up` starts a worker for: folder, Hugging "
        "Face id or all-minilm-l6-v2",
    )
    queue_depth: int = Field(1024, ge=1, description="maximum requests waiting for one model")
    queue_tokens: int = Field(4_000_000, ge=1, description="maximum estimated tokens waiting for one model")
    tenant_queue_depth: int = Field(1024, ge=1, description="maximum requests of one tenant waiting for one model")
    tenant_queue_tokens: int = Field(
        4_000_000, ge=1, description="maximum estimated tokens of one tenant waiting for one model"
    )
    max_timeout: float = Field(86_400, gt=0, description="maximum `timeout` of a request, in seconds")
    dead_letters: int = Field(10_000, ge=1, description="maximum dead letters kept; the oldest are deleted first")
    dead_letter_ttl: float = Field(604_800, gt=0, description="seconds that a dead letter is kept")
    max_connections: int = Field(20_000, ge=1, description="maximum open connections of one API process")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="maximum bytes of a request body")
    strict_fields: bool = Field(
        False,
        description="refuse request bodies with unknown fields; otherwise they are ignored, and named in the "
        "response header `x-headrace-ignored-fields`",
    )
    max_header_bytes: int = Field(32_768, ge=1024, description="maximum bytes of request line and headers")
    max_headers: int = Field(100, ge=10, description="maximum headers of a request")
    head_timeout: float = Field(
        10, gt=0, le=600, description="seconds in which the headers of a request must arrive"
    )
    idle_timeout: float = Field(
        75,
        gt=0,
        le=3600,
        description="seconds that a connection may be idle between requests; must exceed the limit of a load "
        "balancer in front, often 60, or some requests meet a connection that is being closed",
    )
    body_timeout: float = Field(
        30,
        gt=0,
        le=3600,
        description="seconds in which a JSON body must arrive, and for which an upload may stall",
    )
    allowed_hosts: str = Field(
        "",
        description="host names other than loopback that the API and its admin port accept, separated by "
        "commas; *.example.com accepts all subdomains, * any name; default: none without `auth`, "
        "any with it",
    )
    cors_origins: str = Field(
        "",
        description="other sites whose pages may call the API, https://… separated by commas; * for any; "
        "default: none",
    )
    max_n: int = Field(8, ge=1, le=128, description="maximum choices (`n`) of a request")
    log_tokens: int = Field(262_144, ge=1, description="maximum tokens in the log of one answer, over all choices")
    request_ttl: float = Field(86_400, gt=0, description="seconds that an unfinished request is kept")
    result_ttl: float = Field(3_600, gt=0, description="seconds that a finished answer is kept")
    response_ttl: float = Field(86_400, gt=0, description="seconds that a stored response is kept after its end")
    keepalive: float = Field(15, gt=0, le=15, description="seconds of silence before an SSE comment is sent")
    lease: float = Field(
        3, ge=0.5, le=300, description="seconds without a heartbeat after which another worker takes a request over"
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="workers that a request may lose before it becomes a dead letter; one fewer if the last "
        "two ran nothing else",
    )
    grace: float = Field(
        30, ge=0, le=3600, description="seconds that a stopping process may take to finish its work"
    )

    plans: Plans = Field(
        {},
        description='rate limits by plan name, as in `[plans.free]` with `requests = "60/minute; 1000/day"`, '
        "`tokens`, `concurrent`, `tokens_per_day`; JSON in the environment",
    )
    default_plan: str = Field("", description="plan of callers without one; empty: no limits")
    rate_limit_strategy: Literal["fixed-window", "sliding-window-counter", "moving-window", "token-bucket"] = Field(
        "sliding-window-counter", description="how requests and tokens are counted over a window"
    )
    user_requests: Windows = Field("", description="request limit for each `user` of a key, written as in a plan")
    user_tokens: Windows = Field("", description="token limit for each `user` of a key, written as in a plan")
    address_requests: Windows = Field("", description="request limit for each client address, written as in a plan")
    trusted_proxies: str = Field(
        "", description="addresses and networks, separated by commas, whose X-Forwarded-For header is believed"
    )
    rate_limit_failure: Literal["closed", "open"] = Field(
        "closed",
        description="what happens to requests while limits cannot be counted: closed refuses them with 503, "
        "open admits them",
    )
    rate_limit_timeout: float = Field(
        1.0, gt=0, le=30, description="seconds to wait for the rate limits to be counted"
    )
    limits_redis_url: SecretStr | None = Field(
        None, description="Redis or Valkey server that counts limits and usage; default: `redis_url`"
    )
    usage: bool = Field(True, description="write a usage record and a log line for each request")
    usage_ttl: float = Field(7_776_000, gt=0, description="seconds that a usage record is kept")
    usage_backlog: int = Field(
        100_000,
        ge=1,
        description="maximum usage records waiting to be written; beyond it, requests get 503",
    )
    log_prompts: int = Field(
        0,
        ge=0,
        le=10_000,
        description="maximum characters of a prompt that the request log shows; 0 shows no prompts",
    )

    files_dir: Path | None = Field(
        None, description="folder for uploaded and generated files, shared by API and tasks; default: in `data_dir`"
    )
    max_file_bytes: int = Field(200 * 2**20, ge=1024, description="maximum bytes of an uploaded file")
    files_bytes: int = Field(10 * 2**30, ge=1024, description="maximum bytes of all files together")
    file_ttl: float = Field(
        2_592_000, gt=0, description="seconds that a file is kept unless its upload says otherwise"
    )
    batch_requests: int = Field(50_000, ge=1, description="maximum lines of a batch")
    batch_window: int = Field(256, ge=1, description="maximum batch requests in progress in one tasks process")
    batch_ttl: float = Field(2_592_000, gt=0, description="seconds that a finished batch is kept")
    max_batches: int = Field(100, ge=1, description="maximum unfinished batches")
    tasks_broker_url: SecretStr | None = Field(None, description="Celery broker; default: the Redis of `redis_url`")
    tasks_result_url: SecretStr | None = Field(None, description="Celery result backend; default: its broker")
    tasks_concurrency: int = Field(16, ge=2, le=1024, description="Celery tasks in progress in one tasks process")
    tasks_redelivery: float = Field(
        3_600, ge=10, description="seconds after which a task whose process was lost is delivered again"
    )

    queue: Literal["redis", "kafka"] = Field(
        "redis", description="where the API puts requests: directly into Redis, or through Kafka"
    )
    kafka_bootstrap: str = Field(
        "",
        description="host:port of Kafka brokers, separated by commas; workers also take requests from its "
        "topics; empty: no Kafka",
    )
    kafka_window: int = Field(
        256, ge=1, le=10_000, description="maximum unfinished requests that one worker has taken from Kafka"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="security protocol of the Kafka brokers"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="SASL mechanism for the Kafka brokers"
    )
    kafka_username: str | None = Field(None, description="user name for PLAIN and SCRAM")
    kafka_password: SecretStr | None = Field(None, description="password for PLAIN and SCRAM")
    kafka_token_file: Path | None = Field(
        None, description="file with the bearer token for OAUTHBEARER, read for each connection"
    )
    kafka_ssl_cafile: Path | None = Field(
        None, description="CA certificates for the Kafka brokers; default: the system's"
    )
    kafka_ssl_certfile: Path | None = Field(None, description="client certificate for the Kafka brokers")
    kafka_ssl_keyfile: Path | None = Field(None, description="private key of the client certificate")
    kafka_api_version: str | None = Field(
        None,
        pattern=r"^[0-9]{1,4}(\.[0-9]{1,4}){1,2}$",
        description="version of the Kafka protocol; default: negotiated with the brokers",
    )

    webhook_secrets: SecretStr = Field(
        SecretStr(""),
        description="keys that sign webhooks, whsec_…, the newest first; without keys, webhooks are off",
    )
    webhook_allow_http: bool = Field(False, description="allow webhooks to http:// addresses, not only https://")
    webhook_allow_private: bool = Field(False, description="allow webhooks to private and loopback addresses")
    webhook_timeout: float = Field(10, gt=0, le=60, description="seconds that one delivery of a webhook may take")
    webhook_retry_for: float = Field(
        86_400, ge=0, description="seconds after a job's end during which delivery of its webhook is retried"
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Drop empty strings: the environment cannot distinguish "empty" from "not set", so no source does."""
        return {name: value for name, value in values.items() if value != ""}

    @field_validator("*", mode="before")
    @classmethod
    def _without_nul(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("must not contain a NUL character")
        return value

    @model_validator(mode="before")
    @classmethod
    def _repository_alone(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Serve no other model than those of the repository, unless one is named."""
        alone = values.get("model_repository") and not values.get("model")
        return {**values, "model": NO_MODEL} if alone else values

    @model_validator(mode="after")
    def _some_model(self) -> Settings:
        if self.model == NO_MODEL and self.model_repository is None:
            raise ValueError("model must name a model unless model_repository is set")
        return self

    @model_validator(mode="after")
    def _queue_of_a_repository(self) -> Settings:
        if self.queue == "kafka" and self.model_repository is not None:
            raise ValueError("queue must be redis with model_repository")
        return self

    @model_validator(mode="after")
    def _known_plan(self) -> Settings:
        if self.default_plan and self.default_plan not in self.plans:
            raise ValueError(f"default_plan must be one of the names in plans, got {self.default_plan!r}")
        return self

    @property
    def files(self) -> Path:
        """Return the folder for uploaded and generated files."""
        return self.files_dir or self.data_dir / "files"
