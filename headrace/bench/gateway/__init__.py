"""Benchmarks of the whole path over HTTP: latency, streams, overhead, priorities and delivery.

Only `headrace.cli.bench` and other benchmarks import it.
"""
