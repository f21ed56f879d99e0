"""Authentication: API keys, JWTs, and the principal that a request acts for.

The lowest floor of the front end: every other package of it may import this one.
"""
