"""Statistics and tables shared by all benchmarks.

Only `headrace.bench` and `headrace.cli.bench` import it.
"""
