"""Webhook signatures: the test vector of the standard, and the verifier in docs/webhooks.md."""

from __future__ import annotations

import time

import pytest

from producer_api.webhooks.signing import Signer
from shared.errors import ConfigError
from tests.support.webhook_receiver import OTHER, SECRET, documented


def test_signatures_match_the_standards_test_vector() -> None:
    """Reference: the libraries of Standard Webhooks."""
    headers = Signer(SECRET).headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_documented_verifier_accepts_every_secret() -> None:
    verify, body, now = documented(), b'{"a": 1}', int(time.time())
    headers = Signer(f"{SECRET}, {OTHER}").headers("msg_1", now, body)
    for secret in (SECRET, OTHER):
        verify(secret, headers, body)
    old = Signer(SECRET).headers("msg_1", now - 600, body)
    for secret, given, text in (
        ("whsec_" + "c" * 40, headers, body),
        (SECRET, headers, body + b" "),
        (SECRET, {**headers, "webhook-id": "msg_2"}, body),
        (SECRET, old, body),
    ):
        with pytest.raises(ValueError, match=r"fits|old"):
            verify(secret, given, text)


@pytest.mark.parametrize("secret", ["MfKQ", "whsec_", "whsec_short", "whsec_!!", "whsec_" + "a" * 200])
def test_a_bad_secret_is_refused_and_not_shown(secret: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Signer(f"{SECRET} {secret}")
    assert SECRET not in refused.value.message
    assert refused.value.param == "webhook_secrets"
    assert not Signer("")
