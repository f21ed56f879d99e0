"""The gRPC service headrace.v1.Inference: jobs and models."""

from __future__ import annotations

from contextlib import aclosing

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.gateway import Admission
from producer_api.admission.idempotency import HEADER, IdempotencyKey
from producer_api.admission.model_catalog import under_name
from producer_api.answers import jobs
from producer_api.answers.reply import Reply
from producer_api.http.headers import REPLAYED
from producer_api.http.open_streams import Stopping, shutdown_error
from producer_api.http.sse import Events
from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.call import Call
from producer_api.rpc.handler import Method
from producer_api.rpc.requests import last_seen_seq, to_submission
from producer_api.rpc.responses import event_messages, job_message, model_message
from producer_api.schemas.jobs import JobSubmission
from producer_api.services import Context
from shared.errors import InvalidRequest, Unavailable
from shared.protocol import Request, Terminal
from shared.token_log.answer import before_end, ending
from shared.validation.schema_check import not_held

SERVICE: str = pb.DESCRIPTOR.services_by_name["Inference"].full_name
KEY_METADATA = HEADER.lower()  # metadata names are in lower case


class Inference:
    """The methods of the service; `methods` declares them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def methods(self) -> list[Method]:
        return [
            Method("Submit", "jobs", self._submit, charged=True),
            Method("Generate", "jobs", self._generate, charged=True),
            Method("Follow", "jobs", self._follow),
            Method("GetJob", "jobs", self._get),
            Method("CancelJob", "jobs", self._cancel),
            Method("ListModels", "models", self._models),
        ]

    async def _submit(self, call: Call) -> None:
        admission, _ = await self._submitted(call, await call.read(pb.JobRequest))
        self._context.note(call.facts, admission.request)
        await call.write(await self._job(call, admission))

    async def _generate(self, call: Call) -> None:
        message = await call.read(pb.GenerateRequest)
        after = last_seen_seq(message)
        admission, key = await self._submitted(call, message.job, resuming=after >= 0)
        reply = Reply(self._context, call.facts, admission, detached=key is not None)
        try:
            await call.write(pb.Event(job=await self._job(call, admission)))
            if after >= 0:
                record = await self._context.request_control.record(admission.request.id, call.caller.tenant)
                after = before_end(record, after)
            end = await self._stream(call, reply.events(after), resumable=key is not None)
        except BaseException:  # also when the client disconnects or the server stops
            if key is None:
                reply.abandon()
            raise
        if (error := ending(end)) is not None:
            raise error

    async def _submitted(
        self, call: Call, message: pb.JobRequest, *, resuming: bool = False
    ) -> tuple[Admission, IdempotencyKey | None]:
        """Submit the job of a message; return it with its key. Raises InvalidRequest, and as jobs.submit."""

        model = await self._context.gateway.any_model()

        def read() -> tuple[JobSubmission, Request, IdempotencyKey | None]:
            body = to_submission(message)
            [draft] = under_name([body.to_request(call.caller.tenant)], model)
            self._context.gateway.check_together([draft])
            return body, draft, jobs.job_key(call.metadata_values(KEY_METADATA), call.caller, body)

        body, draft, key = await call.off_loop(read)
        call.facts.report_not_held(not_held([draft]))
        if resuming and key is None:
            raise InvalidRequest(f"from_seq above 0 needs the {KEY_METADATA} of the first call", param="from_seq")
        return await jobs.submit(self._context, body, draft, call.caller, key, resuming=resuming), key

    async def _follow(self, call: Call) -> None:
        message = await call.read(pb.FollowRequest)
        record = await self._context.request_control.record(message.id, call.caller.tenant)
        after = before_end(record, last_seen_seq(message))
        followed = self._context.backend.token_log.follow(record.id, after, idle=self._context.settings.keepalive)
        await self._stream(call, followed, resumable=True)

    async def _get(self, call: Call) -> None:
        message = await call.read(pb.GetJobRequest)
        await call.write(job_message(await jobs.find(self._context, message.id, call.caller.tenant)))

    async def _cancel(self, call: Call) -> None:
        message = await call.read(pb.CancelJobRequest)
        await call.write(job_message(await jobs.cancel(self._context, message.id, call.caller.tenant)))

    async def _models(self, call: Call) -> None:
        await call.read(pb.ListModelsRequest)
        async with redis_deadline():
            found = await self._context.catalog.models()
        models = [model_message(info) for info in found if call.caller.may_use(info.name)]
        await call.write(pb.ListModelsResponse(models=models))

    async def _job(self, call: Call, admission: Admission) -> pb.Job:
        call.add_metadata(REPLAYED if admission.joined else {})
        return job_message(await jobs.submitted(self._context, admission))

    async def _stream(self, call: Call, events: Events, *, resumable: bool) -> Terminal:
        """Write the events at the client's pace and return the last. Raises Unavailable if the server stops."""
        try:
            return await self._context.open_answers.run(_written(call, events), None, resumable=resumable)
        except Stopping:
            raise shutdown_error() from None


async def _written(call: Call, events: Events) -> Terminal:
    async with aclosing(events):
        async for event in events:
            for message in event_messages(event) if event is not None else ():
                await call.write(message)
            if event is not None and event.terminal is not None:
                return event.terminal
    raise Unavailable("the stream ended before its answer; resume it", retry_after=0)
