"""Chunks of a streamed answer, and the tokens that they add to the log.

A chunk becomes one token, with the id UNKNOWN_ID, unless the server names the tokens in it, by their ids or
log-probabilities. Then each is a token of its own, and the last has the chunk's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Annotated

import msgspec
import structlog

from shared.protocol import CallDelta, FinishReason, StopReason, Token, TokenLogprobs, Usage
from workers.runtimes.upstream.failures import Broken, ErrorBody

MAX_COUNT = 2**31 - 1  # of tokens, and a token id
UNKNOWN_ID = -1  # of a token whose id the server does not send; others of its log-probabilities are below
FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "eos_token": FinishReason.STOP,  # TGI
    "stop_sequence": FinishReason.STOP,  # TGI
    "end_turn": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "content_filter": FinishReason.CONTENT_FILTER,
}
UNFINISHED = ("abort", "error", "cancelled")  # finish reasons of an answer that the server gave up

log = structlog.get_logger(__name__)

TokenId = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]


class Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Call] | None = None


class TopScore(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    id: TokenId | None = None  # llama.cpp


class Score(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[TopScore] | None = None
    id: TokenId | None = None


class Scores(msgspec.Struct):
    """Log-probabilities, in the form of chats (`content`) or of completions (the other fields)."""

    content: list[Score] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None

    def each(self) -> list[Score]:
        if self.content is not None:
            return self.content
        tops = self.top_logprobs or [None] * len(self.tokens or ())
        return [
            Score(token, logprob, None, [TopScore(*item) for item in (top or {}).items()])
            for token, logprob, top in zip(self.tokens or (), self.token_logprobs or (), tops, strict=False)
            if logprob is not None
        ]


class Choice(msgspec.Struct):
    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    stop_reason: StopReason | None = None
    logprobs: Scores | None = None
    token_ids: list[TokenId] | None = None
    prompt_token_ids: list[TokenId] | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class AnswerDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class Counts(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None
    completion_tokens_details: AnswerDetails | None = None

    def usage(self) -> Usage:
        prompt, answer = self.prompt_tokens_details, self.completion_tokens_details
        counts = (
            self.prompt_tokens,
            self.completion_tokens or 0,
            (answer and answer.reasoning_tokens) or 0,
            (prompt and prompt.cached_tokens) or 0,
        )
        if not 0 <= min(counts) <= max(counts) <= MAX_COUNT:
            raise Broken(f"the upstream server sent a count of tokens outside 0 to {MAX_COUNT}")
        return Usage(*counts)


class Chunk(ErrorBody):
    choices: list[Choice] = msgspec.field(default_factory=list)
    usage: Counts | None = None
    prompt_token_ids: list[TokenId] | None = None

    @property
    def prompt_ids(self) -> list[int]:
        """Return the token ids of the prompt, if this chunk has them."""
        return self.prompt_token_ids or next((each.prompt_token_ids for each in self.choices), None) or []


_decode = msgspec.json.Decoder(Chunk).decode


def parse(data: bytes) -> Chunk:
    """Return a chunk. Raises Broken for other data."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # the message may quote the answer
        raise Broken("the upstream server sent an event that is no chunk of an answer") from None


class ChunkReader:
    """Tokens of the chunks of one answer with `n` choices. `include_reasoning` is the request's."""

    def __init__(self, n: int, *, include_reasoning: bool) -> None:
        self._n = n
        self._include_reasoning = include_reasoning
        self._calls: list[list[tuple[int, str]]] = [[] for _ in range(n)]  # index and id at the server
        self._ended: set[int] = set()

    def tokens(self, choice: Choice) -> list[Token]:
        """Return the tokens that a chunk adds to a choice; none after its finish reason. Raises Broken."""
        if not 0 <= choice.index < self._n:
            raise Broken(f"the upstream server sent choice {choice.index} of {self._n}")
        if choice.index in self._ended:
            return []
        delta = choice.delta or Delta()
        text = choice.text or delta.content or delta.refusal or ""
        reasoning = delta.reasoning_content or delta.reasoning or ""
        calls = tuple([self._call(choice.index, call) for call in delta.tool_calls or ()])
        finish = finish_reason(choice.finish_reason)
        scores = choice.logprobs.each() if choice.logprobs else []
        ids = choice.token_ids or []
        if not (text or reasoning or calls or finish or scores or ids):
            return []
        if finish:
            self._ended.add(choice.index)
        last = Token(
            choice.index,
            UNKNOWN_ID,
            text,
            finish,
            None,
            calls,
            reasoning if self._include_reasoning else "",
            bool(reasoning),
            choice.stop_reason if finish else None,
        )
        return _spread(last, ids, scores)

    def _call(self, choice: int, call: Call) -> CallDelta:
        """Return an addition to a call, numbered by the order of the calls' beginnings."""
        function, known = call.function or Function(), self._calls[choice]
        at, name = call.index or 0, function.name or ""
        mine = next((i for i in reversed(range(len(known))) if known[i][0] == at), None)
        if name and mine is not None and call.id and call.id == known[mine][1]:
            name = ""  # some servers repeat the name with each part
        elif name:
            known.append((at, call.id or ""))
            mine = len(known) - 1
        if mine is None:
            raise Broken("the upstream server sent arguments of a tool call without its name")
        return CallDelta(mine, name, function.arguments or "")


def finish_reason(given: str | None) -> FinishReason | None:
    """Return a server's finish reason; an unknown one counts as "stop". Raises Broken for an answer given up."""
    if not given:
        return None
    if given in UNFINISHED:
        raise Broken(f"the upstream server gave the answer up (finish_reason {given})")
    if given not in FINISH_REASONS:
        log.warning("unknown_finish_reason", length=len(given))
    return FINISH_REASONS.get(given, FinishReason.STOP)


def _spread(last: Token, ids: Sequence[int], scores: Sequence[Score]) -> list[Token]:
    """Return a token for each that the server names, the last with everything else of the chunk."""
    if not ids and not scores:
        return [last]
    size = max(len(ids), len(scores))
    if size == 1 and not scores:
        return [msgspec.structs.replace(last, id=ids[0])]
    tokens = []
    for place in range(size):
        score = scores[place] if place < len(scores) else None
        known = ids[place] if place < len(ids) else None if score is None else score.id
        token_id = UNKNOWN_ID if known is None else known
        logprobs = None if score is None else _logprobs(score, token_id)
        token = last if place == size - 1 else Token(last.choice, 0, "", is_reasoning=last.is_reasoning)
        tokens.append(msgspec.structs.replace(token, id=token_id, logprobs=logprobs))
    return tokens


def _logprobs(score: Score, token_id: int) -> TokenLogprobs:
    """Return the log-probabilities of a token. Alternatives without an id get different ones below UNKNOWN_ID."""
    unknown = count(UNKNOWN_ID - 1, -1)
    exact: dict[int, bytes] = {}
    top = []
    _note(exact, token_id, score)
    for each in score.top_logprobs or ():
        same = (each.token, each.bytes) == (score.token, score.bytes)
        each_id = token_id if same else next(unknown) if each.id is None else each.id
        _note(exact, each_id, each)
        top.append((each_id, each.logprob, each.token))
    return TokenLogprobs(score.logprob, tuple(top), score.token, exact)


def _note(exact: dict[int, bytes], token_id: int, score: Score | TopScore) -> None:
    """Record the bytes of a token if they are not those of its text. Raises Broken."""
    if score.bytes is None:
        return
    try:
        found = bytes(score.bytes)
    except ValueError:
        raise Broken("the upstream server sent bytes of a token outside 0 to 255") from None
    if found != score.token.encode(errors="replace"):
        exact[token_id] = found
