"""Uploaded files: their records in Redis and their content on disk.

`producer_api` imports this package.
"""
