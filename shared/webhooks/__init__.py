"""Subscriptions to webhooks and their deliveries, in Redis and in memory.

`producer_api.webhooks` imports this package.
"""
