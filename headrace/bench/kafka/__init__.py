"""Benchmarks of requests through Kafka, and of batches beside interactive requests.

Only `headrace.cli.bench` and the tests import it.
"""
