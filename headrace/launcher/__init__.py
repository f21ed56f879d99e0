"""`headrace up`: start Valkey, the API and the workers on one machine, and restart processes that die.

Only `headrace.cli` imports this package.
"""
