"""Kafka intake: requests from topics, and results written in the transaction that commits their offsets.

Only `workers.main` imports this package.
"""
