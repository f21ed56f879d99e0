"""Settings of what executes the model in a worker: the engine of Headrace, vLLM, or another server."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SecretStr

from shared.plans import from_json

RuntimeName = Literal["native", "vllm", "upstream"]
UpstreamResume = Literal["continue", "restart", "fail"]
MixedWorkers = Literal["refuse", "allow"]


def base_url(url: str) -> str:
    """Return a usable base URL without a slash at its end. Raises ValueError, without the URL, for others."""
    import httpx  # noqa: PLC0415  only with this setting

    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        host = httpx.URL(url).raw_host.decode("ascii")
        host.encode("idna")  # as the resolver does
        usable = parts.scheme in ("http", "https") and bool(host) and (parts.port or 1) > 0
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable or " " in url or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(
            "must be http://host:port/path or https://host/path, without a user, query or fragment; set "
            "upstream_api_key for a key"
        ) from None
    return url


class RuntimeFields(BaseModel):
    """Settings that choose and configure a worker's runtime."""

    runtime: RuntimeName = Field(
        "native",
        description="what executes the model in a worker; native: Headrace's own engine; vllm: vLLM, in the "
        "worker's process; upstream: an OpenAI-compatible server at `upstream_url`",
    )
    worker_python: str | None = Field(
        None,
        min_length=1,
        description="Python interpreter of the workers that `headrace up` starts, for example that of vLLM's own "
        "environment, with headrace installed in it; default: that of `headrace up`",
    )
    vllm_options: Annotated[dict[str, Any], BeforeValidator(from_json)] = Field(
        {},
        description='further arguments of vLLM\'s engine, as in `[vllm_options]` with `quantization = "fp8"`; JSON '
        "in the environment",
    )
    upstream_url: Annotated[str, AfterValidator(base_url)] | None = Field(
        None,
        description="base URL of the server that executes requests, for example http://127.0.0.1:11434/v1",
    )
    upstream_api_key: SecretStr | None = Field(None, description="API key that the upstream server requires")
    upstream_model: str | None = Field(
        None, min_length=1, description="model name at the upstream server; default: the only one that it lists"
    )
    upstream_timeout: float = Field(
        300,
        gt=0,
        le=86_400,
        description="seconds without a part of an answer after which the upstream server counts as silent",
    )
    upstream_resume: UpstreamResume = Field(
        "restart",
        description="what happens to an answer that has begun when its worker or the upstream server is lost; "
        "continue: the logged text is sent as the beginning of the answer, for servers that support it; restart: "
        "the answer is generated again, and must begin with the logged text; fail: the request fails",
    )
    recording_bytes: int = Field(
        65_536,
        ge=0,
        le=2**24,
        description="largest request, with the token ids of its prompt, that is kept as long as its answer so that "
        "`headrace verify` can run it again; 0 keeps none",
    )
    mixed_workers: MixedWorkers = Field(
        "refuse",
        description="what a worker does if its runtime or fingerprint (weights, precision, kernels, device, "
        "version of torch) differs from that of its model's running workers; refuse: it does not start; allow: it "
        "serves beside them, as rolling updates and unequal machines require; an answer that another of them "
        "continues may then differ",
    )
