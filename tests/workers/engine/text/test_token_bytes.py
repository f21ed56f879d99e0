"""The bytes of an answer's tokens, joined, are the bytes of its text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models

from tests.support.checkpoints import byte_tokenizer
from tests.support.tokenizers import SPACE, fallback_tokenizer
from workers.engine.text.token_bytes import TokenBytes
from workers.engine.text.tokenizer import Tokenizer


def joined(tokenizer: RustTokenizer, ids: list[int]) -> bytes:
    return b"".join(map(TokenBytes(tokenizer), ids))


@pytest.mark.parametrize("tokenizer", [byte_tokenizer().backend_tokenizer, fallback_tokenizer()])
@given(text=st.text("a é水🙂\N{REPLACEMENT CHARACTER}", max_size=30))
def test_bytes_of_all_tokens_are_those_of_the_text(tokenizer: RustTokenizer, text: str) -> None:
    assert joined(tokenizer, tokenizer.encode(text).ids) == text.encode()


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Tokenizer:
    return Tokenizer(smollm2)


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 49_151), max_size=20))
def test_bytes_of_a_real_vocabulary(real: Tokenizer, ids: list[int]) -> None:
    assert b"".join(map(real.token_bytes, ids)).decode(errors="replace") == real.decode_all(ids)


def test_the_space_that_a_text_does_not_begin_with_is_dropped() -> None:
    """Given an answer of a sentencepiece model, whose first token begins a word."""
    tokenizer = fallback_tokenizer()
    word, letter = (tokenizer.token_to_id(entry) for entry in (SPACE + "a", "a"))
    token_bytes = TokenBytes(tokenizer)
    assert token_bytes(word, first=True) + token_bytes(word) == tokenizer.decode([word, word]).encode()
    assert token_bytes(letter, first=True) == b"a"
    level = byte_tokenizer().backend_tokenizer
    assert TokenBytes(level)(level.encode(" ").ids[0], first=True) == b" "


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_drops_the_first_space(scheme: str) -> None:
    tokenizer = RustTokenizer(models.BPE(vocab={SPACE + "a": 0}, merges=[]))
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme=scheme)
    token_bytes = TokenBytes(tokenizer)
    assert token_bytes(0, first=True) + token_bytes(0) == tokenizer.decode([0, 0]).encode()


def test_a_special_token_is_its_own_spelling() -> None:
    tokenizer = byte_tokenizer().backend_tokenizer
    assert TokenBytes(tokenizer)(tokenizer.token_to_id("<eos>")) == b"<eos>"


def test_an_id_without_a_token_has_no_bytes() -> None:
    assert TokenBytes(byte_tokenizer().backend_tokenizer)(100_000) == b""


def test_a_word_piece_is_its_text() -> None:
    tokenizer = RustTokenizer(models.WordPiece(vocab={"[UNK]": 0, "mill": 1, "##s": 2}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    assert TokenBytes(tokenizer)(1) == b"mill"
