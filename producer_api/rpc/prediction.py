"""The gRPC service InferenceService: the text of an answer, whole or as a stream."""

from __future__ import annotations

from functools import partial

from producer_api.rpc import prediction_pb2 as pb
from producer_api.rpc.call import Call
from producer_api.rpc.generation import SubmittedJob, attend, replying, submit, write_events
from producer_api.rpc.handler import Method, Service
from producer_api.rpc.requests import chat_submission
from producer_api.rpc.responses import prediction, prediction_messages
from producer_api.services import Context
from shared.token_log.answer import collect, end_of, ending

FIELD_NAMES = ((r"^model$", "model_name"),)


class Prediction:
    """The methods of the service; `service` declares them."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def service(self) -> Service:
        method = partial(Method, group="jobs", charged=True, field_names=FIELD_NAMES)
        methods = (method("Predict", answer=self._predict), method("StreamPredict", answer=self._stream))
        return Service(pb.DESCRIPTOR.services_by_name["InferenceService"].full_name, methods)

    async def _predict(self, call: Call) -> None:
        job = await self._submitted(call)
        async with replying(self._context, call.facts, job) as reply:
            answer = await attend(self._context, collect(reply.events(-1)), resumable=job.detached)
        end = end_of(answer)
        text = "".join(choice.text for _, choice in answer.choices)
        await call.write(prediction(text, end.usage))

    async def _stream(self, call: Call) -> None:
        job = await self._submitted(call)
        async with replying(self._context, call.facts, job) as reply:
            written = write_events(call, reply.events(-1), prediction_messages)
            end = await attend(self._context, written, resumable=job.detached)
        if (error := ending(end)) is not None:
            raise error

    async def _submitted(self, call: Call) -> SubmittedJob:
        message = await call.read(pb.PredictRequest)
        return await submit(self._context, call, partial(chat_submission, message))
