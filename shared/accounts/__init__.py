"""API keys, scopes and usage records in a SQL database.

`producer_api` and `headrace` import this package; workers do not.
"""
