"""Writer of results, dead letters and offsets in one transaction: readers of committed records see each once.

All calls block, and come from one thread.

References: KIP-98 (transactions), KIP-447 (the group's generation fences former owners of a partition).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from kafka import ConsumerGroupMetadata, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError, MessageSizeTooLargeError

from shared.kafka.connection import producer
from shared.kafka.message import Outgoing
from shared.settings import Settings

TRANSACTION_TIMEOUT_MS = 10_000  # until the brokers abort the transaction of a dead worker; readers wait that long
MAX_RECORD_BYTES = 2**26  # the brokers' own limit is lower, and decides
METADATA_TIMEOUT_MS = 10_000  # also for the start of a transaction


class TransactionalWriter:
    """Transactional producer, recreated after any failure, so that the outcome of a transaction is known."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._id = f"headrace-{secrets.token_hex(8)}"
        self._producer: KafkaProducer | None = None

    def write(
        self,
        records: Sequence[Outgoing],
        offsets: Mapping[TopicPartition, tuple[int, str]],
        group: ConsumerGroupMetadata,
    ) -> None:
        """Write all records and offsets, or none.

        Raises:
            MessageSizeTooLargeError: a record is too long for its topic; nothing was written.
            KafkaError: the committed offsets show whether the transaction was written.
        """
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
            if any(isinstance(future.exception, MessageSizeTooLargeError) for future in futures):
                raise MessageSizeTooLargeError(str(error)) from error
            raise

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
            self._producer = producer(self._settings, **options)
            self._producer.init_transactions()
        return self._producer

    def close(self) -> None:
        if self._producer is not None:
            failed, self._producer = self._producer, None
            failed.close(timeout=1)
