"""Text is returned in whole characters, adds up to the answer, and never includes part of a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from tests.support.checkpoints import byte_tokenizer
from tests.support.tokenizers import fallback_tokenizer
from workers.engine.text.detokenizer import REPLACEMENT, WINDOW_TOKENS, TextStream, TokenTexts
from workers.engine.text.token_bytes import TokenBytes

TOKENIZER = byte_tokenizer().backend_tokenizer
FALLBACK = fallback_tokenizer()
VOCAB = {token: TOKENIZER.token_to_id(token) for token in ("<eos>",)}
both_tokenizers = pytest.mark.parametrize("tokenizer", [TOKENIZER, FALLBACK], ids=["byte-level", "byte fallback"])


def decode(ids: list[int]) -> str:
    return TOKENIZER.decode(ids, skip_special_tokens=True)


def feed_all(
    ids: list[int],
    stop: tuple[str, ...] = (),
    tokenizer: RustTokenizer = TOKENIZER,
    *,
    early: int = 0,
    shows_stop: bool = False,
) -> tuple[list[str], str | None]:
    """Return the text of each token and of the flush, and the stop string that was found.

    The first `early` tokens cannot stop.
    """
    spelled = TokenBytes(tokenizer)
    texts = TokenTexts(tokenizer.decode) if spelled.joins_bytes else None
    within = spelled.end_within_character
    stream = TextStream(tokenizer.decode, stop, within, shows_stop=shows_stop, texts=texts)
    shown = []
    for number, token_id in enumerate(ids, 1):
        text, found = stream.feed(token_id, may_stop=number > early)
        shown.append(text)
        if found is not None:
            return shown, found
    text, found = stream.flush(may_stop=len(ids) > early)
    return [*shown, text], found


@both_tokenizers
@given(text=st.text(max_size=60))
def test_text_is_complete_and_in_whole_characters(tokenizer: RustTokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    shown, _ = feed_all(ids, tokenizer=tokenizer)
    assert "".join(shown) == tokenizer.decode(ids)
    assert REPLACEMENT in text or all(REPLACEMENT not in part for part in shown)


@both_tokenizers
@given(before=st.text("aé", max_size=2 * WINDOW_TOKENS), cut=st.sampled_from(["é", "水", "🙂"]), data=st.data())
def test_text_ends_before_an_unfinished_character(
    tokenizer: RustTokenizer, before: str, cut: str, data: st.DataObject
) -> None:
    """Given a cut at any byte of the last character, streamed or decoded at once, the text ends before it."""
    missing = data.draw(st.integers(1, len(cut.encode()) - 1))
    ids = tokenizer.encode(before + cut).ids[:-missing]
    assert "".join(feed_all(ids, tokenizer=tokenizer)[0]) == before


@both_tokenizers
def test_bytes_that_begin_no_character_are_replaced(tokenizer: RustTokenizer) -> None:
    ids = tokenizer.encode("aé").ids
    assert "".join(feed_all([*ids[:-2], ids[-1]], tokenizer=tokenizer)[0]) == "a" + REPLACEMENT


@given(st.lists(st.integers(0, 257), max_size=90))
def test_incremental_decoding_equals_decoding_at_once(ids: list[int]) -> None:
    assert "".join(feed_all(ids)[0]).replace(REPLACEMENT, "") == decode(ids).replace(REPLACEMENT, "")


@given(st.binary(max_size=30).map(lambda data: data.decode("utf-8", "replace")))
def test_replacement_characters_are_kept(text: str) -> None:
    assert "".join(feed_all(TOKENIZER.encode(text).ids)[0]) == text


def test_text_is_returned_as_soon_as_it_is_final() -> None:
    shown, _ = feed_all(TOKENIZER.encode("aé🙂b").ids)
    assert shown == ["a", "", "é", "", "", "", "🙂", "b", ""]


def test_special_tokens_are_skipped() -> None:
    assert "".join(feed_all([*TOKENIZER.encode("a").ids, VOCAB["<eos>"], *TOKENIZER.encode("b").ids])[0]) == "ab"


@given(st.text("abé", max_size=40), st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3))
def test_text_ends_before_the_first_stop_string(text: str, stop: list[str]) -> None:
    shown, stopped = feed_all(TOKENIZER.encode(text).ids, tuple(stop))
    # the stop string that is complete first ends the answer; of those, the one that begins first
    ends = [text.index(s) + len(s) for s in stop if s in text]
    cut = min((text[: min(ends)].find(s) for s in stop if s in text[: min(ends)]), default=0) if ends else len(text)
    assert "".join(shown) == text[:cut]
    assert (stopped is not None) == bool(ends)


def vllm_text(ids: list[int], stop: list[str], early: int, *, shows_stop: bool) -> tuple[str, str | None]:
    """Return text and stop string as vLLM's detokenizer has them, which keeps the whole text.

    Of several stop strings that a token completes, vLLM takes the first of the list; here it is the first in the
    text.
    """
    text = ""
    for number in range(1, len(ids) + 1):
        old, text = text, decode(ids[:number]).rstrip(REPLACEMENT)
        if number > early:
            new = len(text) - len(old)
            found = [(at, s) for s in stop if (at := text.find(s, max(0, len(text) - new - len(s) + 1))) >= 0]
            if found:
                at, s = min(found, key=lambda each: each[0])
                return text[: at + len(s) if shows_stop else at], s
    return text, None


@given(
    st.text("abé", max_size=30),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 12),
    st.booleans(),
)
def test_stop_strings_count_after_the_early_tokens(
    text: str, stop: list[str], early: int, shows_stop: bool
) -> None:
    ids = TOKENIZER.encode(text).ids
    shown, found = feed_all(ids, tuple(stop), early=early, shows_stop=shows_stop)
    assert ("".join(shown), found) == vllm_text(ids, stop, early, shows_stop=shows_stop)


def test_only_a_possible_stop_string_is_held_back() -> None:
    shown, stopped = feed_all(TOKENIZER.encode("xabayabc").ids, ("abc",))
    assert (shown, stopped) == (["x", "", "", "ab", "ay", "", "", ""], "abc")
