"""Benchmarks by subject: `engine`, `gateway` and `kafka`; `peers` runs other engines, `harness` holds shared parts.

Only `headrace.cli` and the tests import this package.
"""
