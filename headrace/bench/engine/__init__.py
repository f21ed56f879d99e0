"""Benchmarks of the engine alone: throughput, batching policies, embeddings, memory, quality.

Nothing here needs Redis. Only `headrace.cli.bench` and other benchmarks import it.
"""
