"""Benchmarks, by subject: `engine`, `gateway`, `kafka`; `peers` runs other servers beside ours.

The modules here are what several subjects share. Only `headrace.cli.bench` and the tests import this package.
"""
