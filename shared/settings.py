"""Frozen settings: flags over environment over headrace.toml over defaults, checked once at the start.

Each field is documented by its description, from which `headrace config show` and docs/settings.md are made.
"""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from shared.errors import ConfigError
from shared.plans import Plans, Windows

CONFIG_FILE = "headrace.toml"
ENV_PREFIX = "HEADRACE_"
QuantizationName = Literal["none", "int8"]
OF_CLIENTS = ("HEADRACE_URL", "HEADRACE_API_KEY")  # in the environment, and no settings


def user_folder(variable: str, fallback: str) -> Path:
    """The XDG base folder named by `variable`, for Headrace."""
    return Path(os.environ.get(variable) or Path.home() / fallback) / "headrace"


class Settings(BaseModel):
    """All settings of all processes; each reads what it needs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address the API listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the API listens on; 0 picks a free one")
    admin_host: str = Field("127.0.0.1", description="address that the admin port is on")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="port of the API's /metrics and of administration; 0 picks one; default: none",
    )
    grpc_port: int | None = Field(
        None, ge=0, le=65535, description="port of the same jobs by gRPC, on `host`; 0 picks one; default: none"
    )
    grpc_reflection: bool | None = Field(
        None, description="let anyone read the gRPC service's definition (reflection); default: only without `auth`"
    )
    reuse_port: bool = Field(
        False, description="let several API processes listen on one port, so that one can follow another"
    )
    workers: int = Field(1, ge=0, le=64, description="worker processes that `headrace up` starts")

    auth: bool = Field(False, description="ask callers for an API key or a token; without it, loopback is served")
    insecure: bool = Field(False, description="let the API be reached from elsewhere without `auth`")
    key_pepper: SecretStr = Field(
        SecretStr(""),
        description="secret part of every key's digest, 32 characters or more; default: made once, in `data_dir`",
    )
    key_life: float = Field(
        4,
        gt=0,
        le=3600,
        description="seconds for which a key is not looked up again: so late is a revoked one refused",
    )
    database_url: SecretStr | None = Field(
        None, description="database of keys, sqlite:// or postgresql://; default: SQLite in `data_dir`"
    )
    jwt_jwks: str | None = Field(
        None,
        description="https URL or file of the public keys whose tokens (JWT) count beside API keys; needs `auth`",
    )
    jwt_issuer: str = Field("", description="`iss` that tokens must have")
    jwt_audience: str = Field("", description="`aud` that tokens must have")
    jwt_algorithms: str = Field("RS256,ES256,EdDSA", description="how tokens may be signed, by commas")
    jwt_require_nbf: bool = Field(False, description="refuse tokens without `nbf`; `exp` is always needed")
    jwt_leeway: float = Field(0, ge=0, le=300, description="seconds by which the clocks may differ")
    jwt_tenant_claim: str = Field("tenant", min_length=1, description="claim that names a token's tenant")
    jwt_scope_claim: str = Field("scope", min_length=1, description="claim that has a token's scopes, headrace:…")
    jwt_plan_claim: str = Field("plan", min_length=1, description="claim that names a token's plan")

    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis or Valkey that holds queues and answers"
    )
    redis_timeout: float = Field(1.5, gt=0, le=30, description="seconds to wait for Redis before saying 503")
    data_dir: Path = Field(
        default_factory=lambda: user_folder("XDG_DATA_HOME", ".local/share"),
        description="folder of the embedded Valkey's data",
    )
    cache_dir: Path = Field(
        default_factory=lambda: user_folder("XDG_CACHE_HOME", ".cache"),
        description="folder of converted models and built kernels",
    )
    appendfsync: Literal["always", "everysec", "no"] = Field(
        "everysec", description="fsync mode of the embedded Valkey: what a machine crash may lose"
    )

    model: str = Field("smollm2", min_length=1, description="folder, Hugging Face id, smollm2 or all-minilm-l6-v2")
    served_model_name: str | None = Field(None, description="name clients use; default: made from the model")
    embedding_model: str | None = Field(
        None,
        min_length=1,
        description="a second model that `headrace up` starts a worker for, to embed: folder, Hugging Face id, or "
        "all-minilm-l6-v2",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="where the engine runs")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="weights and activations; auto is float32 on CPU, the checkpoint's on CUDA"
    )
    quantization: QuantizationName = Field(
        "none", description="int8: weights of 8 bits, activations of 16; on the CPU"
    )
    threads: int | None = Field(None, ge=1, description="CPU threads of one engine; default: the cores")
    max_model_len: int | None = Field(None, ge=8, description="most tokens of prompt and answer together")
    max_num_seqs: int = Field(32, ge=1, le=4096, description="sequences in one batch")
    max_num_batched_tokens: int = Field(512, ge=1, description="tokens computed in one engine step")
    scheduling: Literal["continuous", "dynamic", "static"] = Field(
        "continuous", description="when waiting requests start: in any step, or in batches, to compare"
    )
    batch_wait: float = Field(
        0.05, ge=0, le=60, description="seconds for which a dynamic batch that is not full waits for more"
    )
    block_size: int = Field(16, ge=1, le=256, description="tokens in one KV block")
    prefix_caching: bool = Field(
        True, description="reuse the computed beginning of a tenant's earlier prompts and answers"
    )
    kv_cache_gib: float = Field(2.0, gt=0, description="memory of the KV cache on a CPU, in GiB")
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="share of a GPU's memory for weights and KV cache together"
    )
    batch_invariant: bool = Field(
        False,
        description="a row has the same bits in any batch on a GPU too: each step is computed as the largest",
    )

    queue_depth: int = Field(1024, ge=1, description="most requests waiting for one model")
    queue_tokens: int = Field(4_000_000, ge=1, description="most tokens, as estimated, waiting for one model")
    tenant_queue_depth: int = Field(1024, ge=1, description="most requests of one tenant waiting for one model")
    tenant_queue_tokens: int = Field(4_000_000, ge=1, description="most tokens of one tenant waiting for one model")
    max_timeout: float = Field(86_400, gt=0, description="longest time in seconds a request may give itself")
    dead_letters: int = Field(10_000, ge=1, description="most requests kept that were set aside; the oldest go")
    dead_letter_ttl: float = Field(604_800, gt=0, description="seconds a request set aside is kept")
    max_connections: int = Field(20_000, ge=1, description="most open connections of one API process")
    max_body_bytes: int = Field(4 * 2**20, ge=1024, description="largest request body")
    max_header_bytes: int = Field(32_768, ge=1024, description="most bytes of a request's line and headers")
    max_headers: int = Field(100, ge=10, description="most headers of one request")
    head_timeout: float = Field(10, gt=0, le=600, description="seconds until a request's headers must have come")
    body_timeout: float = Field(
        30,
        gt=0,
        le=3600,
        description="seconds until a JSON body must have come, and that an upload may stand still",
    )
    allowed_hosts: str = Field(
        "",
        description="names beside loopback by which the API and its admin port may be called, by commas; "
        "*.example.com for all below, * for any; default: none without `auth`, any with it",
    )
    cors_origins: str = Field(
        "", description="other sites whose pages may call, https://… by commas; * for all; default: none"
    )
    max_n: int = Field(8, ge=1, le=128, description="most choices of one request")
    log_tokens: int = Field(262_144, ge=1, description="most tokens one answer's log may hold, all choices")
    request_ttl: float = Field(86_400, gt=0, description="seconds an unfinished request is kept")
    result_ttl: float = Field(3_600, gt=0, description="seconds a finished answer is kept")
    response_ttl: float = Field(86_400, gt=0, description="seconds a stored response is kept after its end")
    keepalive: float = Field(15, gt=0, le=15, description="seconds of silence before an SSE comment")
    lease: float = Field(3, ge=0.5, le=300, description="seconds without a heartbeat after which work moves on")
    max_attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="workers a request may lose before it is set aside; one less if the last two ran nothing else",
    )
    grace: float = Field(30, ge=0, le=3600, description="seconds that a stopping process may take to finish")

    plans: Plans = Field(
        {},
        description='limits by name, as `[plans.free]` with `requests = "60/minute; 1000/day"`, `tokens`, '
        "`concurrent`, `tokens_per_day`; JSON in the environment",
    )
    default_plan: str = Field("", description="plan of whoever has none; empty: no limits")
    rate_limit_strategy: Literal["fixed-window", "sliding-window-counter", "moving-window", "token-bucket"] = Field(
        "sliding-window-counter", description="how windows are counted"
    )
    user_requests: Windows = Field("", description="requests of one `user` of a key, as in a plan")
    user_tokens: Windows = Field("", description="tokens of one `user` of a key, as in a plan")
    address_requests: Windows = Field("", description="requests of one client address, as in a plan")
    trusted_proxies: str = Field(
        "", description="addresses and networks, by commas, whose X-Forwarded-For tells the client's address"
    )
    rate_limit_failure: Literal["closed", "open"] = Field(
        "closed", description="what becomes of requests while limits cannot be counted: closed refuses them (503)"
    )
    rate_limit_timeout: float = Field(1.0, gt=0, le=30, description="seconds to wait for the count of limits")
    limits_redis_url: SecretStr | None = Field(
        None, description="Redis or Valkey that counts limits and usage; default: that of `redis_url`"
    )
    usage: bool = Field(True, description="meter each request: a usage record, and a line of the log at its end")
    usage_ttl: float = Field(7_776_000, gt=0, description="seconds a usage record is kept")
    usage_backlog: int = Field(
        100_000,
        ge=1,
        description="most usage records that wait to be written; beyond it requests get 503",
    )
    log_prompts: int = Field(
        0, ge=0, le=10_000, description="most characters of a prompt that the request log shows; 0: none"
    )

    files_dir: Path | None = Field(
        None, description="folder of uploaded and produced files, shared by API and tasks; default: in `data_dir`"
    )
    max_file_bytes: int = Field(200 * 2**20, ge=1024, description="largest uploaded file")
    files_bytes: int = Field(10 * 2**30, ge=1024, description="most bytes of all files together")
    file_ttl: float = Field(2_592_000, gt=0, description="seconds a file is kept that says nothing else")
    batch_requests: int = Field(50_000, ge=1, description="most lines of one batch")
    batch_window: int = Field(256, ge=1, description="most requests of batches under way in one tasks process")
    batch_ttl: float = Field(2_592_000, gt=0, description="seconds a batch that has ended is kept")
    max_batches: int = Field(100, ge=1, description="most batches that have not ended")
    tasks_broker_url: SecretStr | None = Field(
        None, description="Celery's broker; default: the Redis of `redis_url`"
    )
    tasks_result_url: SecretStr | None = Field(None, description="Celery's result backend; default: its broker")
    tasks_concurrency: int = Field(16, ge=2, le=1024, description="Celery tasks under way in one tasks process")
    tasks_redelivery: float = Field(
        3_600, ge=10, description="seconds after which a task is delivered again whose process was lost"
    )

    queue: Literal["redis", "kafka"] = Field(
        "redis", description="where the API puts requests: straight into Redis, or into Kafka before it"
    )
    kafka_bootstrap: str = Field(
        "",
        description="host:port of Kafka's brokers, by commas: workers take requests from its topics; empty: none",
    )
    kafka_window: int = Field(
        256, ge=1, le=10_000, description="most unfinished requests that one worker has taken from Kafka's topics"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="how Kafka's brokers are spoken to"
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="how Kafka's brokers know us, with SASL"
    )
    kafka_username: str | None = Field(None, description="user of PLAIN and SCRAM")
    kafka_password: SecretStr | None = Field(None, description="password of PLAIN and SCRAM")
    kafka_token_file: Path | None = Field(
        None, description="file of the bearer token of OAUTHBEARER, read for each connection"
    )
    kafka_ssl_cafile: Path | None = Field(None, description="CAs of Kafka's brokers; default: the system's")
    kafka_ssl_certfile: Path | None = Field(None, description="our certificate for Kafka's brokers")
    kafka_ssl_keyfile: Path | None = Field(None, description="its key")
    kafka_api_version: str | None = Field(
        None, pattern=r"^\d+(\.\d+){1,2}$", description="version of Kafka's protocol; default: asked of the brokers"
    )

    webhook_secrets: SecretStr = Field(
        SecretStr(""), description="keys that sign webhooks, whsec_…, the newest first; without one there are none"
    )
    webhook_allow_http: bool = Field(False, description="let webhooks go over http, not only https")
    webhook_allow_private: bool = Field(False, description="let webhooks go to private and loopback addresses")
    webhook_timeout: float = Field(10, gt=0, le=60, description="seconds that one delivery of a webhook may take")
    webhook_retry_for: float = Field(
        86_400, ge=0, description="seconds after a job's end for which its webhook is tried again"
    )

    metrics_port: int | None = Field(
        None, ge=0, le=65535, description="port of a worker's /metrics on `host`; 0 picks one; default: none"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto is console on a terminal, else json"
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Drop empty strings: an environment variable cannot tell "empty" from "not set", so no source may."""
        return {name: value for name, value in values.items() if value != ""}

    @field_validator("*", mode="before")
    @classmethod
    def _without_nul(cls, value: Any) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("must not contain a NUL character")
        return value

    @model_validator(mode="after")
    def _known_plan(self) -> Settings:
        if self.default_plan and self.default_plan not in self.plans:
            raise ValueError(f"default_plan {self.default_plan!r} is not among plans")
        return self

    @property
    def files(self) -> Path:
        """Where the files are."""
        return self.files_dir or self.data_dir / "files"


@dataclass(frozen=True)
class Loaded:
    """Settings, and for each field where its value came from: flag, environment, file or default."""

    settings: Settings
    origin: dict[str, str]


def load(flags: dict[str, Any] | None = None, *, file: Path | None = None) -> Loaded:
    """Read and check all sources. A flag of None counts as not given.

    Args:
        flags: values from the command line, by field name.
        file: a settings file that must exist; without it `headrace.toml` of the current folder, if there is one.

    Raises:
        ConfigError: a file that cannot be read, an unknown name, a value out of range; says which and where.
    """
    sources = {
        "default": {},
        "file": _from_file(file),
        "environment": _from_environment(),
        "flag": {name: value for name, value in (flags or {}).items() if value is not None},
    }
    values: dict[str, Any] = {}
    origin = dict.fromkeys(Settings.model_fields, "default")
    for source, found in sources.items():
        values |= found
        origin |= dict.fromkeys(found, source)
    try:
        return Loaded(Settings(**values), origin)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        where = origin.get(name, "settings")
        raise ConfigError(f"{name} (from {where}): {first['msg']}", param=name) from None


def _from_file(file: Path | None) -> dict[str, Any]:
    path = file or Path(CONFIG_FILE)
    if file is None and not path.exists():
        return {}
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def to_environment(settings: Settings) -> dict[str, str]:
    """Return the environment variables from which `load` reads equal settings, secrets included.

    Each setting has a variable; it is empty for None, so that an inherited variable does not count.
    """
    dumped = settings.model_dump(mode="json")
    return {_variable(name): _as_text(getattr(settings, name), dumped[name]) for name in dumped}


def _as_text(value: Any, dumped: Any) -> str:
    """Return the text of one value; `dumped` is its JSON form."""
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(dumped) if isinstance(dumped, dict | list) else str(value)


def _variable(name: str) -> str:
    return f"{ENV_PREFIX}{name.upper()}"


def _from_environment() -> dict[str, Any]:
    known = {_variable(name): name for name in Settings.model_fields}
    found = {}
    for variable, value in os.environ.items():
        if not variable.startswith(ENV_PREFIX) or not value or variable in OF_CLIENTS:
            continue
        if variable not in known:
            raise ConfigError(f"{variable} is in the environment, but there is no such setting")
        found[known[variable]] = value
    return found
