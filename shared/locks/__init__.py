"""Named locks in Redis, held by one process at a time and released when it dies.

`producer_api` imports this package.
"""
