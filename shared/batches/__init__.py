"""Records of OpenAI batches in Redis.

`producer_api` imports this package.
"""
