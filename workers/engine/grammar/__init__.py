"""Constrained decoding: compiling schemas and grammars, and matching tokens against them.

The engine and `sampling` import this package.
"""
