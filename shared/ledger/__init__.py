"""The ledger of rate limits and budgets: atomic charges and refunds in Redis.

`producer_api` imports this package.
"""
