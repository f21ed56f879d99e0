"""Kafka: connections, topics, offsets and the format of records.

Every top-level package may import this one.
"""
