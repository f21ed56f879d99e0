"""Read the committed records of whole topics. Without a consumer group, readers do not affect each other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from kafka import TopicPartition
from kafka.errors import KafkaError

from shared.kafka.connection import consumer, unavailable
from shared.kafka.message import Record
from shared.settings import Settings

METADATA_REFRESH_S = 1.0  # how often new topics and partitions are looked up


class TopicReader:
    """Reader of all partitions of some topics, including partitions that appear later. All calls block.

    Args:
        begin: offset at which to start, by `topic/partition`; other partitions are read from their beginning.

    Every call raises Unavailable if the brokers fail.
    """

    def __init__(self, settings: Settings, topics: Sequence[str], begin: Mapping[str, int]) -> None:
        self._topics = topics
        self._positions = dict(begin)
        self._assigned: set[TopicPartition] = set()
        self._refresh_at = 0.0
        try:
            self._consumer = consumer(settings, group_id=None, metadata_max_age_ms=int(METADATA_REFRESH_S * 1000))
        except KafkaError as error:
            raise unavailable(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._consumer.close(timeout_ms=2_000)

    def end_offsets(self) -> dict[str, int]:
        """Return the current end offset of each partition, by `topic/partition`."""
        try:
            partitions = self._partitions()
            found = self._consumer.end_offsets(partitions) if partitions else {}
        except KafkaError as error:
            raise unavailable(error) from error
        return {_name(partition): offset for partition, offset in found.items()}

    def poll(self, seconds: float) -> list[Record]:
        """Return new records; wait up to `seconds` for the first."""
        try:
            self._assign()
            if not self._assigned:
                time.sleep(seconds)
                return []
            found = self._consumer.poll(timeout_ms=int(seconds * 1000))
        except KafkaError as error:
            raise unavailable(error) from error
        records = [Record.from_consumed(each) for batch in found.values() for each in batch]
        for record in records:
            self._positions[f"{record.topic}/{record.partition}"] = record.offset + 1
        return records

    def has_reached(self, ends: Mapping[str, int]) -> bool:
        """Return whether everything before `ends` has been read. Transaction markers take offsets, too."""
        try:
            return all(
                end == 0 or self._consumer.position(partition) >= end
                for partition in self._assigned
                if (end := ends.get(_name(partition), 0))
            ) and len(self._assigned) >= len(ends)
        except KafkaError as error:
            raise unavailable(error) from error

    def _assign(self) -> None:
        if time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + METADATA_REFRESH_S
        partitions = set(self._partitions())
        if partitions <= self._assigned:
            return
        self._consumer.assign(sorted(partitions))
        for partition in partitions:
            self._consumer.seek(partition, self._positions.get(_name(partition), 0))
        self._assigned = partitions

    def _partitions(self) -> list[TopicPartition]:
        return [
            TopicPartition(topic, partition)
            for topic in self._topics
            for partition in self._consumer.partitions_for_topic(topic)
        ]


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
