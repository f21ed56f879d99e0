"""Writes results, dead letters and offsets in one transaction, so that who reads what is committed sees each once.

It knows nothing of requests. All calls block, and come from one thread.

Reference: KIP-98 (transactions), KIP-447 (the group's generation fences an owner that is none any more).
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

TRANSACTION = 10_000  # ms after which the brokers give up what a dead worker had begun; readers wait for that long
MOST_BYTES = 2**26  # of one record, as far as we are asked: a dead letter is as long as the brokers let it be
PATIENCE = 10_000  # ms for a topic's metadata, or to begin


class Results:
    """A transactional producer, made anew after any failure: a transaction's end is then known, not guessed."""

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
        """All or nothing. Raises kafka.errors.KafkaError; then the committed offsets tell what became of it.

        MessageSizeTooLargeError says that a record is too long for its topic, and that nothing was written.
        """
        sent: list[Any] = []
        try:
            writer = self.open()
            writer.begin_transaction()
            sent += [writer.send(**record.arguments()) for record in records]
            writer.send_offsets_to_transaction(
                {place: OffsetAndMetadata(offset, metadata, -1) for place, (offset, metadata) in offsets.items()},
                group,
            )
            writer.commit_transaction()
            for future in sent:
                future.get(timeout=PATIENCE / 1000)
        except KafkaError as error:
            self.close()
            if any(isinstance(future.exception, MessageSizeTooLargeError) for future in sent):
                raise MessageSizeTooLargeError(str(error)) from error
            raise

    def open(self) -> KafkaProducer:
        """The producer. One made anew has the same id, and ends what the one before had begun."""
        if self._producer is None:
            options: dict[str, Any] = {
                "transactional_id": self._id,
                "transaction_timeout_ms": TRANSACTION,
                "max_block_ms": PATIENCE,
                "linger_ms": 1,
                "max_request_size": MOST_BYTES,
            }
            self._producer = producer(self._settings, **options)
            self._producer.init_transactions()
        return self._producer

    def close(self) -> None:
        if self._producer is not None:
            failed, self._producer = self._producer, None
            failed.close(timeout=1)
