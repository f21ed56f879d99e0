"""Signs what is sent by the Standard Webhooks scheme: HMAC-SHA256 of id, time and body, one signature per secret.

Reference: standard-webhooks/standard-webhooks, spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

from shared.errors import ConfigError

PREFIX = "whsec_"
LEAST, MOST = 24, 64  # bytes of a secret


class Signer:
    """Signs with every secret, so that receivers may know either while one is replaced.

    Args:
        secrets: `whsec_` and base64, separated by spaces or commas. Raises ConfigError, which tells none of them.
    """

    def __init__(self, secrets: str) -> None:
        self._keys = [_key(secret) for secret in secrets.replace(",", " ").split()]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def headers(self, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """`timestamp` in seconds since the epoch."""
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
    if not secret.startswith(PREFIX) or not LEAST <= len(key) <= MOST:
        raise ConfigError(
            f"webhook_secrets must be {PREFIX} and {LEAST} to {MOST} bytes in base64, several with spaces between",
            param="webhook_secrets",
        )
    return key
