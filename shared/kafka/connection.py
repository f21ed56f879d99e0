"""How kafka-python reaches the brokers that the settings name: addresses, TLS, SASL. It knows no records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.net.sasl.oauth import AbstractTokenProvider

from shared.config import Settings
from shared.errors import ConfigError

HEADROOM = 64 * 1024  # bytes of a record beside its value


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """A bearer token, read anew for each connection from a file that somebody else keeps fresh."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def token(self) -> str:
        """Raises OSError where it cannot be read."""
        return self._path.read_text(encoding="ascii").strip()


def connection(settings: Settings) -> dict[str, Any]:
    """The options that consumers, producers and admins of kafka-python share.

    Raises ConfigError where settings are missing or contradict each other.
    """
    if not settings.kafka_bootstrap:
        raise ConfigError("kafka_bootstrap names no broker", param="kafka_bootstrap")
    options: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in settings.kafka_bootstrap.split(",")],
        "client_id": "headrace",
        "security_protocol": settings.kafka_security_protocol,
        **_sasl(settings),
    }
    for option, path in (
        ("ssl_cafile", settings.kafka_ssl_cafile),
        ("ssl_certfile", settings.kafka_ssl_certfile),
        ("ssl_keyfile", settings.kafka_ssl_keyfile),
    ):
        if path is not None:
            options[option] = str(path)
    if settings.kafka_api_version is not None:
        options["api_version"] = tuple(int(part) for part in settings.kafka_api_version.split("."))
    return options


def _sasl(settings: Settings) -> dict[str, Any]:
    wanted = settings.kafka_security_protocol.startswith("SASL_")
    mechanism = settings.kafka_sasl_mechanism
    if not wanted:
        if mechanism is not None:
            raise ConfigError(
                "kafka_sasl_mechanism needs kafka_security_protocol SASL_PLAINTEXT or SASL_SSL",
                param="kafka_sasl_mechanism",
            )
        return {}
    if mechanism is None:
        raise ConfigError("SASL needs kafka_sasl_mechanism", param="kafka_sasl_mechanism")
    if mechanism == "OAUTHBEARER":
        if settings.kafka_token_file is None:
            raise ConfigError("OAUTHBEARER needs kafka_token_file", param="kafka_token_file")
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": TokenFile(settings.kafka_token_file)}
    if settings.kafka_username is None or settings.kafka_password is None:
        raise ConfigError(f"{mechanism} needs kafka_username and kafka_password", param="kafka_username")
    return {
        "sasl_mechanism": mechanism,
        "sasl_plain_username": settings.kafka_username,
        "sasl_plain_password": settings.kafka_password.get_secret_value(),
    }


def producer(settings: Settings, **options: Any) -> KafkaProducer:
    """One that waits for all replicas and writes nothing twice. Raises ConfigError, kafka.errors.KafkaError."""
    options = {"max_request_size": settings.max_body_bytes + HEADROOM, **options}
    return KafkaProducer(**connection(settings), acks="all", enable_idempotence=True, **options)


def consumer(settings: Settings, **options: Any) -> KafkaConsumer:
    """One that sees only what was committed, and commits nothing by itself. Raises as `producer`."""
    most = settings.max_body_bytes + HEADROOM
    return KafkaConsumer(
        **connection(settings),
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=most,
        **options,
    )
