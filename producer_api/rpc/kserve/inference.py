"""The methods that infer: one request and its response, or a stream of both."""

from __future__ import annotations

import asyncio
import hashlib
import time
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from producer_api.admission.gateway import Admission
from producer_api.admission.idempotency import IdempotencyKey
from producer_api.auth.principal import Principal
from producer_api.http.headers import REPLAYED
from producer_api.http.open_streams import shutdown_error
from producer_api.http.sse import Events
from producer_api.kserve.parameters import InferCall
from producer_api.kserve.served_models import ServedModel, find
from producer_api.kserve.submission import KIND, submit
from producer_api.kserve.tensor_generation import results_of
from producer_api.observability.request_log import CLIENT_CLOSED, RequestFacts
from producer_api.rpc.call import Call
from producer_api.rpc.generation import KEY_METADATA, SubmittedJob, attend, replying
from producer_api.rpc.kserve import kserve_pb2 as pb
from producer_api.rpc.kserve.messages import empty_final, infer_call, response, stream_error
from producer_api.services import Context
from shared.errors import HeadraceError, InvalidRequest
from shared.token_log.answer import collect, ending, result_of

MAX_IN_FLIGHT = 64  # requests of one stream


async def infer(context: Context, call: Call) -> None:
    """Answer ModelInfer."""
    message = await call.read(pb.ModelInferRequest)
    model = await _model(context, call.caller, message, streamed=False)
    made = await call.off_loop(partial(infer_call, message))
    key = _key(call, message)
    admission = await submit(context, call.caller, model, made.work, key)
    call.add_metadata(REPLAYED if admission.joined else {})
    job = SubmittedJob(admission, key)
    async with replying(context, call.facts, job) as reply:
        answer = await attend(context, collect(reply.events(-1)), resumable=job.detached)
    result = result_of(answer)
    size = sum(len(tensor.data) for tensor in result.tensors)
    await call.write(await context.threads.run(size, partial(response, result, made, model.spec)))


async def _model(
    context: Context, caller: Principal, message: pb.ModelInferRequest, *, streamed: bool
) -> ServedModel:
    """Return the model of a request, which is ready. Raises as `find`; InvalidRequest, NotSupported."""
    model = await find(context, caller, message.model_name, message.model_version)
    model.check_tensors(streamed=streamed)
    model.check_ready()
    return model


def _key(call: Call, message: pb.ModelInferRequest) -> IdempotencyKey | None:
    """Return the client's key for this message. Raises InvalidRequest."""
    if not (given := call.metadata_values(KEY_METADATA)):
        return None
    body = hashlib.sha256(message.SerializeToString(deterministic=True)).hexdigest()
    return IdempotencyKey.from_header(given, tenant=call.caller.tenant, kind=KIND, body=body)


@dataclass(frozen=True)
class _Begun:
    """A request of a stream that was submitted."""

    call: InferCall
    model: ServedModel
    admission: Admission


class InferStream:
    """Answers ModelStreamInfer: requests are submitted in their order, and computed at the same time.

    Responses come in the order of their requests, except those of decoupled models, which are written as they come.
    Each request is logged as a call of its own.

    Args:
        route: of the method, in the log.
    """

    def __init__(self, context: Context, call: Call, route: str) -> None:
        self._context = context
        self._call = call
        self._route = route
        self._places = asyncio.Semaphore(MAX_IN_FLIGHT)
        self._writing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._before = asyncio.Event()  # set once all earlier ordered responses are written
        self._before.set()

    async def run(self) -> None:
        """Answer all requests. Raises InvalidRequest, MalformedBody for a message that is not one."""
        if self._call.metadata_values(KEY_METADATA):
            raise InvalidRequest(f"{KEY_METADATA} is not supported for streams", param=KEY_METADATA)
        try:
            async for message in self._call.messages(pb.ModelInferRequest):
                await self._places.acquire()
                await self._start(message)
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _start(self, message: pb.ModelInferRequest) -> None:
        """Submit a request, and start the task that answers it."""
        facts = RequestFacts(self._call.facts.client, time.perf_counter(), self._call.facts.principal)
        begun: _Begun | HeadraceError
        try:
            begun = await self._begin(message)
        except HeadraceError as error:
            begun = error
        except Exception:  # noqa: BLE001  logged below
            begun = self._context.request_logger.failure(facts)
        before, after = self._before, self._before
        if isinstance(begun, HeadraceError) or not begun.model.spec.decoupled:
            after = self._before = asyncio.Event()
        task = asyncio.create_task(self._answer(message, facts, begun, before, after))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _begin(self, message: pb.ModelInferRequest) -> _Begun:
        if self._context.open_answers.draining:
            raise shutdown_error()
        caller = self._call.caller
        model = await _model(self._context, caller, message, streamed=True)
        made = await self._context.threads.run(message.ByteSize(), partial(infer_call, message))
        return _Begun(made, model, await submit(self._context, caller, model, made.work, None))

    async def _answer(
        self,
        message: pb.ModelInferRequest,
        facts: RequestFacts,
        begun: _Begun | HeadraceError,
        before: asyncio.Event,
        after: asyncio.Event,
    ) -> None:
        status = CLIENT_CLOSED
        try:
            if isinstance(begun, HeadraceError):
                raise begun
            await self._write_responses(message, facts, begun, before)
            status = 200
        except HeadraceError as error:
            await before.wait()
            await self._write(stream_error(message, error))
            status, facts.refusal = error.status, error.code
        except Exception:  # noqa: BLE001  logged here
            failure = self._context.request_logger.failure(facts)
            await self._write(stream_error(message, failure))
            status, facts.refusal = failure.status, failure.code
        finally:
            after.set()
            self._places.release()
            self._context.request_logger.write(facts, method="gRPC", route=self._route, status=status)

    async def _write_responses(
        self, message: pb.ModelInferRequest, facts: RequestFacts, begun: _Begun, before: asyncio.Event
    ) -> None:
        async with replying(self._context, facts, SubmittedJob(begun.admission, None)) as reply:
            if begun.model.spec.decoupled:
                await attend(self._context, self._write_all(message, begun, reply.events(-1)), resumable=False)
                return
            answer = await attend(self._context, collect(reply.events(-1)), resumable=False)
        made = response(result_of(answer), begun.call, begun.model.spec, final=True)
        await before.wait()
        await self._write(pb.ModelStreamInferResponse(infer_response=made))

    async def _write_all(self, message: pb.ModelInferRequest, begun: _Begun, events: Events) -> None:
        """Write the responses of a decoupled model as they come. Raises the error that it ended with."""
        async with aclosing(events):
            async for event in events:
                if event is None:
                    continue
                for result in results_of(event):
                    made = response(result, begun.call, begun.model.spec, final=False)
                    await self._write(pb.ModelStreamInferResponse(infer_response=made))
                if event.terminal is not None and (error := ending(event.terminal)) is not None:
                    raise error
        if begun.call.empty_final:
            await self._write(empty_final(message))

    async def _write(self, message: pb.ModelStreamInferResponse) -> None:
        async with self._writing:
            await self._call.write(message)
