"""A text has at least as many tokens as its byte bound, and one with too many is not tokenized."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, normalizers, pre_tokenizers
from tokenizers import Tokenizer as RustTokenizer

from shared.errors import ContextLengthExceeded, InvalidRequest
from shared.protocol import Message
from tests.support.checkpoints import byte_tokenizer
from workers.engine.text.byte_bound import ByteBound
from workers.engine.text.tokenizer import Tokenizer


def rust() -> RustTokenizer:
    made: RustTokenizer = byte_tokenizer().backend_tokenizer
    return made


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Tokenizer:
    return Tokenizer(smollm2)


@pytest.fixture(scope="module")
def bound(real: Tokenizer) -> ByteBound:
    found = ByteBound.from_tokenizer(real.hf.backend_tokenizer)
    assert found is not None
    return found


@settings(deadline=None)
@given(st.text() | st.text(alphabet="-= \n\t/*#") | st.text(alphabet="\x04\x13éñ\U000f0000😀"))
def test_no_text_has_fewer_tokens_than_its_bound(real: Tokenizer, bound: ByteBound, text: str) -> None:
    assert bound.min_tokens(text.encode()) <= len(real.encode(text, special=False))


@pytest.mark.parametrize("text", ["=" * 5_000, " " * 5_000, "\n" * 5_000, "\x04" * 5_000, "😀" * 5_000])
def test_runs_with_long_tokens_stay_within_the_bound(real: Tokenizer, bound: ByteBound, text: str) -> None:
    assert bound.min_tokens(text.encode()) <= len(real.encode(text, special=False))


def test_text_that_cannot_fit_is_refused_without_tokenizing(real: Tokenizer) -> None:
    emoji = "😀" * 990_000
    with patch.object(real, "_backend") as backend:
        with pytest.raises(ContextLengthExceeded, match=r"8192 tokens.*3960000 bytes") as refused:
            real.encode(emoji, most_tokens=8192, param="input")
        with pytest.raises(ContextLengthExceeded) as chat:
            real.encode_chat([Message("user", emoji)], most_tokens=8192)
        assert not backend.encode_batch_fast.called
    assert (refused.value.param, chat.value.param) == ("input", "messages")


def test_lone_surrogate_is_refused(real: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        real.encode("a\ud800")


def test_other_tokenizers_have_no_bound(minilm: Path) -> None:
    assert ByteBound.from_tokenizer(Tokenizer(minilm).hf.backend_tokenizer) is None
    lower, stripping, removing = rust(), rust(), rust()
    lower.normalizer = normalizers.Lowercase()
    stripping.add_special_tokens([AddedToken("<pad>", lstrip=True)])
    split = pre_tokenizers.Split(" ", "removed")
    removing.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(use_regex=False)])
    for made in (lower, stripping, removing):
        assert ByteBound.from_tokenizer(made) is None


def test_nfc_may_shorten_a_text_to_a_third() -> None:
    plain, composing = rust(), rust()
    composing.normalizer = normalizers.NFC()
    bounds = [ByteBound.from_tokenizer(each) for each in (plain, composing)]
    assert [bound and bound.max_bytes_per_token for bound in bounds] == [5, 15]
    text = "\u1112\u1161\u11ab" * 100
    assert bounds[1] is not None
    assert bounds[1].min_tokens(text.encode()) <= len(composing.encode(text).ids)
