"""The gRPC service externalscaler.ExternalScaler: KEDA asks it how many workers a model needs.

KEDA sends no metadata with its calls, but it resolves values of the ScaledObject from the environment of the scaled
pods. So an API key may come as the metadata `apiKeyFromEnv` in place of an Authorization header.
"""

from __future__ import annotations

import asyncio
import math

import structlog

from producer_api.admission.access import authorize
from producer_api.admission.deadline import redis_deadline
from producer_api.admission.scaling import ModelLoad, load_of
from producer_api.rpc import external_scaler_pb2 as pb
from producer_api.rpc.call import Call
from producer_api.rpc.generation import attend
from producer_api.rpc.handler import Method, Service
from producer_api.rpc.scaler_metadata import TARGETS, ScalerMetadata
from producer_api.services import Context
from shared.errors import InvalidRequest, Unavailable
from shared.redis import keys
from shared.token_log.subscription import Subscription

MAX_STREAMS = 256  # of one API process; KEDA opens one for each trigger
POLL_S = 5.0  # between looks at an active model, and at one whose wake-ups may have been lost
RETRY_S = 0.5
KEY_NAMES = ("apiKeyFromEnv", "apiKey")

log = structlog.get_logger(__name__)


class ExternalScaler:
    """The methods of the service; `service` declares them. Each checks its caller itself, since the key may be in
    the message.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._streams = 0

    def service(self) -> Service:
        methods = (
            Method("IsActive", None, self._is_active),
            Method("StreamIsActive", None, self._stream),
            Method("GetMetricSpec", None, self._spec),
            Method("GetMetrics", None, self._metrics),
        )
        return Service(pb.DESCRIPTOR.services_by_name["ExternalScaler"].full_name, methods)

    async def _is_active(self, call: Call) -> None:
        wanted = await self._wanted(call, await call.read(pb.ScaledObjectRef))
        await call.write(pb.IsActiveResponse(result=wanted.is_active(await self._load(wanted))))

    async def _spec(self, call: Call) -> None:
        wanted = await self._wanted(call, await call.read(pb.ScaledObjectRef))
        load = await self._load(wanted)
        specs = [
            pb.MetricSpec(metricName=name, targetSize=math.ceil(target), targetSizeFloat=target)
            for name, target in wanted.targets_for(load).items()
        ]
        await call.write(pb.GetMetricSpecResponse(metricSpecs=specs))

    async def _metrics(self, call: Call) -> None:
        message = await call.read(pb.GetMetricsRequest)
        wanted = await self._wanted(call, message.scaledObjectRef)
        if message.metricName not in TARGETS.values():
            allowed = ", ".join(TARGETS.values())
            raise InvalidRequest(
                f"metricName must be one of {allowed}, got {message.metricName[:64]!r}", param="metricName"
            )
        value = wanted.value(message.metricName, await self._load(wanted))
        metric = pb.MetricValue(metricName=message.metricName, metricValue=math.ceil(value), metricValueFloat=value)
        await call.write(pb.GetMetricsResponse(metricValues=[metric]))

    async def _stream(self, call: Call) -> None:
        wanted = await self._wanted(call, await call.read(pb.ScaledObjectRef))
        await self._load(wanted)  # an unknown model is refused, and not watched
        if self._streams >= MAX_STREAMS:
            raise Unavailable(f"this process already serves {MAX_STREAMS} streams of scalers", retry_after=POLL_S)
        self._streams += 1
        try:
            async with self._context.backend.live.subscribe(keys.wake_channel(wanted.model)) as woken:
                await attend(self._context, self._report(call, wanted, woken), resumable=True)
        finally:
            self._streams -= 1

    async def _report(self, call: Call, wanted: ScalerMetadata, woken: Subscription) -> None:
        """Write whether the model is active, and again whenever that changes, until the call is cancelled."""
        reported: bool | None = None
        while True:
            try:
                active = wanted.is_active(await self._load(wanted))
            except Unavailable as error:  # KEDA opens a broken stream again only after up to a minute
                log.warning("scaler_blind", model=wanted.model, error=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            if active != reported:
                reported = active
                await call.write(pb.IsActiveResponse(result=active))
            if active:
                await asyncio.sleep(POLL_S)  # its requests announce themselves, which says nothing new
            else:
                await woken.get(POLL_S)

    async def _load(self, wanted: ScalerMetadata) -> ModelLoad:
        context = self._context
        async with redis_deadline():
            seats = context.settings.max_num_seqs
            return await load_of(context.backend, context.catalog, wanted.model, default_seats=seats)

    async def _wanted(self, call: Call, ref: pb.ScaledObjectRef) -> ScalerMetadata:
        """Return what a ScaledObject asks for, once its caller may see it."""
        metadata = dict(ref.scalerMetadata)
        if self._context.settings.scaler_auth:
            given = call.metadata_values("authorization")
            given = given or [f"Bearer {metadata[name]}" for name in KEY_NAMES if metadata.get(name)][:1]
            await authorize(self._context.authenticate, call.facts, given, group=None, admin=True)
        wanted = ScalerMetadata.parse(metadata)
        if call.facts.principal is not None:
            call.facts.principal.check_model(wanted.model)
        return wanted
