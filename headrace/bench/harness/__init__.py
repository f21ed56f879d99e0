"""Parts shared by all benchmarks: workloads, load client, servers under measurement, statistics.

Only `headrace.bench` and `headrace.cli.bench` import it.
"""
