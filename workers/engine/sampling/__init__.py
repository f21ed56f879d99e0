"""Sampling: from logits to tokens, and log-probabilities.

The engine imports this package.
"""
