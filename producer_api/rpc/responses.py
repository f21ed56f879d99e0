"""Jobs, models, events and predictions as gRPC messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from google.protobuf.json_format import ParseDict

from producer_api.rpc import inference_pb2 as pb
from producer_api.rpc.prediction_pb2 import PredictResponse, PredictUsage
from shared.models.worker_registry import ModelInfo
from shared.protocol import CallDelta, ErrorInfo, StopReason, Terminal, Token, TokenEvent
from shared.protocol import Usage as TokenUsage
from shared.schemas.common_fields import Usage
from shared.schemas.native.jobs import Job
from shared.schemas.openai.logprobs import prompt_logprobs
from shared.token_log.answer import ending

HTTP_ONLY = ("object", "links")  # fields of a job


def job_message(job: Job) -> pb.Job:
    fields = {name: value for name, value in msgspec.to_builtins(job).items() if name not in HTTP_ONLY}
    for choice in fields.get("choices") or ():
        for call in choice.get("tool_calls", ()):
            del call["type"]
        choice.update(_stop_reason(choice.pop("stop_reason", None)))
    if (logprobs := fields.get("prompt_logprobs")) is not None:
        fields["prompt_logprobs"] = [{"tokens": each or {}} for each in logprobs]
    return ParseDict(fields, pb.Job())


def model_message(info: ModelInfo, workers_ready: int) -> pb.Model:
    return pb.Model(
        id=info.name,
        created=info.created,
        owned_by="headrace",
        max_model_len=info.max_model_len or None,
        task=info.task,
        runtime=info.runtime if info.announced else None,
        max_num_seqs=info.max_num_seqs or None,
        workers_ready=workers_ready,
    )


def event_messages(event: TokenEvent) -> list[pb.Event]:
    """Return the messages of an event: its tokens, if any, then its end, if any."""
    found = []
    if event.tokens:
        tokens = pb.Tokens(seq=event.seq, tokens=[_token(each) for each in event.tokens])
        _add_prompt(tokens, event.prompt)
        found.append(pb.Event(tokens=tokens))
    if event.terminal is not None:
        end = _end(event.last_seq, event.terminal)
        if not event.tokens:
            _add_prompt(end, event.prompt)
        found.append(pb.Event(end=end))
    return found


def prediction(text: str, usage: TokenUsage | None) -> PredictResponse:
    """Return a text, with the usage at the end of an answer."""
    if usage is None:
        return PredictResponse(text=text)
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    counts = PredictUsage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)
    return PredictResponse(text=text, usage=counts)


def prediction_messages(event: TokenEvent) -> list[PredictResponse]:
    """Return the message of an event that adds text, or completes the answer."""
    text, end = "".join(token.text for token in event.tokens), event.terminal
    usage = end.usage if end is not None and ending(end) is None else None
    return [prediction(text, usage)] if text or usage is not None else []


def _add_prompt(message: pb.Tokens | pb.End, prompt: Sequence[Token]) -> None:
    message.prompt_token_ids.extend(token.id for token in prompt)
    if any(token.logprobs is not None for token in prompt):
        for logprobs in prompt_logprobs(prompt):
            tokens = msgspec.to_builtins(logprobs or {}, str_keys=False)
            message.prompt_logprobs.append(
                pb.PromptLogprobs(tokens={i: pb.PromptLogprob(**each) for i, each in tokens.items()})
            )


def _token(token: Token) -> pb.Token:
    return pb.Token(
        choice=token.choice,
        id=token.id,
        text=token.text,
        finish_reason=token.finish_reason,
        logprobs=_logprobs(token),
        tool_calls=[_call(each) for each in token.calls],
        reasoning=token.reasoning or None,
        **_stop_reason(token.stop_reason),
    )


def _stop_reason(reason: StopReason | None) -> dict[str, Any]:
    """Return the field of the oneof that holds it."""
    if reason is None:
        return {}
    return {"stop_token_id": reason} if isinstance(reason, int) else {"stop_string": reason}


def _call(delta: CallDelta) -> pb.ToolCallDelta:
    return pb.ToolCallDelta(index=delta.index, arguments=delta.arguments, name=delta.name or None)


def _logprobs(token: Token) -> pb.Logprobs | None:
    if (found := token.logprobs) is None:
        return None
    top = [
        pb.TopToken(id=each, text=text, logprob=logprob, bytes=found.exact.get(each))
        for each, logprob, text in found.top
    ]
    return pb.Logprobs(text=found.piece, logprob=found.logprob, top=top, bytes=found.exact.get(token.id))


def _end(seq: int, end: Terminal) -> pb.End:
    return pb.End(
        seq=seq,
        state=end.state.value,
        usage=ParseDict(msgspec.to_builtins(Usage.from_usage(end.usage)), pb.Usage()),
        error=None if end.error is None else _error(end.error),
    )


def _error(error: ErrorInfo) -> pb.Error:
    return pb.Error(code=error.code, message=error.message, param=error.param)
