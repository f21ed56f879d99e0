"""Metrics and the request log of an API process.

Every package of the front end except `auth` may import it.
"""
