"""Instances of TritonPythonModel."""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared.errors import EngineFailed, HeadraceError, InvalidRequest, NotFound, Unavailable
from shared.repository.spec import ModelSpec
from workers.predictors.interface import Arrays, Execution
from workers.predictors.triton_python import description
from workers.predictors.triton_python.pb_utils import (
    TRITONSERVER_RESPONSE_COMPLETE_FINAL,
    InferenceRequest,
    InferenceResponse,
    Tensor,
    TritonError,
    TritonModelException,
)

MAX_UNREAD = 16  # responses, before a model that sends more has to wait
ERRORS: dict[int, type[HeadraceError]] = {
    TritonError.INVALID_ARG: InvalidRequest,
    TritonError.NOT_FOUND: NotFound,
    TritonError.UNAVAILABLE: Unavailable,
}
Response = InferenceResponse | Exception | None  # None ends a request


class TritonPredictor:
    """An instance of the user's class.

    A response with an error, or a TritonModelException, raises the error that corresponds to its code.
    """

    memory_bytes = 0  # its process reports what it needs

    def __init__(self, model: Any, spec: ModelSpec, folder: Path) -> None:
        self._model = model
        self._decoupled = spec.decoupled
        self._name = spec.name
        if hasattr(model, "initialize"):
            model.initialize(description.arguments(spec, folder))

    def predict(self, call: Execution) -> Arrays:
        sender = _Sender()
        responses = self._execute(call, sender)
        if responses is None:  # the model has used the sender
            return next(sender.outputs())
        if len(responses) != 1:
            raise EngineFailed(f"the model returned {len(responses)} responses to one request")
        return _outputs(responses[0])

    def stream(self, call: Execution) -> Iterator[Arrays]:
        if not self._decoupled:
            yield self.predict(call)
            return
        sender = _Sender()
        thread = threading.Thread(target=self._execute_decoupled, args=(call, sender), daemon=True)
        thread.start()
        try:
            yield from sender.outputs()
        finally:
            sender.cancel()
            thread.join()

    def close(self) -> None:
        if hasattr(self._model, "finalize"):
            self._model.finalize()

    def _execute(self, call: Execution, sender: _Sender) -> Any:
        request = InferenceRequest(
            inputs=[Tensor(name, array) for name, array in call.inputs.items()],
            requested_output_names=call.outputs,
            model_name=self._name,
            parameters=call.parameters,
            sender=sender,
        )
        try:
            returned = self._model.execute([request])
            return asyncio.run(returned) if inspect.iscoroutine(returned) else returned
        except TritonModelException as error:
            raise _error(error) from error

    def _execute_decoupled(self, call: Execution, sender: _Sender) -> None:
        try:
            self._execute(call, sender)
        except Exception as error:  # noqa: BLE001  the thread that reads the responses raises it
            sender.fail(error)


class _Sender:
    """The responses of one request, from the model's threads to the one that reads them."""

    def __init__(self) -> None:
        self._responses: queue.Queue[Response] = queue.Queue(MAX_UNREAD)
        self._cancelled = threading.Event()

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if response is not None:
            self._put(response)
        if flags & TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self._put(None)

    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def fail(self, error: Exception) -> None:
        self._put(error)

    def cancel(self) -> None:
        """Discard further responses."""
        self._cancelled.set()
        with self._responses.mutex:
            self._responses.queue.clear()
            self._responses.not_full.notify_all()

    def outputs(self) -> Iterator[Arrays]:
        while (response := self._responses.get()) is not None:
            if isinstance(response, Exception):
                raise response
            yield _outputs(response)

    def _put(self, response: Response) -> None:
        if not self._cancelled.is_set():
            self._responses.put(response)


def _outputs(response: InferenceResponse) -> Arrays:
    error = response.error()
    if error is not None:
        raise _error(error)
    return {each.name(): each.as_numpy() for each in response.output_tensors()}


def _error(error: TritonModelException) -> HeadraceError:
    code = error.code() if isinstance(error, TritonError) else TritonError.INTERNAL
    return ERRORS.get(code, EngineFailed)(str(error))
