"""Triton's generate extension for models that generate text: its body as a completion, and its responses."""

from __future__ import annotations

from typing import Any

import msgspec

from producer_api.kserve.served_models import ONLY_VERSION, TEXT_INPUT, TEXT_OUTPUT, ServedModel
from producer_api.kserve.tensor_generation import fields_of, frame
from producer_api.schemas.kserve import GenerateBody
from shared.errors import HeadraceError, InvalidRequest
from shared.protocol import TokenEvent
from shared.schemas.openai.completions import CompletionRequest, join_text
from shared.schemas.parsing import validate_plain
from shared.token_log.answer import Answer, end_of, ending

_RENAMED = ("stream", "model", "prompt")  # set by the route


def completion(body: GenerateBody, model: ServedModel, *, strict_fields: bool) -> CompletionRequest:
    """Return the equivalent body of /v1/completions. Raises InvalidRequest."""
    fields = fields_of(body)
    prompt = fields.pop(TEXT_INPUT, None)
    if not prompt or not isinstance(prompt, str):
        raise InvalidRequest(f"{TEXT_INPUT} must be a string that is not empty", param=TEXT_INPUT)
    given = {name: value for name, value in fields.items() if name not in _RENAMED}
    made = validate_plain(
        {**given, "model": model.spec.name, "prompt": prompt}, CompletionRequest, strict_fields=strict_fields
    )
    if made.returned != 1:
        raise InvalidRequest("n must be 1", param="n")
    return made


class TextResponses:
    """Responses to one request: the whole text, or frames with what each event adds to it."""

    def __init__(self, body: GenerateBody, model: ServedModel) -> None:
        self._head: dict[str, Any] = {"id": body.id} if body.id else {}
        version = model.version or next((each.version for each in model.status.ready), ONLY_VERSION)
        self._head |= {"model_name": model.spec.name, "model_version": version}

    def whole(self, answer: Answer) -> bytes:
        """Return the JSON of the answer. Raises the error that the request failed with."""
        end_of(answer)
        return self._response("".join(choice.text for _, choice in answer.choices))

    def opening(self) -> bytes:
        return b""

    def event(self, event: TokenEvent) -> bytes:
        text = join_text(event.tokens)
        frames = frame(self._response(text)) if text else b""
        error = ending(event.terminal) if event.terminal is not None else None
        return frames if error is None else frames + self.interruption(error)

    def interruption(self, error: HeadraceError) -> bytes:
        return frame(msgspec.json.encode({"error": error.message}))

    def _response(self, text: str) -> bytes:
        return msgspec.json.encode({**self._head, TEXT_OUTPUT: text})
