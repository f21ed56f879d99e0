"""Content codings of bodies."""

from __future__ import annotations

import gzip
import zlib

import pytest

from producer_api.kserve.content_coding import deflate, inflate
from shared.errors import MalformedBody, PayloadTooLarge

DATA = b"water" * 100
CODED = {"gzip": gzip.compress(DATA), "deflate": zlib.compress(DATA)}


@pytest.mark.parametrize("coding", CODED)
def test_a_body_is_inflated_within_its_bound(coding: str) -> None:
    assert inflate(CODED[coding], coding, len(DATA)) == DATA
    with pytest.raises(PayloadTooLarge, match="decompressed body must have at most 499 bytes"):
        inflate(CODED[coding], coding, len(DATA) - 1)


@pytest.mark.parametrize("coding", CODED)
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"x" + data])
def test_a_damaged_body_is_refused(coding: str, change) -> None:
    with pytest.raises(MalformedBody, match=f"not valid {coding}"):
        inflate(change(CODED[coding]), coding, 10_000)


@pytest.mark.parametrize("coding", CODED)
def test_an_answer_is_deflated_for_a_client_that_accepts_one_coding(coding: str) -> None:
    body, headers = deflate(DATA, {"content-type": "a/b"}, f" {coding.upper()}")
    assert headers == {"content-type": "a/b", "content-encoding": coding}
    assert inflate(body, coding, len(DATA)) == DATA


@pytest.mark.parametrize("accepted", ["", "identity", "gzip, deflate", "br", "*"])
def test_an_answer_stays_as_it_is_for_other_clients(accepted: str) -> None:
    assert deflate(DATA, {}, accepted) == (DATA, {})
