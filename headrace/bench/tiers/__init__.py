"""Benchmark of the KV tiers of the engine.

Only `headrace.cli.bench` imports it.
"""
