"""Requests that were set aside: they lost their workers or could not be computed.

`producer_api` and `workers` import this package.
"""
