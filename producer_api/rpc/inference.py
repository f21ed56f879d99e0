"""The gRPC service headrace.v1.Inference: jobs and models."""

from __future__ import annotations

from functools import partial

from producer_api.admission.deadline import redis_deadline
from producer_api.admission.gateway import Admission
from producer_api.answers import jobs
from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.call import Call
from producer_api.rpc.generation import attend, replying, submit, write_events
from producer_api.rpc.handler import Method, Service
from producer_api.rpc.requests import last_seen_seq, to_submission
from producer_api.rpc.responses import event_messages, job_message, model_message
from producer_api.services import Context
from shared.token_log.answer import before_end, ending


class Inference:
    """The methods of the service; `service` declares them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def service(self) -> Service:
        methods = (
            Method("Submit", "jobs", self._submit, charged=True),
            Method("Generate", "jobs", self._generate, charged=True),
            Method("Follow", "jobs", self._follow),
            Method("GetJob", "jobs", self._get),
            Method("CancelJob", "jobs", self._cancel),
            Method("ListModels", "models", self._models),
        )
        return Service(pb.DESCRIPTOR.services_by_name["Inference"].full_name, methods)

    async def _submit(self, call: Call) -> None:
        message = await call.read(pb.JobRequest)
        job = await submit(self._context, call, partial(to_submission, message))
        self._context.note(call.facts, job.admission.request)
        await call.write(await self._job(job.admission))

    async def _generate(self, call: Call) -> None:
        message = await call.read(pb.GenerateRequest)
        after = last_seen_seq(message)
        job = await submit(self._context, call, partial(to_submission, message.job), resuming=after >= 0)
        async with replying(self._context, call.facts, job) as reply:
            await call.write(pb.Event(job=await self._job(job.admission)))
            if after >= 0:
                record = await self._context.request_control.record(job.admission.request.id, call.caller.tenant)
                after = before_end(record, after)
            written = write_events(call, reply.events(after), event_messages)
            end = await attend(self._context, written, resumable=job.detached)
        if (error := ending(end)) is not None:
            raise error

    async def _follow(self, call: Call) -> None:
        message = await call.read(pb.FollowRequest)
        record = await self._context.request_control.record(message.id, call.caller.tenant)
        after = before_end(record, last_seen_seq(message))
        followed = self._context.backend.token_log.follow(record.id, after, idle=self._context.settings.keepalive)
        await attend(self._context, write_events(call, followed, event_messages), resumable=True)

    async def _get(self, call: Call) -> None:
        message = await call.read(pb.GetJobRequest)
        await call.write(job_message(await jobs.find(self._context, message.id, call.caller.tenant)))

    async def _cancel(self, call: Call) -> None:
        message = await call.read(pb.CancelJobRequest)
        await call.write(job_message(await jobs.cancel(self._context, message.id, call.caller.tenant)))

    async def _models(self, call: Call) -> None:
        await call.read(pb.ListModelsRequest)
        async with redis_deadline():
            found, ready = await self._context.catalog.models(), await self._context.catalog.ready_workers()
        models = [model_message(info, ready[info.name]) for info in found if call.caller.may_use(info.name)]
        await call.write(pb.ListModelsResponse(models=models))

    async def _job(self, admission: Admission) -> pb.Job:
        return job_message(await jobs.submitted(self._context, admission))
