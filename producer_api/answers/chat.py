"""Answers as OpenAI chat completions, complete and in chunks.

Reference: OpenAI API, "The chat completion object" and "The chat completion chunk object".
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from producer_api.answers.answer_form import AnswerForm
from producer_api.answers.openai_chunks import PromptFacts, by_choice, frames, interruption, token_ids
from producer_api.http.errors import openai_error
from shared.errors import HeadraceError
from shared.protocol import FinishReason, Request, StopReason, Token, TokenEvent
from shared.protocol import Usage as TokenUsage
from shared.schemas.common_fields import Usage, shown_stop_reason
from shared.schemas.openai.chat import (
    AnswerMessage,
    ChatCompletion,
    Choice,
    Chunk,
    ChunkChoice,
    Delta,
)
from shared.schemas.openai.logprobs import Logprobs
from shared.schemas.tools import DeltaCall, collect_calls
from shared.token_log.answer import Answer, end_of, ending


def completion_id(request: Request) -> str:
    return "chatcmpl-" + request.id.removeprefix("req_")


def completion(
    request: Request, answer: Answer, form: AnswerForm, fingerprint: str | None = None
) -> ChatCompletion:
    """Build the chat completion of an answer. Raises the error that the request failed with."""
    terminal = end_of(answer)
    before = _echo(request) if form.echo else ""
    facts = PromptFacts.from_prompt(request, answer.prompt)
    return ChatCompletion(
        id=completion_id(request),
        created=int(request.created_at),
        model=request.named_model,
        choices=[
            Choice(
                index,
                AnswerMessage.from_text(
                    before + choice.text, choice.reasoning, collect_calls(choice.tokens, request.id, index)
                ),
                choice.finish_reason or FinishReason.STOP,
                Logprobs.from_tokens(choice.tokens, as_ids=form.tokens_as_ids),
                token_ids=token_ids(choice.tokens) if request.params.return_token_ids else msgspec.UNSET,
                stop_reason=shown_stop_reason(choice.stop_reason),
            )
            for index, choice in answer.choices
        ],
        usage=Usage.from_usage(terminal.usage),
        system_fingerprint=fingerprint,
        prompt_token_ids=facts.token_ids,
        prompt_logprobs=facts.logprobs,
    )


def _echo(request: Request) -> str:
    """Return the text of the last message if the answer has the same role, which an answer usually begins."""
    assert request.messages is not None
    last = request.messages[-1]
    role = "assistant" if request.prompt_options.add_generation_prompt else last.role
    return last.content if last.role == role else ""


class ChatFraming:
    """Frames of a streamed chat completion.

    Each choice has a role, text and tool calls, and a finish reason; the usage, if asked for, and [DONE] follow.
    The frames of an event depend only on the request and the event: any replica continues with the same bytes.

    Args:
        fingerprint: the fingerprint of the model.
        after: the last seq that the client has; the role is sent only from the start.
        prompt_tokens: number of the prompt's tokens, for a stream that does not start at the first event.
        resumable: the client can resume the stream.
    """

    def __init__(
        self,
        request: Request,
        form: AnswerForm,
        *,
        fingerprint: str | None = None,
        after: int = -1,
        prompt_tokens: int = 0,
        resumable: bool = False,
    ) -> None:
        self._request = request
        self._form = form
        self._id = request.id
        self._n = request.params.n
        self._logprobs = request.params.logprobs is not None
        self._token_ids = request.params.return_token_ids
        self._begun = after >= 0
        self._prompt_tokens = prompt_tokens
        self._resumable = resumable
        usage = None if form.include_usage else msgspec.UNSET
        self._chunk = Chunk(
            completion_id(request),
            int(request.created_at),
            request.named_model,
            [],
            system_fingerprint=fingerprint,
            usage=usage,
        )
        self._encode = msgspec.json.Encoder().encode

    def opening(self) -> bytes:
        return b""

    def event(self, event: TokenEvent) -> bytes:
        chunks: list[bytes] = []
        if self._form.continuous_usage:
            self._count(event)
        empty = event.terminal.empty_choices if event.terminal is not None else 0
        if not self._begun and (event.tokens or event.prompt or empty):
            self._begun = True
            chunks += self._beginning(event.prompt)
        for index, tokens in by_choice(event.tokens):
            chunks += self._added(index, tokens)
        for token in event.tokens:
            if token.finish_reason is not None:
                chunks.append(
                    self._choice(token.choice, Delta(), token.finish_reason, stop_reason=token.stop_reason)
                )
        chunks += [self._choice(i, Delta(), FinishReason.LENGTH) for i in range(empty)]
        if event.terminal is not None:
            if (error := ending(event.terminal)) is not None:
                return frames(event.place, [*chunks, self._encode(openai_error(error))])
            if self._form.include_usage:
                chunks.append(self._usage_chunk(event.terminal.usage))
            chunks.append(b"[DONE]")
        return frames(event.place, chunks)

    def interruption(self, error: HeadraceError) -> bytes:
        return interruption(error, resumable=self._resumable)

    def _count(self, event: TokenEvent) -> None:
        """Set the usage up to this event."""
        if event.prompt_usage is not None:
            self._prompt_tokens = event.prompt_usage.tokens
        self._chunk.usage = Usage.from_counts(self._prompt_tokens, event.seq + len(event.tokens))

    def _beginning(self, prompt: Sequence[Token]) -> list[bytes]:
        """Return the chunks before those of tokens: each choice's role, with the prompt, and its echo."""
        facts = PromptFacts.from_prompt(self._request, prompt)
        self._chunk.prompt_token_ids, self._chunk.prompt_logprobs = facts.token_ids, facts.logprobs
        chunks = [self._choice(i, Delta(content="", role="assistant")) for i in range(self._n)]
        self._chunk.prompt_token_ids = self._chunk.prompt_logprobs = msgspec.UNSET
        if self._form.echo and (text := _echo(self._request)):
            chunks += [self._choice(i, Delta(text)) for i in range(self._n)]
        return chunks

    def _added(self, index: int, tokens: Sequence[Token]) -> list[bytes]:
        """Return the chunks of tokens of one choice: of its reasoning, its text, its calls."""
        text, reasoning = _texts(tokens)
        logprobs = Logprobs.from_tokens(tokens, as_ids=self._form.tokens_as_ids) if self._logprobs else None
        chunks = []
        if reasoning:
            thought = Delta(reasoning_content=reasoning, reasoning=reasoning)
            if text:
                chunks.append(self._choice(index, thought))
            else:
                chunks.append(self._choice(index, thought, logprobs=logprobs, tokens=tokens))
        if text or (not reasoning and (logprobs is not None or self._token_ids)):
            chunks.append(self._choice(index, Delta(text), logprobs=logprobs, tokens=tokens))
        for call in (call for token in tokens for call in token.calls):
            chunks.append(self._choice(index, Delta(tool_calls=[DeltaCall.from_delta(call, self._id, index)])))
        return chunks

    def _choice(
        self,
        index: int,
        delta: Delta,
        finish_reason: FinishReason | None = None,
        *,
        logprobs: Logprobs | None = None,
        tokens: Sequence[Token] = (),
        stop_reason: StopReason | None = None,
    ) -> bytes:
        ids = token_ids(tokens) if tokens and self._token_ids else msgspec.UNSET
        shown = shown_stop_reason(stop_reason)
        self._chunk.choices = [ChunkChoice(index, delta, finish_reason, logprobs, token_ids=ids, stop_reason=shown)]
        return self._encode(self._chunk)

    def _usage_chunk(self, usage: TokenUsage) -> bytes:
        return self._encode(msgspec.structs.replace(self._chunk, choices=[], usage=Usage.from_usage(usage)))


def _texts(tokens: Sequence[Token]) -> tuple[str, str]:
    """Return what tokens add to the text and to the reasoning. There is nearly always one."""
    if len(tokens) == 1:
        return tokens[0].text, tokens[0].reasoning
    return "".join([token.text for token in tokens]), "".join([token.reasoning for token in tokens])
