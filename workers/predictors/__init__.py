"""Models that take tensors and return tensors: one module for each framework, and their dynamic batching.

Only the workers' repository and runtimes import this package. Each framework is imported by the worker that needs
it.
"""
