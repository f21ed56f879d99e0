"""Benchmarks of models that take and return tensors."""
