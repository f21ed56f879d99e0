"""The gRPC service inference.GRPCInferenceService; `service` declares its methods."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from msgspec import to_builtins

from producer_api.http.audit import Outcome, audited
from producer_api.kserve import model_views
from producer_api.kserve.repository_control import carry_out, load_order, unload_order
from producer_api.kserve.served_models import ServedModel, find, visible_models
from producer_api.kserve.server_settings import LOGGING, TRACING, check_unchanged, shared_memory_refusal
from producer_api.routes.kserve import check_server_ready
from producer_api.rpc.call import Call
from producer_api.rpc.generation import attend
from producer_api.rpc.handler import Method, Service
from producer_api.rpc.kserve import kserve_pb2 as pb
from producer_api.rpc.kserve.inference import InferStream, infer
from producer_api.rpc.kserve.messages import plain
from producer_api.services import Context
from shared.errors import InvalidRequest, ModelUnavailable, NotFound, NotSupported, Unavailable
from shared.repository.config_writing import config_from_spec
from shared.repository.store import ModelOrder

NAME = "inference.GRPCInferenceService"  # as KServe's clients call it; the package of our definitions is another
STREAM = "ModelStreamInfer"
MEMORY = {
    "system": ("SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"),
    "CUDA": ("CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister"),
}


class KServe:
    """The methods of the service."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def service(self) -> Service:
        models = partial(Method, group="predict")
        admin = partial(Method, group=None, admin=True)
        methods = (
            Method("ServerLive", None, self._live),
            Method("ServerReady", None, self._ready),
            models("ServerMetadata", answer=self._server_metadata),
            models("ModelReady", answer=self._model_ready),
            models("ModelMetadata", answer=self._model_metadata),
            models("ModelConfig", answer=self._model_config),
            models("ModelStatistics", answer=self._statistics),
            models("ModelInfer", answer=partial(infer, self._context), charged=True),
            models(STREAM, answer=self._stream, charged=True),
            models("RepositoryIndex", answer=self._index),
            admin("RepositoryModelLoad", answer=self._load),
            admin("RepositoryModelUnload", answer=self._unload),
            admin("LogSettings", answer=self._logging),
            admin("TraceSetting", answer=self._tracing),
            *(admin(name, answer=_memory(kind, name)) for kind, names in MEMORY.items() for name in names),
        )
        return Service(NAME, methods)

    async def _live(self, call: Call) -> None:
        await call.read(pb.ServerLiveRequest)
        await call.write(pb.ServerLiveResponse(live=True))

    async def _ready(self, call: Call) -> None:
        await call.read(pb.ServerReadyRequest)
        try:
            await check_server_ready(self._context)
        except Unavailable:
            await call.write(pb.ServerReadyResponse(ready=False))
        else:
            await call.write(pb.ServerReadyResponse(ready=True))

    async def _server_metadata(self, call: Call) -> None:
        await call.read(pb.ServerMetadataRequest)
        await call.write(_filled(pb.ServerMetadataResponse(), model_views.server_metadata()))

    async def _model_ready(self, call: Call) -> None:
        message = await call.read(pb.ModelReadyRequest)
        try:
            model = await self._find(call, message.name, message.version)
            model.check_ready(probed=True)
        except (NotFound, ModelUnavailable):
            await call.write(pb.ModelReadyResponse(ready=False))
        else:
            await call.write(pb.ModelReadyResponse(ready=True))

    async def _model_metadata(self, call: Call) -> None:
        message = await call.read(pb.ModelMetadataRequest)
        model = await self._find(call, message.name, message.version)
        await call.write(_filled(pb.ModelMetadataResponse(), model_views.metadata(model)))

    async def _model_config(self, call: Call) -> None:
        message = await call.read(pb.ModelConfigRequest)
        model = await self._find(call, message.name, message.version)
        await call.write(pb.ModelConfigResponse(config=config_from_spec(model.spec)))

    async def _statistics(self, call: Call) -> None:
        message = await call.read(pb.ModelStatisticsRequest)
        if message.name:
            models = [await self._find(call, message.name, message.version)]
        else:
            models = [ServedModel(each, "") for each in await visible_models(self._context, call.caller)]
        answer = pb.ModelStatisticsResponse()
        for each in model_views.statistics(models):
            _filled(answer.model_stats.add(), each)
        await call.write(answer)

    async def _stream(self, call: Call) -> None:
        await InferStream(self._context, call, f"/{NAME}/{STREAM}").run()

    async def _index(self, call: Call) -> None:
        message = await call.read(pb.RepositoryIndexRequest)
        _refuse_repository(message.repository_name)
        answer = pb.RepositoryIndexResponse()
        visible = await visible_models(self._context, call.caller)
        for each in model_views.index(visible, ready_only=message.ready):
            _filled(answer.models.add(), each)
        await call.write(answer)

    async def _load(self, call: Call) -> None:
        message = await call.read(pb.RepositoryModelLoadRequest)
        _refuse_repository(message.repository_name)
        make = partial(load_order, message.model_name, plain(message.parameters))
        async with self._audited(call, "Load", message.model_name):
            call.caller.check_model(message.model_name)
            await self._carry_out(call, await call.off_loop(make))
        await call.write(pb.RepositoryModelLoadResponse())

    async def _unload(self, call: Call) -> None:
        message = await call.read(pb.RepositoryModelUnloadRequest)
        _refuse_repository(message.repository_name)
        dependents = plain(message.parameters).get("unload_dependents", False)
        if not isinstance(dependents, bool):
            raise InvalidRequest("unload_dependents must be true or false", param="unload_dependents")
        async with self._audited(call, "Unload", message.model_name):
            call.caller.check_model(message.model_name)
            await self._carry_out(call, unload_order(message.model_name, dependents=dependents))
        await call.write(pb.RepositoryModelUnloadResponse())

    def _audited(self, call: Call, change: str, model: str) -> AbstractAsyncContextManager[Outcome]:
        """Record a change of the repository as an administrative action."""
        return audited(self._context.backend.audit, call.caller, f"gRPC RepositoryModel{change}", f"name={model}")

    async def _logging(self, call: Call) -> None:
        message = await call.read(pb.LogSettingsRequest)
        check_unchanged(plain(message.settings), LOGGING)
        answer = pb.LogSettingsResponse()
        for name, value in LOGGING.items():
            kind = {bool: "bool_param", int: "uint32_param"}.get(type(value), "string_param")
            setattr(answer.settings[name], kind, value)
        await call.write(answer)

    async def _tracing(self, call: Call) -> None:
        message = await call.read(pb.TraceSettingRequest)
        current = {name: value if isinstance(value, list) else [value] for name, value in TRACING.items()}
        wanted = {name: list(each.value) for name, each in message.settings.items() if each.value}
        check_unchanged(wanted, current)
        answer = pb.TraceSettingResponse()
        for name, values in current.items():
            answer.settings[name].value.extend(values)
        await call.write(answer)

    async def _find(self, call: Call, name: str, version: str) -> ServedModel:
        return await find(self._context, call.caller, name, version)

    async def _carry_out(self, call: Call, order: ModelOrder) -> None:
        await attend(self._context, carry_out(self._context, call.caller, order), resumable=False)


def _memory(kind: str, method: str) -> Callable[[Call], Any]:
    """Return a method that refuses shared memory."""
    request = getattr(pb, f"{method}Request")

    async def refuse(call: Call) -> None:
        await call.read(request)
        raise shared_memory_refusal(kind)

    return refuse


def _refuse_repository(name: str) -> None:
    if name:
        raise NotSupported("repository_name is not supported: there is one repository", param="repository_name")


def _filled(message: Message, struct: Any) -> Any:
    """Return the message with the fields of a struct, which has the same names."""
    return ParseDict(to_builtins(struct), message)
