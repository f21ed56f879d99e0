"""Rate limits and usage: what a caller may use, and what a finished request used.

`admission` and everything above it import this package.
"""
