"""The paged KV cache and the prefix cache above it.

The scheduler and the engine import this package.
"""
