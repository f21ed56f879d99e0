"""Tokens that a sequence accepts, as its answer shows them."""

from __future__ import annotations

from typing import Any

from shared.protocol import CallDelta, FinishReason, SamplingParams, Token
from workers.engine.sequence import Sequence
from workers.engine.text.detokenizer import TextStream, TokenTexts

EOS, STOP = 0, 1


def decode(ids: list[int]) -> str:
    return "".join(chr(ord("a") + each) for each in ids)


def sequence(params: SamplingParams, **fields: Any) -> Sequence:
    text = TextStream(decode, params.stop, texts=TokenTexts(decode))
    return Sequence("r", 0, 0, params, [9], 1, 3, frozenset({EOS}), text, **fields)


class EveryText:
    """Tool parser that takes each text for arguments."""

    has_call = False

    def feed(self, text: str, *, last: bool, cut: bool) -> tuple[str, tuple[CallDelta, ...]]:
        return "", (CallDelta(0, arguments=text),)


def test_the_text_of_a_token_is_shown_unless_it_ends_the_choice() -> None:
    running = sequence(SamplingParams(stop_token_ids=(STOP,)))
    assert running.accept(2) == Token(0, 2, "c")
    assert running.accept(STOP) == Token(0, STOP, "", FinishReason.STOP, stop_reason=STOP)
    assert sequence(SamplingParams()).accept(EOS) == Token(0, EOS, "", FinishReason.STOP)
    assert sequence(SamplingParams(ignore_eos=True)).accept(EOS) == Token(0, EOS, "a")
    assert sequence(SamplingParams(stop=("cd",))).accept(2) == Token(0, 2, "")
    running = sequence(SamplingParams())
    found = [running.accept(each) for each in (2, 3, 4)]
    assert found == [Token(0, 2, "c"), Token(0, 3, "d"), Token(0, 4, "e", FinishReason.LENGTH)]
    assert running.text.length == 3


def test_a_tool_parser_gets_the_text_of_each_token() -> None:
    assert sequence(SamplingParams(), tool_parser=EveryText()).accept(2) == Token(
        0, 2, "", calls=(CallDelta(0, arguments="c"),)
    )
