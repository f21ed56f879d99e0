"""Requests that a worker runs before it is ready, so that the first request of a client meets no first-time costs.

They are prepared like queued requests and computed by the engine, but neither queued, logged nor charged.
"""

from __future__ import annotations

import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from pydantic_core import from_json

from shared.errors import ConfigError, EngineFailed, HeadraceError, InvalidRequest
from shared.files.json_lines import json_text
from shared.models.worker_registry import Task
from shared.protocol import Embed, Message, Pool, Request, SamplingParams
from shared.validation.request_limits import check_request
from workers.active_request import ActiveRequest
from workers.engine.interface import EngineRequest, Generator
from workers.preparation.prompt_encoding import WIDEST_LIMITS

MAX_FILE_BYTES = 4 * 2**20
DEFAULT_MAX_TOKENS = 16  # of a warm-up request that names no maximum
PARAM = "warmup_requests"
TIMEOUT_S = 300.0  # for each request
TENANT = "warm-up"  # cached prefixes are kept apart by tenant, so no client's answer depends on a warm-up
BUILT_IN = SamplingParams(max_tokens=2, temperature=0.5, top_p=0.9, logprobs=1)  # vLLM compiles for logprobs


@dataclass(frozen=True)
class WarmUp:
    """One request to run, and its place for errors.

    `alternative` runs in its place if the model refuses it.
    """

    place: str
    request: Request
    alternative: Request | None = None


def read_warm_ups(path: Path, model: str) -> list[WarmUp]:
    """Return the requests of a JSON Lines file that are for `model`, each with the number of its line.

    Raises ConfigError, with the line and the reason, for a file that cannot be read or a line that is not valid.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # reading a pipe or a device may not end
            raise ConfigError(f"warmup_requests: {path} must be a regular file", param=PARAM)
        if found.st_size > MAX_FILE_BYTES:
            raise ConfigError(f"warmup_requests: {path} must have at most {MAX_FILE_BYTES} bytes", param=PARAM)
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"warmup_requests: {path} cannot be read: {error.strerror}", param=PARAM) from None
    warm_ups = []
    for number, line in enumerate(lines, 1):
        if not (body := json_text(line, first=number == 1)):
            continue
        try:
            requests = _parse(body, model)
        except InvalidRequest as error:
            raise ConfigError(f"warmup_requests, line {number}: {error.message}", param=PARAM) from None
        warm_ups += [WarmUp(f"line {number}", each, _classified(each)) for each in requests if each.model == model]
    return warm_ups


def _classified(request: Request) -> Request | None:
    """Return the request for a classifier that a request for embeddings becomes: both have an `input`."""
    if not isinstance(request.work, Embed):
        return None
    return msgspec.structs.replace(request, work=Pool(request.work.inputs))


def _parse(line: bytes, model: str) -> list[Request]:
    """Return the requests of one body; without a `model`, it is for this one. Raises InvalidRequest."""
    from shared.schemas.openai.chat import ChatRequest  # noqa: PLC0415  only with this setting
    from shared.schemas.openai.completions import CompletionRequest  # noqa: PLC0415
    from shared.schemas.openai.embeddings import EmbeddingRequest  # noqa: PLC0415
    from shared.schemas.parsing import validate  # noqa: PLC0415

    fields = _object(line)
    if "messages" in fields:
        requests = [validate(line, ChatRequest).to_request(TENANT)]
    elif "prompt" in fields:
        requests = validate(line, CompletionRequest).to_requests(TENANT)
    elif "input" in fields:
        requests = validate(line, EmbeddingRequest).to_requests(TENANT)
    else:
        raise InvalidRequest("the body must have messages, prompt or input")
    requests = [msgspec.structs.replace(each, model=each.model or model) for each in requests]
    for request in requests:
        check_request(request, WIDEST_LIMITS)
    return requests


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = from_json(line)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest("the line must be a JSON object")
    return value


def built_in(model: str, task: Task) -> WarmUp:
    """Return one short request: a chat, or a completion if the model has no chat template."""
    place = "the built-in request"
    if task != "generate":
        return WarmUp(place, Request(id="", model=model, work=Pool(("Hello",)), tenant=TENANT))
    chat = Request(id="", model=model, messages=(Message("user", "Hello"),), params=BUILT_IN, tenant=TENANT)
    return WarmUp(place, chat, Request(id="", model=model, prompt="Hello", params=BUILT_IN, tenant=TENANT))


def active_request(request: Request, number: int) -> ActiveRequest:
    """Return a request as if this worker held its lease."""
    params = request.params
    if params.max_tokens is None:
        params = msgspec.structs.replace(params, max_tokens=DEFAULT_MAX_TOKENS)
    return ActiveRequest.unqueued(msgspec.structs.replace(request, id=f"warm-up-{number}", params=params))


def compute(engine: Generator, request: EngineRequest) -> None:
    """Run one request to its end. Raises the HeadraceError that ends it, and EngineFailed after TIMEOUT_S."""
    deadline = time.monotonic() + TIMEOUT_S
    engine.add(request)
    while engine.has_work():
        for output in engine.step():
            if output.error is not None:
                raise output.error
        if time.monotonic() > deadline:
            engine.abort(request.id)
            raise EngineFailed(f"it took longer than {TIMEOUT_S:.0f} s")


def failed(warm_up: WarmUp, error: HeadraceError) -> HeadraceError:
    """Return the error of a worker that is not ready because of a warm-up."""
    kind = ConfigError if isinstance(error, InvalidRequest) else EngineFailed
    return kind(f"{PARAM}, {warm_up.place} failed: {error.message}", param=PARAM)
