"""The transactional producer while brokers fail."""

from __future__ import annotations

import pytest
from kafka import ConsumerGroupMetadata, KafkaProducer
from kafka.errors import KafkaTimeoutError

from shared.kafka.message import Outgoing
from tests.support.kafka_bench import Bench
from workers.kafka.transactional_writer import TransactionalWriter


def test_a_writer_that_could_not_begin_begins_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It completes or aborts the last transaction before it returns, also after an attempt that failed."""
    begin, begun = KafkaProducer.init_transactions, list[bool]()

    def late(self: KafkaProducer) -> None:
        begun.append(bool(begun))
        if not begun[-1]:
            raise KafkaTimeoutError
        begin(self)

    monkeypatch.setattr(KafkaProducer, "init_transactions", late)
    writer = TransactionalWriter(bench.settings)
    try:
        with pytest.raises(KafkaTimeoutError):
            writer.open()
        writer.write([Outgoing(bench.results, None, b"x")], {}, ConsumerGroupMetadata("g"))
    finally:
        writer.close()
    assert begun == [False, True]
