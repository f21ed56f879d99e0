"""Webhooks: signed calls to a caller's URL when a job or a batch ends.

`schemas` and everything above it import this package.
"""
