"""Bounds on the tokens of prompts and answers."""

from __future__ import annotations

import pytest

from shared.errors import ContextLengthExceeded
from shared.protocol import Message, Request, SamplingParams
from shared.validation.length_limits import LengthLimits


def asking(max_tokens: int | None = None, *, refuse_overflow: bool = False) -> Request:
    params = SamplingParams(max_tokens=max_tokens)
    return Request(id="r", model="m", prompt="x", params=params, refuse_overflow=refuse_overflow)


def test_without_settings_the_engine_decides() -> None:
    LengthLimits(100).check(asking(50), 90)
    LengthLimits(100).check(asking(), 200)


@pytest.mark.parametrize(
    ("limits", "max_tokens", "prompt_tokens", "text"),
    [
        (
            LengthLimits(100),
            50,
            51,
            r"tokens \+ `max_new_tokens` must be <= 100. Given: 51 `inputs` tokens and 50 `",
        ),
        (LengthLimits(3000), 2000, 1977, r"<= 3000. Given: 1977 `inputs` tokens and 1024 `max_new_tokens`$"),
        (LengthLimits(100, total_tokens=60), 10, 51, r"<= 60. Given: 51 "),
        (LengthLimits(100), None, 100, r"^`inputs` must have less than 99 tokens. Given: 100$"),
        (LengthLimits(100, input_tokens=7), None, 8, r"^`inputs` must have less than 7 tokens. Given: 8$"),
    ],
)
def test_tgis_requests_are_refused_in_its_words(
    limits: LengthLimits, max_tokens: int | None, prompt_tokens: int, text: str
) -> None:
    request = asking(max_tokens, refuse_overflow=True)
    with pytest.raises(ContextLengthExceeded, match=text) as refused:
        limits.check(request, prompt_tokens)
    assert refused.value.param == "inputs"
    limits.check(request, prompt_tokens - 1)


def test_other_requests_are_refused_by_the_settings_alone() -> None:
    limits = LengthLimits(1000, input_tokens=20, total_tokens=50)
    with pytest.raises(ContextLengthExceeded, match=r"^prompt must have at most 20 tokens, got 21$"):
        limits.check(asking(), 21)
    with pytest.raises(
        ContextLengthExceeded, match=r"^prompt and max_tokens must have at most 50 tokens together, "
    ):
        limits.check(asking(31), 20)
    chat = Request(id="r", model="m", messages=(Message("user", "x"),))
    with pytest.raises(ContextLengthExceeded, match=r"^messages must have at most 20 tokens") as refused:
        limits.check(chat, 21)
    assert refused.value.param == "messages"
    limits.check(asking(30), 20)
    with pytest.raises(ContextLengthExceeded, match="at most 49 tokens, got 50"):
        LengthLimits(1000, total_tokens=50).check(asking(), 50)


def test_longer_answers_are_cut_to_what_the_prompt_leaves() -> None:
    limits = LengthLimits(5000, total_tokens=2000)
    limits.check(asking(3000), 900)
    fitted = limits.fit(SamplingParams(max_tokens=3000, min_tokens=1500), 900)
    assert (fitted.max_tokens, fitted.min_tokens) == (1100, 1100)
    assert limits.fit(SamplingParams(max_tokens=5), 900).max_tokens == 5
