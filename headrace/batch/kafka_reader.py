"""Reads what is committed in whole topics, without a group: whoever reads takes nothing from anybody else."""

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

REFRESH = 1.0  # seconds between looks for topics and partitions that are new


class TopicReader:
    """All partitions of some topics, those too that appear later. All calls block.

    Args:
        begin: the first offset of each partition, by `topic/partition`; others are read from their beginning.

    Every call raises Unavailable where the brokers fail.
    """

    def __init__(self, settings: Settings, topics: Sequence[str], begin: Mapping[str, int]) -> None:
        self._topics = topics
        self._positions = dict(begin)
        self._assigned: set[TopicPartition] = set()
        self._refresh_at = 0.0
        try:
            self._consumer = consumer(settings, group_id=None, metadata_max_age_ms=int(REFRESH * 1000))
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

    def ends(self) -> dict[str, int]:
        """Where each partition ends now."""
        try:
            places = self._places()
            found = self._consumer.end_offsets(places) if places else {}
        except KafkaError as error:
            raise unavailable(error) from error
        return {_name(place): offset for place, offset in found.items()}

    def poll(self, seconds: float) -> list[Record]:
        """What has come, waiting up to `seconds` for something."""
        try:
            self._assign()
            if not self._assigned:
                time.sleep(seconds)
                return []
            found = self._consumer.poll(timeout_ms=int(seconds * 1000))
        except KafkaError as error:
            raise unavailable(error) from error
        records = [Record.of(each) for batch in found.values() for each in batch]
        for record in records:
            self._positions[f"{record.topic}/{record.partition}"] = record.offset + 1
        return records

    def reached(self, ends: Mapping[str, int]) -> bool:
        """Whether all before `ends` has been read: markers of transactions count, and are no records."""
        try:
            return all(
                end == 0 or self._consumer.position(place) >= end
                for place in self._assigned
                if (end := ends.get(_name(place), 0))
            ) and len(self._assigned) >= len(ends)
        except KafkaError as error:
            raise unavailable(error) from error

    def _assign(self) -> None:
        if time.monotonic() < self._refresh_at:
            return
        self._refresh_at = time.monotonic() + REFRESH
        places = set(self._places())
        if places <= self._assigned:
            return
        self._consumer.assign(sorted(places))
        for place in places:
            self._consumer.seek(place, self._positions.get(_name(place), 0))
        self._assigned = places

    def _places(self) -> list[TopicPartition]:
        return [
            TopicPartition(topic, partition)
            for topic in self._topics
            for partition in self._consumer.partitions_for_topic(topic)
        ]


def _name(place: TopicPartition) -> str:
    return f"{place.topic}/{place.partition}"
