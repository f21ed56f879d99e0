"""Rounding of weights to 4 bits that takes into account what the layers of a model read.

A model computes a short text once; each layer is rounded by its own inputs, and the result is kept in the cache.
Everything below the engine may be imported.
"""
