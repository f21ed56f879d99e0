"""Connections of kafka-python to the brokers in the settings: addresses, TLS, SASL."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RecordListTooLargeError
from kafka.net.sasl.oauth import AbstractTokenProvider

from shared.errors import ConfigError, Unavailable
from shared.kafka.client_internals import (
    ClosingClient,
    DirectSocket,
    accept_any_header_name,
    close_at_once,
    limit_transactions,
)
from shared.settings import Settings

MAX_OVERHEAD_BYTES = 64 * 1024  # of a record besides its value
FIRST_ANSWER_MS = 10_000  # for the first answer of any broker
SIZE_ERRORS = (MessageSizeTooLargeError, RecordListTooLargeError)  # of a record that is too large for its topic
RECENT_S = 15.0  # for which a failed connection explains a timeout
MAX_ERROR_CHARS = 400
HANDSHAKE_LIMIT_S = 5.0  # for a TLS handshake with a broker
TRANSACTION_LIMIT_S = 10.0  # for each answer in a transaction


class TokenFile(AbstractTokenProvider):  # type: ignore[misc]
    """Bearer token from a file that another program keeps up to date; read for each connection."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def token(self) -> str:
        """Read the token. Raises OSError."""
        return self._path.read_text(encoding="ascii").strip()


def connection(settings: Settings) -> dict[str, Any]:
    """Return the options shared by kafka-python's consumers, producers and admin clients.

    Raises ConfigError if settings are missing or contradict each other, or a file cannot be used.
    """
    if not settings.kafka_bootstrap:
        raise ConfigError("kafka_bootstrap must name at least one broker", param="kafka_bootstrap")
    options: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in settings.kafka_bootstrap.split(",")],
        "bootstrap_timeout_ms": FIRST_ANSWER_MS,
        "client_id": "headrace",
        "proxy_url": f"{DirectSocket.SCHEMES[0]}://",
        "security_protocol": settings.kafka_security_protocol,
        **_sasl(settings),
    }
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = _trust(settings)
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


def _trust(settings: Settings) -> ssl.SSLContext:
    param = "kafka_ssl_cafile"
    try:
        context = ssl.create_default_context(cafile=settings.kafka_ssl_cafile)
        if settings.kafka_ssl_certfile is not None:
            param = "kafka_ssl_certfile"
            context.load_cert_chain(settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile)
    except OSError as error:
        raise ConfigError(f"{param} cannot be used: {error}", param=param) from error
    context.sslsocket_class = _Handshake
    return context


class _Handshake(ssl.SSLSocket):
    """TLS socket with a limit on the handshake, for which kafka-python (3.0.12) has none; its thread waits here.

    kafka-python does not close the socket of a failed handshake either.
    """

    def do_handshake(self, block: bool = False) -> None:
        self.settimeout(HANDSHAKE_LIMIT_S)
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise
        self.setblocking(False)


class _Failures(logging.Handler):
    """Last failure of a connection, from the log: kafka-python retries until its timeout and reports only that."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._last, self._until = "", 0.0

    def emit(self, record: logging.LogRecord) -> None:
        self._last = record.getMessage().rpartition("Connection lost: ")[2]
        self._until = time.monotonic() + RECENT_S

    def last(self) -> str:
        return self._last if time.monotonic() < self._until else ""


_failures = _Failures()
logging.getLogger("kafka.net.connection").addHandler(_failures)


def explained(error: Exception) -> str:
    """Return an error's text for the operator; for a timeout, with the reason of a recent failed connection."""
    text = str(error) if isinstance(error, KafkaError) else f"{type(error).__name__}: {error}"
    if isinstance(error, KafkaTimeoutError) and (reason := _failures.last()):
        text = f"{text}: {reason}"
    return text[:MAX_ERROR_CHARS]


def unavailable(error: KafkaError) -> Unavailable:
    """Return the error for a failing Kafka, with its text for the operator."""
    return Unavailable(f"Kafka is unavailable: {explained(error)}")


def producer(settings: Settings, **options: Any) -> KafkaProducer:
    """Return an idempotent producer that waits for all replicas. Raises ConfigError, kafka.errors.KafkaError."""
    limit_transactions(TRANSACTION_LIMIT_S)
    options = {
        "max_request_size": settings.max_body_bytes + MAX_OVERHEAD_BYTES,
        "max_block_ms": FIRST_ANSWER_MS,
        **options,
    }
    return _opened(KafkaProducer, **connection(settings), acks="all", enable_idempotence=True, **options)


def close_producer(writer: KafkaProducer, timeout_s: float) -> None:
    """Close a producer; its records that are not sent within `timeout_s` are dropped."""
    try:
        writer.close(timeout=timeout_s)
    except KafkaError:
        close_at_once(writer)


def consumer(settings: Settings, **options: Any) -> KafkaConsumer:
    """Return a consumer of committed records that never commits offsets automatically. Raises as `producer`."""
    accept_any_header_name()
    most = settings.max_body_bytes + MAX_OVERHEAD_BYTES
    return _opened(
        KafkaConsumer,
        **connection(settings),
        enable_auto_commit=False,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=most,
        **options,
    )


def _opened(kind: Callable[..., Any], **options: Any) -> Any:
    """Make a consumer or producer. If that fails, close its client, whose thread and sockets kafka-python keeps."""
    clients: list[ClosingClient] = []

    def client(**given: Any) -> ClosingClient:
        clients.append(ClosingClient(**given))
        return clients[-1]

    try:
        return kind(kafka_client=client, **options)
    except BaseException:
        for each in clients:
            each.close()
        raise
