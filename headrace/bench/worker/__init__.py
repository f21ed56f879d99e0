"""Benchmarks of a worker beside its model."""
