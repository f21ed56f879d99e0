"""Recordings of jobs: the response that shows one, and the body that runs its request again."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from pydantic import Field

from shared.errors import InvalidRequest
from shared.protocol import PROTOCOL_VERSION, Recording, Request
from shared.schemas.base import Body
from shared.schemas.common_fields import WireFinishReason
from shared.token_log.answer import Answer, Choice
from shared.validation.sampling_parameters import MAX_TOKEN_ID

MAX_SHOWN_CHARS = 200  # of an error of msgspec, which may quote the request


class RecordedChoice(msgspec.Struct):
    """One choice of a recorded answer, with the text that each of its tokens added."""

    index: int
    token_ids: list[int]
    texts: list[str]
    finish_reason: WireFinishReason | None

    @classmethod
    def from_choice(cls, index: int, choice: Choice) -> RecordedChoice:
        ids = [token.id for token in choice.tokens]
        return cls(index, ids, [token.text or token.reasoning for token in choice.tokens], choice.finish_reason)


class JobRecording(msgspec.Struct, kw_only=True):
    """A completed job: its request, as POST /v1/recordings takes it, and its answer, token by token.

    `fingerprint` is that of the worker that completed it, and `computation` names what it was made of. `runs` is
    the number of workers that ran the job in turn.
    """

    object: Literal["recording"] = "recording"
    job_id: str
    model: str
    request: dict[str, Any]
    prompt_token_ids: list[int]
    choices: list[RecordedChoice]
    fingerprint: str
    computation: dict[str, str]
    runs: int

    @classmethod
    def from_recording(cls, job_id: str, recording: Recording, answer: Answer) -> JobRecording:
        request = msgspec.structs.replace(
            recording.request.as_named(), id="", tenant="default", created_at=0.0, deadline=None
        )
        return cls(
            job_id=job_id,
            model=request.model,
            request=msgspec.to_builtins(request, str_keys=True),
            prompt_token_ids=list(recording.prompt),
            choices=[RecordedChoice.from_choice(index, choice) for index, choice in answer.choices],
            fingerprint=recording.fingerprint,
            computation=recording.computation,
            runs=recording.runs,
        )


class RecordedRequest(Body):
    """Body of POST /v1/recordings: `request` and `prompt_token_ids` of a recording."""

    request: dict[str, Any] = Field(description="the request, as a recording has it")
    prompt_token_ids: list[int] = Field(
        description="token ids of its prompt, which is not encoded again", min_length=1
    )

    def to_request(self, tenant: str) -> Request:
        """Return the draft that admission completes. Raise InvalidRequest if it is not that of a recording."""
        try:
            request = msgspec.convert({**self.request, "id": ""}, Request, str_keys=True)
        except msgspec.ValidationError as error:
            reason = str(error)[:MAX_SHOWN_CHARS].encode(errors="replace").decode()
            raise InvalidRequest(f"request must be that of a recording: {reason}", param="request") from error
        if request.work is not None:
            raise InvalidRequest("request must ask for text: work must be absent", param="request")
        if not all(0 <= token_id <= MAX_TOKEN_ID for token_id in self.prompt_token_ids):
            raise InvalidRequest(f"prompt_token_ids must be between 0 and {MAX_TOKEN_ID}", param="prompt_token_ids")
        return msgspec.structs.replace(
            request,
            recorded_prompt=tuple(self.prompt_token_ids),
            tenant=tenant,
            deadline=None,
            created_at=0.0,
            adapter=None,  # admission finds that of the name
            version=PROTOCOL_VERSION,
        )
