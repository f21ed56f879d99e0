"""Writer of results, dead letters and offsets in one transaction: readers of committed records see each once.

All calls block, and come from one thread.

References: KIP-98 (transactions), KIP-447 (the group's generation fences former owners of a partition).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kafka import ConsumerGroupMetadata, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import (
    InvalidRecordError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from shared.kafka import topics
from shared.kafka.client_internals import close_at_once, heard_since
from shared.kafka.connection import SIZE_ERRORS, producer
from shared.kafka.message import Outgoing
from shared.settings import Settings

TRANSACTION_TIMEOUT_MS = 10_000  # until the brokers abort the transaction of a dead worker; readers wait that long
MAX_RECORD_BYTES = 2**26  # the brokers' own limit is lower, and decides
METADATA_TIMEOUT_MS = 10_000  # also for the start of a transaction
UNKNOWN_S = 60.0  # for which a reply topic that the brokers do not know is not asked for again: that takes 10 s
MAX_UNKNOWN = 1000  # such topics that are remembered
# Of one record, which the same record would have again.
RECORD_ERRORS = (
    *SIZE_ERRORS,
    InvalidRecordError,
    InvalidTopicError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)


class TransactionalWriter:
    """Transactional producer, recreated after any failure, so that the outcome of a transaction is known."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._id = f"headrace-{secrets.token_hex(8)}"
        self._producer: KafkaProducer | None = None
        self._unknown: dict[str, float] = {}  # topics that the brokers did not know, and until when that holds

    def write(
        self,
        records: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, tuple[int, str]],
        group: ConsumerGroupMetadata,
    ) -> None:
        """Write all records and offsets, or none.

        Raises:
            RECORD_ERRORS: a record cannot be written to its topic; nothing was written.
            KafkaError: the committed offsets show whether the transaction was written.
        """
        self._require_topics({record.topic for record in records})
        futures: list[Any] = []
        try:
            kafka = self.open()
            kafka.begin_transaction()
            futures += [kafka.send(**record.arguments()) for record in records]
            kafka.send_offsets_to_transaction(
                {
                    partition: OffsetAndMetadata(offset, metadata, -1)
                    for partition, (offset, metadata) in offsets.items()
                },
                group,
            )
            kafka.commit_transaction()
            for future in futures:
                future.get(timeout=METADATA_TIMEOUT_MS / 1000)
        except KafkaError as error:
            self.close()
            if refused := [each.exception for each in futures if isinstance(each.exception, RECORD_ERRORS)]:
                raise refused[0] from error
            raise

    def _require_topics(self, names: Iterable[str]) -> None:
        """Raise UnknownTopicOrPartitionError for a topic that the brokers do not know. Raises KafkaError."""
        for name in names:
            now = time.monotonic()
            if self._unknown.get(name, now) > now:
                raise UnknownTopicOrPartitionError(name)
            try:
                self.open().partitions_for(name)
            except KafkaTimeoutError as error:
                if not heard_since(self.open(), now):
                    raise
                if name not in (topics.RESULTS, topics.DEAD_LETTERS):
                    self._remember_unknown(name)
                raise UnknownTopicOrPartitionError(name) from error

    def _remember_unknown(self, name: str) -> None:
        if len(self._unknown) >= MAX_UNKNOWN:
            self._unknown.clear()
        self._unknown[name] = time.monotonic() + UNKNOWN_S

    def open(self) -> KafkaProducer:
        """Return the producer. A new one has the same transactional id, and aborts the transaction of the last."""
        if self._producer is None:
            options: dict[str, Any] = {
                "transactional_id": self._id,
                "transaction_timeout_ms": TRANSACTION_TIMEOUT_MS,
                "max_block_ms": METADATA_TIMEOUT_MS,
                "linger_ms": 1,
                "max_request_size": MAX_RECORD_BYTES,
            }
            made = producer(self._settings, **options)
            try:
                made.init_transactions()
            except BaseException:
                close_at_once(made)
                raise
            self._producer = made
        return self._producer

    def close(self) -> None:
        """Close the producer. A transaction that it has not completed is aborted."""
        if self._producer is not None:
            failed, self._producer = self._producer, None
            close_at_once(failed)
