"""Answers as OpenAI text completions, complete and in chunks.

Each prompt is a request of its own; choice c of prompt i has the index i * n + c.

Reference: OpenAI API, "The completion object (legacy)".
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from producer_api.answers.answer_form import AnswerForm
from producer_api.answers.openai_chunks import PromptFacts, by_choice, frames, interruption, token_ids
from producer_api.http.errors import openai_error
from shared.errors import HeadraceError
from shared.protocol import FinishReason, Request, Token, TokenEvent
from shared.protocol import Usage as TokenUsage
from shared.schemas.common_fields import Usage, shown_stop_reason
from shared.schemas.openai.completions import Completion, TextChoice, join_text
from shared.schemas.openai.logprobs import TextLogprobs
from shared.token_log.answer import Answer, end_of, ending
from shared.token_log.answer import Choice as AnsweredChoice


def completion_id(request: Request) -> str:
    return "cmpl-" + request.id.removeprefix("req_")


def text_completion(
    requests: Sequence[Request], answer: Answer, form: AnswerForm, fingerprint: str | None = None
) -> Completion:
    """Build the completion of an answer. Raises the error that a request failed with."""
    terminal = end_of(answer)
    generated, found = requests[0].params.n, dict(answer.choices)
    choices = []
    for part, request in enumerate(requests):
        made = [found[i] for i in range(part * generated, (part + 1) * generated) if i in found]
        prompt = made[0].prompt if made else ()
        for rank, choice in enumerate(_best(made, form.returned)):
            choices.append(_choice(part * form.returned + rank, request, choice, prompt, form))
    first = requests[0]
    usage = Usage.from_usage(terminal.usage)
    return Completion(
        completion_id(first),
        int(first.created_at),
        first.named_model,
        choices,
        usage,
        system_fingerprint=fingerprint,
    )


def _choice(
    index: int, request: Request, choice: AnsweredChoice, prompt: Sequence[Token], form: AnswerForm
) -> TextChoice:
    before, echoed = (_echo(request, prompt), prompt) if form.echo else ("", ())
    facts = PromptFacts.from_prompt(request, prompt)
    return TextChoice(
        index,
        before + choice.text,
        choice.finish_reason or FinishReason.STOP,
        _logprobs(request, [*echoed, *choice.tokens], 0, form) if form.logprobs else None,
        prompt_token_ids=facts.token_ids,
        token_ids=token_ids(choice.tokens) if request.params.return_token_ids else msgspec.UNSET,
        prompt_logprobs=facts.logprobs,
        stop_reason=shown_stop_reason(choice.stop_reason),
    )


def _logprobs(request: Request, tokens: Sequence[Token], offset: int, form: AnswerForm) -> TextLogprobs:
    top = request.params.logprobs or 0
    return TextLogprobs.from_tokens(tokens, offset, top=top, as_ids=form.tokens_as_ids)


def _best(choices: Sequence[AnsweredChoice], count: int) -> Sequence[AnsweredChoice]:
    """Return the best `count` choices, in their order if there are no others."""
    return choices if len(choices) <= count else ranked(choices)[:count]


def ranked(choices: Sequence[AnsweredChoice]) -> list[AnsweredChoice]:
    """Return the choices by the mean log-probability of their tokens, the highest first."""
    return sorted(choices, key=_mean_logprob, reverse=True)


def _mean_logprob(choice: AnsweredChoice) -> float:
    values = [token.logprobs.logprob for token in choice.tokens if token.logprobs is not None]
    return sum(values) / len(values) if values else 0.0


def _echo(request: Request, prompt: Sequence[Token]) -> str:
    """Return the text of the prompt, decoded from its tokens if it was sent as token ids."""
    return request.prompt if isinstance(request.prompt, str) else join_text(prompt)


class TextFraming:
    """Frames of a streamed text completion.

    Each choice has its prompt, if it is asked for, and its text; the usage, if asked for, and [DONE] follow.

    Args:
        after: the last seq of each request that the client has; those tokens are counted but not sent again.
        prompt_tokens: number of tokens of each prompt, for a stream that does not start at the first event.
        resumable: the client can resume the stream.
        fingerprint: the fingerprint of the model.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        form: AnswerForm,
        *,
        after: Sequence[int],
        prompt_tokens: Sequence[int],
        resumable: bool,
        fingerprint: str | None = None,
    ) -> None:
        first = requests[0]
        self._requests = requests
        self._n = first.params.n
        self._form = form
        self._logprobs = first.params.logprobs is not None
        self._token_ids = first.params.return_token_ids
        self._after = after
        self._prompt_tokens = list(prompt_tokens)
        self._resumable = resumable
        self._offsets = [0] * (len(requests) * self._n)
        usage = None if form.include_usage else msgspec.UNSET
        self._chunk = Completion(
            completion_id(first),
            int(first.created_at),
            first.named_model,
            [],
            usage,
            system_fingerprint=fingerprint,
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
        if self._form.include_usage:
            chunks.append(self._usage_chunk(event.terminal.usage))
        return frames(event.place, [*chunks, b"[DONE]"])

    def interruption(self, error: HeadraceError) -> bytes:
        return interruption(error, resumable=self._resumable)

    def _texts(self, event: TokenEvent) -> list[bytes]:
        part = (event.tokens or event.prompt)[0].choice // self._n
        new = event.after(self._after[part])
        if self._form.continuous_usage:
            self._count(part, event)
        begins = event.seq == 0 and (self._form.echo or event.prompt)
        echoes = self._beginning(part, event.prompt) if begins else []
        chunks = echoes if new.seq == 0 else []
        for token in event.tokens[: len(event.tokens) - len(new.tokens)]:
            self._offsets[token.choice] += len(token.text)
        for index, tokens in by_choice(new.tokens):
            reason = tokens[-1].finish_reason
            text = join_text(tokens)
            if text or self._logprobs or self._token_ids or reason is not None:
                chunks.append(self._choice(index, text, tokens, reason))
        return chunks

    def _count(self, part: int, event: TokenEvent) -> None:
        """Set the usage of the prompt `part` up to this event."""
        if event.prompt_usage is not None:
            self._prompt_tokens[part] = event.prompt_usage.tokens
        self._chunk.usage = Usage.from_counts(self._prompt_tokens[part], event.seq + len(event.tokens))

    def _beginning(self, part: int, prompt: Sequence[Token]) -> list[bytes]:
        """Return a chunk for each choice with what is asked for about its prompt."""
        request = self._requests[part]
        text, echoed = (_echo(request, prompt), prompt) if self._form.echo else ("", ())
        facts = PromptFacts.from_prompt(request, prompt)
        return [self._choice(part * self._n + c, text, echoed, None, facts) for c in range(self._n)]

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[Token],
        reason: FinishReason | None,
        facts: PromptFacts | None = None,
    ) -> bytes:
        """Return a chunk of generated tokens or, with `facts`, of those of the prompt."""
        logprobs = None
        if self._logprobs:
            logprobs = _logprobs(self._requests[index // self._n], tokens, self._offsets[index], self._form)
        choice = TextChoice(index, text, reason, logprobs)
        if facts is not None:
            choice.prompt_token_ids, choice.prompt_logprobs = facts.token_ids, facts.logprobs
        elif self._token_ids:
            choice.token_ids = token_ids(tokens)
        self._offsets[index] += len(text)
        choice.stop_reason = shown_stop_reason(tokens[-1].stop_reason if tokens else None)
        self._chunk.choices = [choice]
        return self._encode(self._chunk)

    def _usage_chunk(self, usage: TokenUsage) -> bytes:
        return self._encode(msgspec.structs.replace(self._chunk, choices=[], usage=Usage.from_usage(usage)))
