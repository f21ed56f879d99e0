"""Benchmarks, by subject: `engine`, `gateway`, `kafka`; `peers` runs other servers beside ours.

What several subjects share is in `harness`. Only `headrace.cli.bench` and the tests import this package.
"""
