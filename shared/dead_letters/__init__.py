"""Dead letters: requests that lost too many workers or could not be computed.

`producer_api` and `workers` import this package.
"""
