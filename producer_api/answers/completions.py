"""Answers as OpenAI text completions, complete and in chunks.

Each prompt is a request of its own; choice c of prompt i has the index i * n + c.

Reference: OpenAI API, "The completion object (legacy)".
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from producer_api.answers.openai_chunks import by_choice, frames, interruption, usage_of
from producer_api.http.errors import openai_error
from shared.errors import HeadraceError
from shared.protocol import FinishReason, Request, Token, TokenEvent, Usage
from shared.schemas.common_fields import shown_stop_reason
from shared.schemas.openai.completions import Completion, TextChoice, TextLogprobs, join_text
from shared.token_log.answer import Answer, end_of, ending
from shared.token_log.answer import Choice as AnsweredChoice


def completion_id(request: Request) -> str:
    return "cmpl-" + request.id.removeprefix("req_")


def text_completion(
    requests: Sequence[Request],
    answer: Answer,
    *,
    echo: bool,
    returned: int,
    logprobs: bool,
    fingerprint: str | None = None,
) -> Completion:
    """Build the completion of an answer. Raises the error that a request failed with.

    Args:
        returned: number of choices of each prompt; if more were generated, those with the highest mean
            log-probability of their tokens, the best first.
        logprobs: return the log-probabilities.
    """
    terminal = end_of(answer)
    generated, found = requests[0].params.n, dict(answer.choices)
    choices = []
    for part, request in enumerate(requests):
        made = [found[i] for i in range(part * generated, (part + 1) * generated) if i in found]
        before = _echo(request, made[0].prompt) if echo and made else ""
        for rank, choice in enumerate(_best(made, returned)):
            scores = TextLogprobs.from_tokens([*made[0].prompt, *choice.tokens], 0) if logprobs else None
            reason = choice.finish_reason or FinishReason.STOP
            text = before + choice.text
            stop_reason = shown_stop_reason(choice.stop_reason)
            choices.append(TextChoice(part * returned + rank, text, reason, scores, stop_reason))
    first = requests[0]
    usage = usage_of(terminal.usage)
    return Completion(
        completion_id(first), int(first.created_at), first.model, choices, usage, system_fingerprint=fingerprint
    )


def _best(choices: Sequence[AnsweredChoice], count: int) -> Sequence[AnsweredChoice]:
    """Return the `count` choices whose tokens have the highest mean log-probability, the best first."""
    if len(choices) <= count:
        return choices
    return sorted(choices, key=_mean_logprob, reverse=True)[:count]


def _mean_logprob(choice: AnsweredChoice) -> float:
    values = [token.logprobs.logprob for token in choice.tokens if token.logprobs is not None]
    return sum(values) / len(values) if values else 0.0


def _echo(request: Request, prompt: Sequence[Token]) -> str:
    """Return the text of the prompt, decoded from its tokens if it was sent as token ids."""
    return request.prompt if isinstance(request.prompt, str) else join_text(prompt)


class TextFraming:
    """Frames of a streamed text completion.

    Each choice has its prompt, if it is echoed, and its text; the usage, if asked for, and [DONE] follow.

    Args:
        after: the last seq of each request that the client has; those tokens are counted but not sent again.
        resumable: the client can resume the stream.
        fingerprint: the fingerprint of the model.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        echo: bool,
        include_usage: bool,
        after: Sequence[int],
        resumable: bool,
        fingerprint: str | None = None,
    ) -> None:
        first = requests[0]
        self._requests = requests
        self._n = first.params.n
        self._logprobs = first.params.logprobs is not None
        self._echo = echo
        self._after = after
        self._resumable = resumable
        self._include_usage = include_usage
        self._offsets = [0] * (len(requests) * self._n)
        usage = None if include_usage else msgspec.UNSET
        self._chunk = Completion(
            completion_id(first), int(first.created_at), first.model, [], usage, system_fingerprint=fingerprint
        )
        self._encode = msgspec.json.Encoder().encode

    def opening(self) -> bytes:
        return b""

    def event(self, event: TokenEvent) -> bytes:
        chunks = self._texts(event) if event.tokens or event.prompt else []
        if event.terminal is None:
            return frames(event.place, chunks)
        chunks += [self._choice(i, "", (), FinishReason.LENGTH) for i in range(event.terminal.empty_choices)]
        if (error := ending(event.terminal)) is not None:
            return frames(event.place, [*chunks, self._encode(openai_error(error))])
        if self._include_usage:
            chunks.append(self._usage_chunk(event.terminal.usage))
        return frames(event.place, [*chunks, b"[DONE]"])

    def interruption(self, error: HeadraceError) -> bytes:
        return interruption(error, resumable=self._resumable)

    def _texts(self, event: TokenEvent) -> list[bytes]:
        part = (event.tokens or event.prompt)[0].choice // self._n
        new = event.after(self._after[part])
        echoes = self._echoes(part, event.prompt) if self._echo and event.seq == 0 else []
        chunks = echoes if new.seq == 0 else []
        for token in event.tokens[: len(event.tokens) - len(new.tokens)]:
            self._offsets[token.choice] += len(token.text)
        for index, tokens in by_choice(new.tokens):
            reason = tokens[-1].finish_reason
            text = join_text(tokens)
            if text or self._logprobs or reason is not None:
                chunks.append(self._choice(index, text, tokens, reason))
        return chunks

    def _echoes(self, part: int, prompt: Sequence[Token]) -> list[bytes]:
        text = _echo(self._requests[part], prompt)
        return [self._choice(part * self._n + c, text, prompt, None) for c in range(self._n)]

    def _choice(self, index: int, text: str, tokens: Sequence[Token], reason: FinishReason | None) -> bytes:
        logprobs = TextLogprobs.from_tokens(tokens, self._offsets[index]) if self._logprobs else None
        self._offsets[index] += len(text)
        stop_reason = tokens[-1].stop_reason if tokens else None
        self._chunk.choices = [TextChoice(index, text, reason, logprobs, shown_stop_reason(stop_reason))]
        return self._encode(self._chunk)

    def _usage_chunk(self, usage: Usage) -> bytes:
        return self._encode(msgspec.structs.replace(self._chunk, choices=[], usage=usage_of(usage)))
