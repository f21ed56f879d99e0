"""`headrace up`: start Valkey, the API and the workers on one machine, and restart what dies.

Only `headrace.cli` imports this package.
"""
