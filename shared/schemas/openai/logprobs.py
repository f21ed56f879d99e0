"""Log-probabilities: OpenAI's form of chats and responses, its form of completions, and vLLM's form of a prompt.

A token that is no whole character is named by its bytes, as OpenAI does: `bytes:\\xf0\\x9f`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from shared.protocol import Token, TokenLogprobs

MAX_TOP = 20  # of the parameters `logprobs` and `prompt_logprobs`


def id_name(token_id: int) -> str:
    """Return the name of a token that no other has, in vLLM's form."""
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
    def from_token(cls, token: Token, *, as_ids: bool = False) -> TokenLogprob:
        """Return the log-probabilities of a token that has them, with ids as names if `as_ids`."""
        found = token.logprobs
        assert found is not None

        def shown(token_id: int, logprob: float, piece: str) -> TopLogprob:
            made = top_logprob(piece, logprob, found.exact.get(token_id))
            return msgspec.structs.replace(made, token=id_name(token_id)) if as_ids and token_id >= 0 else made

        own = shown(token.id, found.logprob, found.piece)
        return cls(own.token, own.logprob, own.bytes, [shown(*each) for each in found.top])


def top_logprob(piece: str, logprob: float, exact: bytes | None) -> TopLogprob:
    """Return the log-probability of a token.

    Args:
        piece: its text alone.
        exact: its bytes, if they are not those of its text.
    """
    return TopLogprob(_name(piece, exact), logprob, list(piece.encode() if exact is None else exact))


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None

    @classmethod
    def from_tokens(cls, tokens: Iterable[Token], *, as_ids: bool = False) -> Logprobs | None:
        """Return those of the tokens that have them, None if none has."""
        content = [TokenLogprob.from_token(token, as_ids=as_ids) for token in tokens if token.logprobs is not None]
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
    def from_tokens(
        cls, tokens: Sequence[Token], offset: int, *, top: int = MAX_TOP, as_ids: bool = False
    ) -> TextLogprobs:
        """Return those of `tokens`.

        Args:
            offset: of the first token.
            top: number of most likely tokens at each.
            as_ids: name tokens by their ids.
        """
        lists = cls([], [], [], [])
        for token in tokens:
            found = token.logprobs
            piece = token.text if found is None else _name(found.piece, found.exact.get(token.id))
            lists.tokens.append(id_name(token.id) if as_ids else piece)
            lists.token_logprobs.append(None if found is None else found.logprob)
            lists.top_logprobs.append(None if found is None else _by_name(token.id, found, top, as_ids=as_ids))
            lists.text_offset.append(offset)
            offset += len(token.text)
        return lists


class PromptLogprob(msgspec.Struct):
    """Log-probability of a token at a position of the prompt; `rank` is 1 for the most likely."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[int, PromptLogprob] | None]  # of each token of a prompt, by id; the first has none


def prompt_logprobs(prompt: Iterable[Token], top: int = MAX_TOP) -> PromptLogprobs:
    """Return the log-probabilities of each token of a prompt and of the `top` most likely ones."""
    return [None if token.logprobs is None else _by_id(token.id, token.logprobs, top) for token in prompt]


def _by_id(token_id: int, found: TokenLogprobs, top: int) -> dict[int, PromptLogprob]:
    logprobs = {token_id: PromptLogprob(found.logprob, found.rank, found.piece)}
    for rank, (each, logprob, piece) in enumerate(found.top[:top], 1):
        logprobs.setdefault(each, PromptLogprob(logprob, rank, piece))
    return logprobs


def _by_name(token_id: int, found: TokenLogprobs, top: int, *, as_ids: bool) -> dict[str, float]:
    """Return the log-probabilities by name. Of two tokens with the same text, the second is named by its id."""
    logprobs: dict[str, float] = {}
    own = (token_id, found.logprob, found.piece)
    for each, logprob, piece in (own, *(other for other in found.top[:top] if other[0] != token_id)):
        name = id_name(each) if as_ids else _name(piece, found.exact.get(each))
        logprobs[id_name(each) if name in logprobs else name] = logprob
    return logprobs


def _name(piece: str, exact: bytes | None) -> str:
    """Return the name of a token: its text alone, or its bytes if it is a part of a character."""
    return "bytes:" + repr(exact)[2:-1] if exact else piece
