"""What all benchmarks are made of: workloads, load, streams, servers under test, and reports.

Only `headrace.bench` and `headrace.cli.bench` import it.
"""
