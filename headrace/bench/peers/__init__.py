"""Other engines and servers that the benchmarks compare with, each run in its own environment.

Only `headrace.bench` imports it.
"""
