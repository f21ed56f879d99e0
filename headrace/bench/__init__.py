"""Benchmarks: every number in docs/benchmarks.md comes from here."""
