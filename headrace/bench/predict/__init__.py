"""Benchmarks of models that take tensors: throughput through the queue, dynamic batching, latency, version switches.

Only the command line imports it.
"""
