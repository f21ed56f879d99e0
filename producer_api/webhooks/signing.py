"""Standard Webhooks signatures: HMAC-SHA256 of id, time and body, one signature per secret.

Reference: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from shared.errors import ConfigError

PREFIX = "whsec_"
MIN_SECRET_BYTES, MAX_SECRET_BYTES = 24, 64


class Signer:
    """Signs with every secret, so that a receiver may have the old or the new one while a secret is replaced.

    Args:
        secrets: each `whsec_` and base64, separated by spaces or commas. Raises ConfigError, which shows no secret.
    """

    def __init__(self, secrets: str) -> None:
        self._keys = [_key(secret) for secret in secrets.replace(",", " ").split()]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def headers(self, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """Return the headers of a webhook; `timestamp` is in seconds since the Unix epoch."""
        signed = f"{webhook_id}.{timestamp}.".encode() + body
        signatures = [base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode() for key in self._keys]
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not secret.startswith(PREFIX) or not MIN_SECRET_BYTES <= len(key) <= MAX_SECRET_BYTES:
        raise ConfigError(
            f"webhook_secrets must each be {PREFIX} and {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} bytes in base64; "
            "separate them with spaces or commas",
            param="webhook_secrets",
        )
    return key
