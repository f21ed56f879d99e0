"""Answers to raw prompts in TGI's shape, complete and token by token.

Reference: text-generation-inference, router/src/server.rs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from msgspec import UNSET

from producer_api.answers.completions import ranked
from producer_api.answers.openai_chunks import frames, interruption
from producer_api.http.errors import incomplete_stream, tgi_error
from producer_api.schemas.tgi import GenerateRequest
from producer_api.schemas.tgi_answers import (
    BestOfSequence,
    GeneratedToken,
    Generation,
    GenerationChunk,
    GenerationDetails,
    PrefillToken,
    StreamDetails,
    TgiFinishReason,
    TokenizedChat,
    TokenSpan,
)
from shared.errors import HeadraceError
from shared.protocol import FinishReason, Request, Result, StopReason, Token, TokenEvent
from shared.token_log.answer import Answer, Choice, end_of, ending


@dataclass(frozen=True)
class GenerationForm:
    """Form of an answer, as far as only its body asks for it.

    Attributes:
        prefix: text to start the answer with.
        prefill: show the prompt's tokens.
        top_tokens: show the likeliest tokens.
        seeded: tokens are drawn at random, by the seed of the request.
    """

    prefix: str
    detailed: bool
    prefill: bool
    top_tokens: bool
    seeded: bool

    @classmethod
    def from_body(cls, body: GenerateRequest) -> GenerationForm:
        given = body.given
        return cls(
            prefix=body.inputs if given.return_full_text else "",
            detailed=given.detailed,
            prefill=bool(given.decoder_input_details),
            top_tokens=bool(given.top_n_tokens),
            seeded=given.samples,
        )

    def seed_of(self, request: Request) -> int | None:
        """Return the seed as an unsigned integer; None if nothing was drawn."""
        return request.params.seed % 2**64 if self.seeded else None


def generation(request: Request, answer: Answer, form: GenerationForm) -> Generation:
    """Build the answer with the likeliest choice. Raises the error that the request failed with."""
    end_of(answer)
    best, *others = _choices(answer)
    made = Generation(form.prefix + best.text)
    if form.detailed:
        shown = [_sequence(request, each, answer.prompt, form) for each in (best, *others)]
        fields = msgspec.structs.asdict(shown[0])
        del fields["generated_text"]
        made.details = GenerationDetails(**fields, best_of_sequences=shown[1:] if request.params.n > 1 else UNSET)
    return made


def _choices(answer: Answer) -> list[Choice]:
    """Return the choices, the likeliest first; an empty one for an answer without any."""
    return ranked([choice for _, choice in answer.choices]) or [Choice()]


def _sequence(request: Request, choice: Choice, prompt: Sequence[Token], form: GenerationForm) -> BestOfSequence:
    return BestOfSequence(
        generated_text=form.prefix + choice.text,
        finish_reason=_finish_reason(choice.finish_reason, choice.stop_reason),
        generated_tokens=len(choice.tokens),
        seed=form.seed_of(request),
        prefill=[_prefill_token(token) for token in prompt] if form.prefill else [],
        tokens=[_generated_token(token) for token in choice.tokens],
        top_tokens=[_top_tokens(token) for token in choice.tokens] if form.top_tokens else UNSET,
    )


def _finish_reason(reason: FinishReason | None, stop: StopReason | None) -> TgiFinishReason:
    if reason is None or not reason.complete:
        return "length"
    return "stop_sequence" if isinstance(stop, str) else "eos_token"


def _prefill_token(token: Token) -> PrefillToken:
    return PrefillToken(token.id, token.text, None if token.logprobs is None else token.logprobs.logprob)


def _generated_token(token: Token) -> GeneratedToken:
    """Return a token with the text that it adds; a special token, which adds none, with its spelling."""
    scored = token.logprobs
    if scored is None:
        return GeneratedToken(token.id, token.text, None, special=False)
    special = scored.exact.get(token.id) == b""
    text = token.text + scored.piece if special else token.text
    return GeneratedToken(token.id, text, scored.logprob, special)


def _top_tokens(token: Token) -> list[GeneratedToken]:
    scored = token.logprobs
    if scored is None:
        return []
    return [GeneratedToken(i, piece, logprob, scored.exact.get(i) == b"") for i, logprob, piece in scored.top]


def generation_headers(answer: Answer, validation_s: float, total_s: float) -> dict[str, str]:
    """Return TGI's headers about an answer: its times in milliseconds, except x-compute-time.

    Args:
        validation_s: seconds until the request was queued.
        total_s: seconds until the answer was complete.
    """
    end = end_of(answer)
    generated = len(_choices(answer)[0].tokens)
    inference_s = max(0.0, total_s - validation_s - end.waited)
    milliseconds = {
        "x-total-time": total_s,
        "x-validation-time": validation_s,
        "x-queue-time": end.waited,
        "x-inference-time": inference_s,
        "x-time-per-token": inference_s / max(1, generated),
    }
    return {
        "x-compute-time": str(total_s),
        **{name: str(round(1000 * seconds)) for name, seconds in milliseconds.items()},
        "x-prompt-tokens": str(end.usage.prompt_tokens),
        "x-generated-tokens": str(generated),
    }


class GenerationFraming:
    """Frames of a streamed answer: one for each token; the last has the whole text.

    Args:
        after: the last seq that the client has; those tokens are counted but not sent again.
        resumable: the client can resume the stream.
    """

    def __init__(self, request: Request, form: GenerationForm, *, after: int, resumable: bool) -> None:
        self._form = form
        self._seed = form.seed_of(request)
        self._after = after
        self._resumable = resumable
        self._text = form.prefix
        self._prompt_tokens = 0
        self._encode = msgspec.json.Encoder().encode

    def opening(self) -> bytes:
        return b""

    def event(self, event: TokenEvent) -> bytes:
        if event.prompt_usage is not None:
            self._prompt_tokens = event.prompt_usage.tokens
        chunks = []
        for seq, token in enumerate(event.tokens, event.seq):
            self._text += token.text
            if seq > self._after:
                chunks.append(self._encode(self._chunk(seq + 1, token)))
        if event.terminal is not None and (error := ending(event.terminal)) is not None:
            chunks.append(self._encode(tgi_error(error)))
        return frames(event.place, chunks)

    def interruption(self, error: HeadraceError) -> bytes:
        return interruption(error, resumable=self._resumable, to_body=incomplete_stream)

    def _chunk(self, index: int, token: Token) -> GenerationChunk:
        chunk = GenerationChunk(index, _generated_token(token))
        if self._form.top_tokens:
            chunk.top_tokens = _top_tokens(token)
        if token.finish_reason is not None:
            chunk.generated_text = self._text
            if self._form.detailed:
                reason = _finish_reason(token.finish_reason, token.stop_reason)
                chunk.details = StreamDetails(reason, index, self._seed, self._prompt_tokens)
        return chunk


def token_spans(text: str, result: Result) -> list[TokenSpan]:
    """Return the tokens of a text with their places in its bytes; empty places for those that it does not have."""
    spans, at, start = [], 0, 0
    for token_id, piece in zip(result.tokens, result.pieces, strict=True):
        if not text.startswith(piece, at):
            spans.append(TokenSpan(token_id, "", 0, 0))
            continue
        stop = start + len(piece.encode())
        spans.append(TokenSpan(token_id, piece, start, stop))
        at, start = at + len(piece), stop
    return spans


def tokenized_chat(result: Result) -> TokenizedChat:
    """Return the text and the tokens of a chat."""
    text = "".join(result.pieces)
    return TokenizedChat(token_spans(text, result), text)
