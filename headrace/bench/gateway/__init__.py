"""Benchmarks of the full stack over HTTP: latency, streams, overhead, priorities and delivery.

Only `headrace.cli.bench` and other benchmarks import it.
"""
