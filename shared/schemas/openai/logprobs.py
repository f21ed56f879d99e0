"""Log-probabilities in OpenAI's two forms: of chats and responses, and of completions (legacy).

A token that is no whole character is named by its bytes, as OpenAI does: `bytes:\\xf0\\x9f`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from shared.protocol import Token, TokenLogprobs


def token_name(piece: str, partial: bytes | None) -> str:
    """Return the name of a token: its text alone, or its bytes if they are no whole characters."""
    return piece if partial is None else "bytes:" + repr(partial)[2:-1]


def id_name(token_id: int) -> str:
    """Return the name of a token that no other has."""
    return f"token_id:{token_id}"


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]

    @classmethod
    def from_token(cls, token: Token) -> TokenLogprob:
        """Return the log-probabilities of a token that has them."""
        found = token.logprobs
        assert found is not None
        own = top_logprob(found.piece, found.logprob, found.partial.get(token.id))
        top = [top_logprob(piece, logprob, found.partial.get(each)) for each, logprob, piece in found.top]
        return cls(own.token, own.logprob, own.bytes, top)


def top_logprob(piece: str, logprob: float, partial: bytes | None) -> TopLogprob:
    """Return the log-probability of a token: its text alone, and its bytes if they are no whole characters."""
    return TopLogprob(token_name(piece, partial), logprob, list(partial or piece.encode()))


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None

    @classmethod
    def from_tokens(cls, tokens: Iterable[Token]) -> Logprobs | None:
        """Return those of the tokens that have them, None if none has."""
        content = [TokenLogprob.from_token(token) for token in tokens if token.logprobs is not None]
        return cls(content) if content else None


class TextLogprobs(msgspec.Struct):
    """Log-probabilities by token: the token's name, its log-probability, those of the most likely tokens with its
    own, and its offset in the choice's text, in characters. The first token of an echoed prompt has none.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    @classmethod
    def from_tokens(cls, tokens: Sequence[Token], offset: int) -> TextLogprobs:
        """Return those of `tokens`, the first of which is at `offset`."""
        lists = cls([], [], [], [])
        for token in tokens:
            found = token.logprobs
            lists.tokens.append(token.text if found is None else _name(found, token.id, found.piece))
            lists.token_logprobs.append(None if found is None else found.logprob)
            lists.top_logprobs.append(None if found is None else _by_name(token.id, found))
            lists.text_offset.append(offset)
            offset += len(token.text)
        return lists


def _by_name(token_id: int, found: TokenLogprobs) -> dict[str, float]:
    """Return the log-probabilities by name. Of two tokens with the same text, the second is named by its id."""
    logprobs = {_name(found, token_id, found.piece): found.logprob}
    for each, logprob, piece in found.top:
        if each == token_id:
            continue
        name = _name(found, each, piece)
        logprobs[id_name(each) if name in logprobs else name] = logprob
    return logprobs


def _name(found: TokenLogprobs, token_id: int, piece: str) -> str:
    return token_name(piece, found.partial.get(token_id))
