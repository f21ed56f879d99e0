"""OpenAI batches in Redis: their records, and their work under leases.

`producer_api` imports this package.
"""
