"""Loading and unloading of models: an order to the workers that have the repository, and its outcome."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from producer_api.admission.deadline import redis_deadline
from producer_api.auth.principal import Principal
from producer_api.services import Context
from shared.errors import ConfigError, InvalidRequest, NotFound, Unavailable
from shared.protocol import new_job_id
from shared.repository.order_files import check_file_path
from shared.repository.store import ModelOrder

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")  # of a folder
FILE_PREFIX = "file:"  # of parameters
RESULT_LIMIT_S = 300.0  # how long a caller waits for a model to load
STATUS_LIMIT_S = 2.0  # after the outcome, for which its status is awaited
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 0.5  # between looks at the outcome


def load_order(name: str, parameters: Mapping[str, Any]) -> ModelOrder:
    """Return the order to load a model. Raises InvalidRequest."""
    config, files = "", {}
    for key, value in parameters.items():
        if key != "config" and not key.startswith(FILE_PREFIX):
            raise InvalidRequest(
                f"the parameter {key[:64]!r} is unknown; allowed: config and file:<version>/<name>",
                param="parameters",
            )
        if not isinstance(value, str | bytes) or (key == "config" and not isinstance(value, str)):
            raise InvalidRequest(f"the parameter {key[:64]!r} must be a string", param="parameters")
        if key == "config":
            config = str(value)
        else:
            files[_path(key)] = value if isinstance(value, bytes) else _decoded(key, value)
    if files and not config:
        raise InvalidRequest("files need the parameter config, which describes their model", param="parameters")
    _check_config(config)
    return ModelOrder(id=new_job_id(), model=_checked(name), action="load", config=config, files=files)


def unload_order(name: str, *, dependents: bool) -> ModelOrder:
    """Return the order to unload a model. Raises InvalidRequest."""
    return ModelOrder(id=new_job_id(), model=_checked(name), action="unload", unload_dependents=dependents)


async def carry_out(context: Context, caller: Principal, order: ModelOrder) -> None:
    """Place an order and wait until it was carried out.

    Raises PermissionDenied if it reaches a model that the caller may not administer; NotFound without a repository;
    InvalidRequest with the reason for which a model cannot be loaded; Unavailable.
    """
    async with redis_deadline():
        if context.settings.model_repository is None and not await context.catalog.repository():
            raise NotFound("no worker has a model repository")
        if order.unload_dependents:
            await _check_dependents(context, caller, order.model)
        await context.backend.repository.place(order)
    pause, waited = FIRST_PAUSE_S, 0.0
    while waited < RESULT_LIMIT_S:
        async with redis_deadline():
            result = await context.backend.repository.result(order.id)
        if result is not None and result.error:
            raise InvalidRequest(f"failed to {order.action} {order.model!r}: {result.error}", param="model")
        if result is not None:
            await _wait_for_status(context, order)
            return
        await asyncio.sleep(pause)
        waited += pause
        pause = min(2 * pause, LONGEST_PAUSE_S)
    raise Unavailable(f"no worker has finished to {order.action} {order.model!r} yet", retry_after=1)


async def _check_dependents(context: Context, caller: Principal, model: str) -> None:
    status = (await context.catalog.repository()).get(model)
    for step in status.spec.ensemble if status is not None else ():
        caller.check_model(step.model_name)


async def _wait_for_status(context: Context, order: ModelOrder) -> None:
    """Wait until the statuses, which follow the outcome, show it: the caller's next request depends on them.

    A version is shown as ready when it is, so that another one may still be shown as loading after the outcome.
    """
    loaded, waited = order.action == "load", 0.0
    while waited < STATUS_LIMIT_S:
        context.catalog.forget_snapshot()
        async with redis_deadline():
            status = (await context.catalog.repository()).get(order.model)
        ready = status is not None and bool(status.ready)
        changing = loaded and status is not None and any(each.state == "LOADING" for each in status.versions)
        if ready == loaded and not changing:
            return
        await asyncio.sleep(FIRST_PAUSE_S)
        waited += FIRST_PAUSE_S


def _checked(name: str) -> str:
    if not MODEL_NAME.fullmatch(name):
        raise InvalidRequest(
            "the name of a model in the repository must have 1 to 128 letters, digits and ._:-, and begin with a "
            "letter or digit",
            param="model",
        )
    return name


def _path(key: str) -> str:
    path = key.removeprefix(FILE_PREFIX)
    try:
        check_file_path(path)
    except ConfigError as error:
        raise InvalidRequest(f"the parameter {error.message}", param="parameters") from None
    return path


def _decoded(key: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"the parameter {key[:64]!r} must be base64", param="parameters") from None


def _check_config(config: str) -> None:
    if not config:
        return
    try:
        parsed = msgspec.json.decode(config)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidRequest("the parameter config must be a JSON object", param="parameters")
