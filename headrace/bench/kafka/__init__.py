"""Benchmarks of requests over Kafka, and of batches next to interactive requests.

Only `headrace.cli.bench` and the tests import it.
"""
