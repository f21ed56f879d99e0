"""The models and their versions, on the admin port."""

from __future__ import annotations

from functools import partial

import msgspec
from starlette.responses import Response

from producer_api.auth.principal import Principal
from producer_api.http.endpoint import Endpoint, ResponseDoc
from producer_api.http.json_body import json_response
from producer_api.kserve.served_models import visible_models
from producer_api.services import Context
from shared.models.worker_registry import Task
from shared.repository.status import ModelStatus, VersionState, VersionStatus


class VersionView(msgspec.Struct):
    """One version; `progress` of loading is from 0 to 1.

    `requests` counts those that ended since it was loaded, `failed` those of them that failed, and `pending` those
    that wait in it. It has no counts if its model is not of a repository.
    """

    version: str
    state: VersionState
    reason: str
    progress: float
    memory_bytes: int
    requests: int
    failed: int
    pending: int

    @classmethod
    def from_status(cls, status: VersionStatus) -> VersionView:
        counts = status.statistics
        return cls(
            version=status.version,
            state=status.state,
            reason=status.reason,
            progress=1.0 if status.state == "READY" else status.progress,
            memory_bytes=counts.memory_bytes,
            requests=counts.success.count + counts.fail.count,
            failed=counts.fail.count,
            pending=counts.pending,
        )


class ModelView(msgspec.Struct):
    """One model. `reason` says why it has no versions."""

    name: str
    backend: str
    task: Task | None
    reason: str
    versions: list[VersionView]

    @classmethod
    def from_status(cls, status: ModelStatus) -> ModelView:
        versions = [VersionView.from_status(each) for each in status.versions]
        return cls(status.name, status.spec.backend or status.spec.platform, status.task, status.reason, versions)


class ModelViews(msgspec.Struct):
    data: list[ModelView]


async def list_models(context: Context, caller: Principal) -> Response:
    found = await visible_models(context, caller)
    return json_response(ModelViews([ModelView.from_status(each) for each in found]))


_endpoint = partial(Endpoint, group=None, admin=True, tag="Operation")
ADMIN_ENDPOINTS = (
    _endpoint(
        "GET",
        "/admin/models",
        list_models,
        summary="List the models and their versions",
        responses=(ResponseDoc("all models, by name", ModelViews),),
        failures=(500, 503),
    ),
)
